"""The assignment: what one client does now.

It travels as JSON in the payload frame of ``TASK``, and is what the client's outbox keeps beside a trained update.
Times are durations: the two sides share no clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from protocol import limits
from protocol.codecs import Codec
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Buffer, Factor, Layout
from protocol.typed import Fields, parse_json

__all__ = ["Assignment", "AssignmentKind", "Handout", "LocalTraining", "read_local_training", "split_layouts"]


class AssignmentKind(StrEnum):
    """What the client is asked for."""

    TRAIN = "train"
    """Train from the hand-out, return an update and metrics."""
    EVALUATE = "evaluate"
    """Evaluate the hand-out on local data, return metrics only."""
    PROBE = "probe"
    """Compute a named statistic of the hand-out on local data, return metrics only."""


@dataclass(frozen=True, kw_only=True)
class Handout:
    """The stored object a client starts from."""

    digest: str
    """SHA-256, hex, of the object at this client's slots."""
    object_bytes: int
    """Its size."""
    codec: Codec
    """Its number format."""
    slots: int
    """Slots in it: the client's rank, and behind it the frozen residual's slots, if it takes one."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How the client trains: the run's settings, the same for all devices unless said otherwise."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, before :attr:`learning_rate_scale`."""
    learning_rate_scale: float = 1.0
    """This round's factor on it: the decay across rounds."""
    epochs: float = 1.0
    """Passes over the local examples."""
    max_steps: int | None = None
    """Optimizer steps after which training ends; None: ``epochs`` decides alone."""
    batch_size: int = 16
    """Examples per optimizer step; a device splits it into micro-batches as its memory asks."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay. It acts on the factors, so it shrinks ``ΔW``: zero unless wanted."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate climbs from zero; moments are fresh every round."""
    max_grad_norm: float = 1.0
    """Gradient-norm clip; 0 switches it off."""
    proximal_mu: float = 0.0
    """``μ`` of FedProx: ``μ/2·‖w − w₀‖²`` is added to the local objective, ``w`` being the trained parameters as the
    device holds them (PEFT's ``B`` and ``A``, and dense tensors) and ``w₀`` what it was handed. 0: no pull.

    Reference: Li et al., "Federated Optimization in Heterogeneous Networks", 2020, arXiv:1812.06127, section 3.2."""
    noise_multiplier: float = 0.0
    """``σ`` of DP-SGD: a step adds noise of standard deviation ``σ·clip_norm`` to the sum of its examples' gradients.
    Batches are then sampled, ``batch_size`` being their expected size, and ``max_grad_norm`` has no part in it. 0: no
    noise, and no privacy.

    Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv:1607.00133, algorithm 1."""
    clip_norm: float = 1.0
    """``C`` of DP-SGD: what the gradient of each example is clipped to, one norm over all that is trained."""
    delta: float = 1e-5
    """``δ`` at which a device accounts for the ``ε`` of its noisy steps; below one over its examples."""
    epsilon_max: float | None = None
    """Budget of DP-SGD: a device trains no more once a round would bring its ``ε`` above this. None: it only counts."""

    @property
    def private(self) -> bool:
        """Whether devices train by DP-SGD."""
        return self.noise_multiplier > 0

    def steps(self, num_examples: int) -> int:
        """Optimizer steps over so many examples; a last, smaller batch counts, and so does a part of an epoch.

        Example:
            >>> LocalTraining(batch_size=4, epochs=2.0).steps(10), LocalTraining(batch_size=4, epochs=0.5).steps(10)
            (6, 2)
        """
        steps = math.ceil(self.epochs * math.ceil(num_examples / self.batch_size))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_length(self, num_examples: int) -> float:
        """``K·η``: steps over so many examples, times the learning rate that they peak at."""
        return self.steps(num_examples) * self.learning_rate * self.learning_rate_scale


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one client does now."""

    kind: AssignmentKind
    """Train, evaluate or probe."""
    run: str
    """Run id."""
    round: int
    """Round number, from 1."""
    version: int
    """Version of the global state that was handed out, from 0."""
    token: str
    """32 hex digits, single use, bound to this client and round."""
    rank: int
    """LoRA rank to train at; slots ``rank..handout.slots`` are the frozen residual."""
    handout: Handout
    """What to start from: all trainables, or, if :attr:`inactive` is there, the active ones alone."""
    update_codec: Codec = Codec.BF16
    """Number format of the update."""
    active: tuple[str, ...] | None = None
    """Trainables to train and send back; the others stay frozen at the hand-out. None: all."""
    inactive: Handout | None = None
    """The other trainables, where they are an object of their own: one that stays the same from round to round, and is
    fetched once. Of the same codec and slots as :attr:`handout`."""
    frozen_factors: tuple[Factor, ...] = ()
    """Factors of every low-rank module that stay as handed out, and are not in the update; at most one of the two."""
    local: LocalTraining = field(default_factory=LocalTraining)
    """How to train."""
    probe: str | None = None
    """Name of the statistic, if ``kind`` is probe."""
    seed: int = 0
    """Seed of data order and dropout."""
    deadline_s: float | None = None
    """Seconds from receipt after which the update may be too late; None: no deadline."""

    @property
    def residual(self) -> bool:
        """Whether the hand-out carries a frozen residual behind the trained slots."""
        return self.handout.slots > self.rank

    @property
    def objects(self) -> tuple[Handout, ...]:
        """What to fetch before beginning."""
        return (self.handout,) if self.inactive is None else (self.inactive, self.handout)

    def decode_handout(self, manifest: Manifest, read: Callable[[str], Buffer]) -> AdapterTensors:
        """All trainables, as handed out.

        Args:
            manifest: The run's universe.
            read: Gives an object's bytes by its digest.

        Raises:
            RemoteProtocolError: As :meth:`protocol.payload.Layout.decode`; or ``active`` names something that the
                manifest does not.
        """
        whole, (slots, codec) = Layout.of(manifest), (self.handout.slots, self.handout.codec)
        if self.inactive is None:
            return whole.decode(read(self.handout.digest), slots, codec)
        active, inactive = split_layouts(manifest, self.active or ())
        parts = ((active, self.handout), (inactive, self.inactive))
        return whole.join((layout, layout.decode(read(part.digest), slots, codec)) for layout, part in parts)

    def update_layout(self, manifest: Manifest) -> Layout:
        """The layout that an update for this assignment must have.

        Raises:
            RemoteProtocolError: ``active`` names something that the manifest does not.
        """
        return Layout.of(manifest, self.active, self.frozen_factors)

    def to_json(self) -> bytes:
        """UTF-8 JSON, sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Reads what :meth:`to_json` wrote.

        Raises:
            RemoteProtocolError: Not an assignment, or out of bounds; names the field.
        """
        fields = parse_json(data, limits.ASSIGNMENT_MAX_BYTES, "assignment")
        assignment = cls(
            kind=fields.member("kind", AssignmentKind),
            run=fields.text("run"),
            round=fields.integer("round", minimum=1),
            version=fields.integer("version"),
            token=fields.token("token"),
            rank=fields.integer("rank", maximum=limits.RANK_MAX),
            handout=_handout(fields.table("handout")),
            update_codec=fields.member("update_codec", Codec),
            active=_active(fields),
            inactive=None if fields.optional_null("inactive") else _handout(fields.table("inactive")),
            frozen_factors=tuple(fields.members("frozen_factors", Factor)),
            local=read_local_training(fields.table("local")),
            probe=fields.optional_text("probe"),
            seed=fields.integer("seed"),
            deadline_s=fields.optional_number("deadline_s", minimum=0.0),
        )
        fields.finish()
        if assignment.handout.slots < assignment.rank:
            raise RemoteProtocolError("assignment: the hand-out has fewer slots than the rank to train", NackCode.SHAPE)
        if assignment.inactive is not None:
            alike = {(part.codec, part.slots) for part in assignment.objects}
            if assignment.active is None or len(alike) > 1:
                raise RemoteProtocolError(
                    "assignment: field 'inactive': expected it with 'active', in codec and slots like the hand-out",
                    NackCode.SHAPE,
                )
        if len(assignment.frozen_factors) == len(Factor):
            raise RemoteProtocolError("assignment: field 'frozen_factors': one of the two has to train")
        return assignment


def split_layouts(manifest: Manifest, active: Iterable[str]) -> tuple[Layout, Layout]:
    """The layouts of the active trainables and of the others, as two objects hold them.

    Raises:
        RemoteProtocolError: A name is not in the manifest.
    """
    keep = set(active)
    return Layout.of(manifest, keep), Layout.of(manifest, [name for name in manifest.names if name not in keep])


def _active(fields: Fields) -> tuple[str, ...] | None:
    if fields.optional_null("active"):
        return None
    return tuple(fields.texts("active", limits.TENSORS_MAX))


def _handout(fields: Fields) -> Handout:
    handout = Handout(
        digest=fields.digest("digest"),
        object_bytes=fields.integer("object_bytes", maximum=limits.OBJECT_MAX_BYTES),
        codec=fields.member("codec", Codec),
        slots=fields.integer("slots", maximum=limits.RANK_MAX),
    )
    fields.finish()
    return handout


def read_local_training(fields: Fields) -> LocalTraining:
    """Reads the settings of local training from an untrusted map.

    Raises:
        RemoteProtocolError: A field is missing, unknown or out of bounds.
    """
    local = LocalTraining(
        learning_rate=fields.number("learning_rate", minimum=0.0, maximum=1e3),
        learning_rate_scale=fields.number("learning_rate_scale", minimum=0.0, maximum=1e3),
        epochs=fields.number("epochs", minimum=0.0, maximum=1e6),
        max_steps=fields.optional_integer("max_steps", minimum=0),
        batch_size=fields.integer("batch_size", minimum=1, maximum=1 << 20),
        weight_decay=fields.number("weight_decay", minimum=0.0, maximum=1e3),
        warmup_ratio=fields.number("warmup_ratio", minimum=0.0, maximum=1.0),
        max_grad_norm=fields.number("max_grad_norm", minimum=0.0, maximum=1e9),
        proximal_mu=fields.number("proximal_mu", minimum=0.0, maximum=1e9),
        noise_multiplier=fields.number("noise_multiplier", minimum=0.0, maximum=limits.NOISE_MULTIPLIER_MAX),
        clip_norm=fields.number("clip_norm", minimum=0.0, maximum=1e9),
        delta=fields.number("delta", minimum=0.0, maximum=1.0),
        epsilon_max=fields.optional_number("epsilon_max", minimum=0.0),
    )
    fields.finish()
    return local
