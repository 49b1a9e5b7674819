"""What the operator decides about a run, and the file that remembers it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from aggregator.errors import ConfigError
from aggregator.merge.strategies import StrategyName
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import OptimizerName
from protocol.assignment import LocalTraining, read_local_training
from protocol.codecs import Codec
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.probes import Probe
from protocol.typed import parse_json

__all__ = ["Mode", "RunConfig"]

_MAX_BYTES = 1 << 16


class Mode(StrEnum):
    """When updates are merged."""

    SYNC = "sync"
    """In rounds: a cohort trains from one version, and its updates are merged when they are in."""
    ASYNC = "async"
    """In buffers: devices train from whatever version is live when they ask, and updates are merged when there are
    enough, each as it counts against its own version (FedBuff)."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The operator's settings; fixed when the run is made, apart from ``rounds``, which ``extend`` raises."""

    run: str
    """Run id: goes into tickets, assignments and file names."""
    rounds: int = 10
    """Training rounds after which the run is finished."""
    mode: Mode = Mode.SYNC
    """``sync``: rounds that wait for their cohort. ``async``: buffers that are merged when they are full."""
    cohort_size: int = 2
    """Updates a round waits for; in ``async`` mode the size of the buffer, FedBuff's ``K``."""
    over_selection: float = 1.0
    """Clients invited per update wanted; 1.3 survives 23 % drop-outs without waiting for the deadline. In ``async``
    mode nobody is invited: see ``concurrency``."""
    quorum: int | None = None
    """Updates that suffice once the deadline has passed; None: all of ``cohort_size``, as always in ``async`` mode."""
    deadline_s: float | None = 3600.0
    """Seconds after which a round with a quorum closes, and one without gives the places of silent devices to others.
    None: a round waits for its cohort, and one silent device can hold it for ever. In ``async`` mode: seconds after
    which a device no longer counts as one that trains."""
    concurrency: int | None = None
    """Devices that may train at a time in ``async`` mode; None: all that ask."""
    staleness_max: int = 20
    """Versions that an update may be behind in ``async`` mode; one that is more is refused, and its device asks anew.
    The hand-outs of as many versions may be on disk."""
    poll_s: float = 2.0
    """Mean seconds between two questions of a client that waits for work."""
    default_rank: int = 8
    """LoRA rank of devices that name none."""
    residual_slots: int | None = None
    """Slots that a device taking the frozen residual receives in all; None: the manifest's ``rank_max``."""
    handout_codec: Codec = Codec.BF16
    """Number format of hand-outs."""
    update_codec: Codec = Codec.BF16
    """Number format of updates."""
    strategy: StrategyName = StrategyName.DELTA
    """What updates are merged by. All but ``delta`` are for comparison: most shrink the model in every round."""
    retention: float = 1.0
    """``ρ`` of ``delta``: share kept of what the cohort did not see of the model, in [0, 1], at the pace at which it
    changes what it saw; 1 keeps all of it."""
    weights: Weighting = Weighting.NUM_EXAMPLES
    """By what an update counts: its examples, no matter what (uniform), or its examples over its probability of being
    in the cohort, which is unbiased for the devices present if delivering does not depend on the data."""
    server_learning_rate: float = 1.0
    """Step on the merged update; 1 takes it as it is."""
    server_learning_rate_decay: float = 0.0
    """``d`` in this round's factor ``1 / (1 + d·(round - 1))`` on the server's learning rates."""
    server_optimizer: OptimizerName = OptimizerName.SGD
    """What is made of the merged update. Momentum is a running sum of it, for all trainables; adagrad, adam and yogi
    step dense tensors entry by entry, and low-rank modules as sgd does; controlled-momentum is a moving average of
    updates that are corrected by each device's control variate, for dense tensors alone."""
    server_beta1: float = 0.9
    """The momenta's ``β``, and ``β₁`` of the adaptive optimizers, in [0, 1); FedAdagrad's paper takes 0."""
    server_beta2: float = 0.99
    """``β₂`` of adam and yogi, in [0, 1)."""
    server_tau: float = 1e-3
    """``τ`` of the adaptive optimizers, above 0: what they take for a small update of a dense tensor's entry."""
    server_dense_learning_rate: float = 0.01
    """``η`` of the adaptive optimizers: how far an entry of a dense tensor moves in a round, in the weights' units."""
    server_momentum_rank: int | None = None
    """Directions kept of each low-rank module's momentum, which gains the cohort's in every round; None: all."""
    server_population: int | None = None
    """Devices that the cohorts of controlled-momentum are drawn from, so that those yet to come have their share in the
    mean of the controls; None: those that came so far."""
    server_noise_multiplier: float = 0.0
    """``σ`` of central differential privacy: noise of deviation ``σ·server_clip_norm`` is added to the sum of a round's
    updates, and a device's data is protected from whoever sees the versions, not from the operator. Low-rank modules
    are then kept as whole matrices. 0: none."""
    server_clip_norm: float = 1.0
    """What each device's change is clipped to before it is added up, one norm over all products and dense tensors."""
    server_delta: float = 1e-5
    """``δ`` at which the ``ε`` of all merges together is accounted for; below one over the devices."""
    server_epsilon_max: float | None = None
    """Bound on that ``ε`` after the last round: a run that would exceed it is not made. None: it is only counted."""
    learning_rate_decay: float = 0.0
    """``d`` in this round's factor ``1 / (1 + d·(round - 1))`` on the devices' learning rate: what keeps long runs from
    drifting."""
    probe_round: int | None = None
    """Round, one of ``rounds``, in which devices do not train but score the model's layers (FedPepTAO); from the next
    one on they train those of the best layers alone, and what belongs to no layer. None: all layers, always."""
    kept_layers: float | None = None
    """Share of the layers that are kept after ``probe_round``, above 0, up to 1; None: as the devices find by the
    spectrum of the loss's Hessian, which costs each of them about 100 passes over a batch."""
    local: LocalTraining = field(default_factory=LocalTraining)
    """How the devices train."""
    num_examples_max: int = 10_000_000
    """Bound on the aggregation weight that a client may claim."""
    update_norm_max: float = 1e4
    """Bound on the Frobenius norm of all values of an update. The default catches training that diverged and stayed
    finite: all weights of a 7B model, at 0.02 each, have norm 0.02·√(7·10⁹) ≈ 1.7·10³, and an update several times as
    large as its model is no fine-tuning. It is no defence against a device that means harm."""
    keep_versions: int | None = 1
    """Versions before the live one that stay on disk, each with the updates that led from it to the next: what
    ``export --version`` and an offline recompute can go back to. None: all of them."""
    strict_enrolment: bool = False
    """Whether only keys enrolled by hand are taken: no tickets with tokens."""
    seed: int = 0
    """Seed of selection, fresh LoRA rows and the clients' data order."""

    @property
    def invitations(self) -> int:
        """Clients invited to one round."""
        return math.ceil(self.cohort_size * self.over_selection)

    @property
    def least_updates(self) -> int:
        """The quorum as a number."""
        return self.cohort_size if self.quorum is None else self.quorum

    def slots(self, manifest: Manifest) -> int:
        """Slots of a stored hand-out."""
        return max(manifest.rank_max, self.residual_slots or 0)

    def probe_in(self, round_number: int) -> Probe | None:
        """What devices are asked for in a round instead of training; None: they train."""
        if round_number != self.probe_round:
            return None
        return Probe.KEPT_LAYERS if self.kept_layers is None else Probe.LAYER_SCORES

    def learning_rate_scale(self, round_number: int) -> float:
        """This round's factor on the devices' learning rate."""
        return _decayed(self.learning_rate_decay, round_number)

    def server_learning_rate_scale(self, round_number: int) -> float:
        """This round's factor on the server's learning rates."""
        return _decayed(self.server_learning_rate_decay, round_number)

    def to_json(self) -> bytes:
        """The contents of ``run.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Reads ``run.json``.

        Raises:
            ConfigError: It is not what :meth:`to_json` writes; names the field.
        """
        try:
            f = parse_json(data, _MAX_BYTES, "run.json")
            config = cls(
                run=f.text("run"),
                rounds=f.integer("rounds"),
                mode=f.member("mode", Mode),
                cohort_size=f.integer("cohort_size"),
                over_selection=f.number("over_selection"),
                quorum=f.optional_integer("quorum"),
                deadline_s=f.optional_number("deadline_s"),
                concurrency=f.optional_integer("concurrency"),
                staleness_max=f.integer("staleness_max"),
                poll_s=f.number("poll_s"),
                default_rank=f.integer("default_rank"),
                residual_slots=f.optional_integer("residual_slots"),
                handout_codec=f.member("handout_codec", Codec),
                update_codec=f.member("update_codec", Codec),
                strategy=f.member("strategy", StrategyName),
                retention=f.number("retention"),
                weights=f.member("weights", Weighting),
                server_learning_rate=f.number("server_learning_rate"),
                server_learning_rate_decay=f.number("server_learning_rate_decay"),
                server_optimizer=f.member("server_optimizer", OptimizerName),
                server_beta1=f.number("server_beta1"),
                server_beta2=f.number("server_beta2"),
                server_tau=f.number("server_tau"),
                server_dense_learning_rate=f.number("server_dense_learning_rate"),
                server_momentum_rank=f.optional_integer("server_momentum_rank"),
                server_population=f.optional_integer("server_population"),
                server_noise_multiplier=f.number("server_noise_multiplier"),
                server_clip_norm=f.number("server_clip_norm"),
                server_delta=f.number("server_delta"),
                server_epsilon_max=f.optional_number("server_epsilon_max"),
                learning_rate_decay=f.number("learning_rate_decay"),
                probe_round=f.optional_integer("probe_round"),
                kept_layers=f.optional_number("kept_layers"),
                local=read_local_training(f.table("local")),
                num_examples_max=f.integer("num_examples_max"),
                update_norm_max=f.number("update_norm_max"),
                keep_versions=f.optional_integer("keep_versions"),
                strict_enrolment=f.flag("strict_enrolment"),
                seed=f.integer("seed"),
            )
            f.finish()
        except RemoteProtocolError as error:
            raise ConfigError(str(error)) from error
        return config


def _decayed(decay: float, round_number: int) -> float:
    return 1.0 / (1.0 + decay * (round_number - 1))
