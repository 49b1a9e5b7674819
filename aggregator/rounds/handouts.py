"""The hand-outs of the live version: named by digest, served piece by piece from one stored body."""

from __future__ import annotations

from aggregator.rounds.work import StoredVersion
from aggregator.store.objects import ObjectStore
from protocol.assignment import Handout
from protocol.manifest import Manifest
from protocol.payload import Layout, PrefixDigests

__all__ = ["Handouts"]


class Handouts:
    """Every rank's hand-out of one version, as prefixes of its body.

    Args:
        objects: Where the body lies.
        manifest: The run's universe.
        version: The version to serve.
    """

    def __init__(self, objects: ObjectStore, manifest: Manifest, version: StoredVersion) -> None:
        self.version = version
        self._layout = Layout.of(manifest)
        self._body = objects.view(version.body)
        self._digests = PrefixDigests(self._layout, self._body, version.slots, version.codec)
        self._served: dict[str, int] = {}

    def offer(self, slots: int) -> Handout:
        """Names the hand-out with this many slots; from now on :meth:`piece` serves it."""
        digest = self._digests.of(slots)
        self._served[digest] = slots
        return Handout(
            digest=digest,
            object_bytes=self._layout.object_bytes(slots, self.version.codec),
            codec=self.version.codec,
            slots=slots,
        )

    def piece(self, digest: str, offset: int, length: int) -> bytes | None:
        """Bytes of an offered hand-out; None if the digest is not one of them."""
        if digest not in self._served:
            return None
        slots = self._served[digest]
        header = self._layout.header(slots, self.version.codec)
        end = min(offset + length, len(header) + self._layout.body_bytes(slots, self.version.codec))
        body = self._body[max(0, offset - len(header)) : max(0, end - len(header))]
        return header[offset:end] + bytes(body)
