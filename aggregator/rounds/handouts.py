"""The hand-outs of versions: named by digest, served piece by piece from stored bodies."""

from __future__ import annotations

from collections.abc import Collection

from aggregator.rounds.work import StoredVersion
from aggregator.store.objects import ObjectStore
from protocol.assignment import Assignment, Handout, split_layouts
from protocol.codecs import Codec
from protocol.manifest import Manifest
from protocol.payload import Layout, PrefixDigests

__all__ = ["Handouts", "ServedVersions"]


class Handouts:
    """Every rank's hand-out of one version, as prefixes of its body, and of the adapters that a run ends with.

    Args:
        objects: Where the bodies lie.
        manifest: The run's universe.
        version: The version to serve.
    """

    def __init__(self, objects: ObjectStore, manifest: Manifest, version: StoredVersion) -> None:
        self.version, self._objects = version, objects
        self._manifest, self._layout = manifest, Layout.of(manifest)
        self._live = self._body(self._layout, objects.view(version.body))
        self._final = self._live
        if version.final is not None:
            self._final = self._body(self._layout, objects.view(version.final))
        self._parts: dict[tuple[str, ...], tuple[_Body, _Body]] = {}
        self._served: dict[str, tuple[_Body, int]] = {}

    def offer(self, slots: int) -> Handout:
        """Names the hand-out with this many slots to train from; from now on :meth:`piece` serves it."""
        return self._offered(self._live, slots)

    def offer_parts(self, slots: int, active: tuple[str, ...]) -> tuple[Handout, Handout]:
        """Names two objects with this many slots, one of these trainables and one of the others, served from now on.

        What changes from version to version and what does not travel apart so. Both are kept in memory.
        """
        if active not in self._parts:
            ours, others = split_layouts(self._manifest, active)
            self._parts[active] = self._extracted(ours), self._extracted(others)
        changing, constant = self._parts[active]
        return self._offered(changing, slots), self._offered(constant, slots)

    def offer_again(self, given: Assignment) -> None:
        """Serves what an assignment named before a restart."""
        if given.inactive is None:
            self.offer(given.handout.slots)
        else:
            self.offer_parts(given.handout.slots, given.active or ())

    def offer_final(self, slots: int) -> Handout:
        """Names the adapter with this many slots to keep, the best there is of the model; it is served from now on."""
        return self._offered(self._final, slots)

    def piece(self, digest: str, offset: int, length: int) -> bytes | None:
        """Bytes of an offered hand-out; None if the digest is not one of them."""
        if digest not in self._served:
            return None
        body, slots = self._served[digest]
        return body.piece(slots, offset, length)

    def _extracted(self, part: Layout) -> _Body:
        body = self._objects.view(self.version.body)
        return self._body(part, memoryview(self._layout.extract(body, self.version.slots, self.version.codec, part)))

    def _body(self, layout: Layout, data: memoryview) -> _Body:
        return _Body(layout, data, self.version.slots, self.version.codec)

    def _offered(self, body: _Body, slots: int) -> Handout:
        handout = body.handout(slots)
        self._served[handout.digest] = body, slots
        return handout


class ServedVersions:
    """The hand-outs of the live version, and of the earlier ones that devices are at work with.

    Args:
        objects: Where the bodies lie.
        manifest: The run's universe.
        live: The live version.
    """

    def __init__(self, objects: ObjectStore, manifest: Manifest, live: StoredVersion) -> None:
        self._objects, self._manifest = objects, manifest
        self._served = {live.version: Handouts(objects, manifest, live)}
        self._live = live.version

    @property
    def live(self) -> Handouts:
        """Those of the live version."""
        return self._served[self._live]

    def of(self, version: StoredVersion) -> Handouts:
        """Those of a version that a device is at work with."""
        if version.version not in self._served:
            self._served[version.version] = Handouts(self._objects, self._manifest, version)
        return self._served[version.version]

    def piece(self, digest: str, offset: int, length: int) -> bytes | None:
        """Bytes of an offered hand-out of any version; None if the digest is not one of them."""
        pieces = (each.piece(digest, offset, length) for each in self._served.values())
        return next((found for found in pieces if found is not None), None)

    def follow(self, live: StoredVersion, at_work: Collection[int]) -> None:
        """Goes over to the next version.

        Args:
            live: The next version.
            at_work: The earlier versions that devices are still at work with; the others are served no longer.
        """
        self._served = {number: each for number, each in self._served.items() if number in at_work}
        self._live = self.of(live).version.version


class _Body:
    """One stored body, whose prefixes are objects."""

    def __init__(self, layout: Layout, data: memoryview, slots: int, codec: Codec) -> None:
        self._layout, self._data, self._codec = layout, data, codec
        self._digests = PrefixDigests(layout, data, slots, codec)

    def handout(self, slots: int) -> Handout:
        size = self._layout.object_bytes(slots, self._codec)
        return Handout(digest=self._digests.of(slots), object_bytes=size, codec=self._codec, slots=slots)

    def piece(self, slots: int, offset: int, length: int) -> bytes:
        header = self._layout.header(slots, self._codec)
        end = min(offset + length, len(header) + self._layout.body_bytes(slots, self._codec))
        body = self._data[max(0, offset - len(header)) : max(0, end - len(header))]
        return header[offset:end] + bytes(body)
