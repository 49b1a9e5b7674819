"""What a study is: arms to compare, conditions to compare them under, claims to check, and how much of it to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from benchmarks.data.partitions import Scheme
from benchmarks.simulation.devices import Fleet

if TYPE_CHECKING:
    from benchmarks.studies.claims import Claim
    from protocol.typed import Option

__all__ = ["Arm", "Cell", "Condition", "Preset", "Regime", "Study"]


class Regime(StrEnum):
    """Who trains on what."""

    FEDERATED = "federated"
    """Devices, each on its own rows, in rounds."""
    CENTRALISED = "centralised"
    """One device that has all rows, and sees as many a round as a cohort does."""
    ALONE = "alone"
    """Each device by itself, as long as one trains in the federation on average; the mean over some of them."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to tune."""

    method: str
    """Name in :data:`edge_client.methods.METHODS`."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """The method's settings."""
    rank: int = 1
    """Rank of every device; 1 where the method has none."""
    learning_rates: Sequence[float]
    """What the peak learning rate is chosen from, on validation rows."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`aggregator.config.RunConfig` that are this arm's own."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What an arm runs under."""

    clients: int = 20
    """Devices."""
    participation: float = 0.25
    """Share of the devices in a round's cohort."""
    scheme: Scheme = Scheme.PRIOR_DIRICHLET
    """How rows are dealt."""
    alpha: float | None = 1.0
    """Concentration of the scheme's Dirichlet; None where it has none."""
    train_rows: int | None = None
    """Training rows of all devices together; None: the preset's."""
    epochs: float = 1.0
    """Passes of a device over its rows in a round."""
    regime: Regime = Regime.FEDERATED
    """Who trains on what."""
    local: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`protocol.assignment.LocalTraining` that are this condition's own."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`aggregator.config.RunConfig` that are this condition's own; an arm's go before."""
    fleet: Fleet | None = None
    """What the devices' speeds and absences are drawn from; None: all are there, and nothing takes any time."""
    arms: Sequence[str] | None = None
    """Arms that it is about; None: all."""
    own_rates: bool = False
    """Whether learning rates are chosen under this condition, and not under the study's first: noise wants others."""

    @property
    def cohort(self) -> int:
        """Devices in a round, at least 1."""
        return max(1, round(self.clients * self.participation))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    task: str
    """Name in :data:`benchmarks.data.tasks.TASKS`."""
    arm: str
    """Name in :attr:`Study.arms`."""
    condition: str
    """Name in :attr:`Study.conditions`."""
    learning_rate: float
    """Peak of each round."""
    seed: int
    """Decides data, partition, cohorts and order."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is done."""

    tasks: Sequence[str]
    """Names in :data:`benchmarks.data.tasks.TASKS`."""
    arms: Sequence[str] | None = None
    """Names in :attr:`Study.arms`; None: all."""
    conditions: Sequence[str] | None = None
    """Names in :attr:`Study.conditions`; None: all."""
    seeds: int
    """Repetitions."""
    rounds: int
    """Merges."""
    batch_size: int
    """Examples per local step."""
    train_rows: int | None
    """Training rows of all devices together; None: all that there are."""
    validation_rows: int
    """Rows of the training split that versions and learning rates are chosen by."""
    test_rows: int | None
    """Rows that are tested on; None: all."""
    score_every: int = 1
    """Rounds from one point of a curve to the next."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A published system's comparison, as it is done here."""

    name: str
    """As on the command line."""
    question: str
    """What it answers."""
    arms: Mapping[str, Arm]
    """By name, as tables show them."""
    conditions: Mapping[str, Condition]
    """By name. The first one is what learning rates are chosen under, with the first seed, unless one has its own."""
    presets: Mapping[str, Preset]
    """By name."""
    claims: Sequence[Claim]
    """What was published, and is checked."""
    vision: bool = False
    """Whether the base is a small vision transformer, pretrained on other classes, unless ``--model`` names another;
    else it is all-MiniLM-L6-v2."""

    @property
    def first(self) -> str:
        """The condition that the others are variations of."""
        return next(iter(self.conditions))

    def tuned_under(self, condition: str) -> str:
        """The condition that the learning rates for this one are chosen under."""
        return condition if self.conditions[condition].own_rates else self.first

    def arms_of(self, condition: str, preset: Preset) -> Sequence[str]:
        """The arms that run under a condition."""
        about, arms = self.conditions[condition].arms, preset.arms or tuple(self.arms)
        return arms if about is None else [arm for arm in arms if arm in about]
