"""What every benchmark writes: rows as measured, beside goals that it did not set itself."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

__all__ = ["Result", "Target", "TargetsError", "judge", "load_goals"]

_COMPARE = {"<": lambda got, goal: got < goal, ">": lambda got, goal: got > goal, "==": lambda got, goal: got == goal}


class TargetsError(Exception):
    """``targets.toml`` and a benchmark do not fit together."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of ``targets.toml``."""

    key: str
    """The measurement it is about."""
    what: str
    """In words."""
    comparison: str
    """``<``, ``>`` or ``==``."""
    bound: float
    """What the measurement is compared with."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A goal beside what came."""

    what: str
    """In words."""
    goal: str
    """Such as ``< 300``."""
    got: float
    """The measurement."""
    met: bool
    """Whether it is met; NaN never is."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark run."""

    name: str
    """The benchmark."""
    command: str
    """What to type to get it again."""
    machine: Mapping[str, object]
    """:func:`benchmarks.machine.describe_machine`."""
    seeds: Sequence[int]
    """Seeds it ran with."""
    rows: Sequence[Mapping[str, object]]
    """Measurements, one mapping each."""
    targets: Sequence[Target]
    """Goals beside what came."""

    def to_json(self) -> str:
        """JSON with two-space indents; a number that is not finite becomes null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Writes :meth:`to_json`, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        part.replace(path)


def load_goals(benchmark: str) -> list[Goal]:
    """The goals of one benchmark, as committed in ``targets.toml``.

    Raises:
        TargetsError: The benchmark has none there, or an entry cannot be read.
    """
    tables = tomllib.loads(files("benchmarks").joinpath("targets.toml").read_text(encoding="utf-8"))
    if benchmark not in tables:
        raise TargetsError(f"targets.toml has no goals for {benchmark!r}, only for {', '.join(tables)}")
    return [_goal(benchmark, key, entry) for key, entry in tables[benchmark].items()]


def judge(benchmark: str, got: Mapping[str, float]) -> list[Target]:
    """Sets measurements beside the benchmark's goals; a goal without a measurement is left out.

    Raises:
        TargetsError: A measurement has no goal: its name is mistyped, or the goal is missing from the file.
    """
    goals = {goal.key: goal for goal in load_goals(benchmark)}
    unknown = sorted(set(got) - set(goals))
    if unknown:
        raise TargetsError(f"targets.toml sets no goal for {', '.join(unknown)} of {benchmark!r}")
    return [_target(goals[key], float(value)) for key, value in got.items()]


def _goal(benchmark: str, key: str, entry: Mapping[str, object]) -> Goal:
    comparison, bound, what = entry.get("is"), entry.get("goal"), entry.get("what")
    if comparison not in _COMPARE or not isinstance(bound, (int, float)) or not isinstance(what, str):
        raise TargetsError(f"targets.toml: [{benchmark}.{key}] needs what, is (one of {', '.join(_COMPARE)}) and goal")
    return Goal(key=key, what=what, comparison=str(comparison), bound=float(bound))


def _target(goal: Goal, got: float) -> Target:
    met = not math.isnan(got) and bool(_COMPARE[goal.comparison](got, goal.bound))
    return Target(what=goal.what, goal=f"{goal.comparison} {goal.bound:g}", got=got, met=met)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
