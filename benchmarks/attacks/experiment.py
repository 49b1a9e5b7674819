"""The experiment: every attack on every method, at the start of a run and later in it, on batches of several sizes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.attacks.dlg import match_gradients
from benchmarks.attacks.embedding_rows import read_rows
from benchmarks.attacks.recovered import Recovered, TokenScores, score, words_of
from benchmarks.attacks.settings import ARMS, Preset, Settings
from benchmarks.attacks.span import search_span
from benchmarks.attacks.victim import Rows, Seen, Victim, View
from benchmarks.command_line import BenchmarkError
from benchmarks.data.classification import ClassificationData, load_classification
from benchmarks.data.tasks import source_of
from edge_client.errors import EdgeClientError
from protocol.manifest import Pooling, Task, TaskKind

if TYPE_CHECKING:
    from protocol.payload import AdapterTensors

__all__ = ["ATTACKS", "FREQUENT", "ROUNDS", "Finding", "run_all"]

FREQUENT = "frequent words"
"""No attack but what one must beat: the most frequent tokens of other texts, as many as the batch has."""
ATTACKS: Sequence[str] = ("embedding rows", "span", "DLG")
"""By name."""
ROUNDS: Sequence[str] = ("first", "later")
"""In which round the device is attacked."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack on one batch."""

    arm: str
    """Name in :data:`.settings.ARMS`."""
    round: str
    """Of :data:`ROUNDS`."""
    view: str
    """A :class:`.victim.View`."""
    batch: int
    """Texts."""
    seed: int
    """Which."""
    attack: str
    """Of :data:`ATTACKS`, or :data:`FREQUENT`."""
    scores: TokenScores | None
    """How right it is; None: the attack has nothing to look at in what the method sends."""
    tokens: int
    """Of the batch, without special ones."""
    seconds: float
    """That the attack took."""


def run_all(settings: Settings, model: str, say: Callable[[str], None]) -> Iterator[Finding]:
    """Runs a preset.

    Args:
        settings: Which.
        model: Hub id or folder.
        say: Told what is being done.

    Raises:
        BenchmarkError: Data or model cannot be read, or cannot be attacked.
    """
    try:
        for seed in settings.seeds:
            data = _data(settings, seed)
            task = Task(
                kind=TaskKind.CLASSIFICATION, max_length=settings.max_length, labels=data.labels, pooling=Pooling.MEAN
            )
            for arm in settings.preset.arms:
                say(f"{arm}, seed {seed}")
                yield from _attack(arm, Victim(model, ARMS[arm], task), data, settings.preset, seed)
    except EdgeClientError as error:
        raise BenchmarkError(str(error)) from error


def _data(settings: Settings, seed: int) -> ClassificationData:
    """The attacked texts are rows of the test split; the attacker's own are training rows."""
    return load_classification(
        source_of(settings.task, settings.data),
        train=settings.preset.public_rows,
        selection=0,
        test=max(settings.preset.batches),
        seed=seed,
        held_out_seed=seed,
    )


def _attack(arm: str, victim: Victim, data: ClassificationData, preset: Preset, seed: int) -> Iterator[Finding]:
    handouts = {"first": victim.first_handout(seed), "later": victim.later_handout(data.train, seed)}
    for size in preset.batches:
        rows = data.test[:size]
        frequent = partial(_frequent, victim, data.train, rows)
        yield _finding(arm, "first", View.GRADIENT, FREQUENT, victim, rows, seed, frequent)
        for number in ROUNDS:
            yield from _on_batch(arm, number, victim, rows, handouts[number], preset, seed)


def _on_batch(
    arm: str, number: str, victim: Victim, rows: Rows, handout: AdapterTensors, preset: Preset, seed: int
) -> Iterator[Finding]:
    for view in View:
        seen = victim.see(view, rows, handout, seed)
        searched = (number, view) == ("first", View.GRADIENT) and len(rows) <= preset.dlg_batch_max
        for name, attack in _attacks(seen, preset.dlg_steps if searched else None, seed).items():
            yield _finding(arm, number, view, name, victim, rows, seed, attack)


def _attacks(seen: Seen, dlg_steps: int | None, seed: int) -> Mapping[str, Callable[[], Recovered | None]]:
    """Those to try: DLG, by far the slowest, not everywhere, and not on updates, whose signs have no derivative."""
    attacks: dict[str, Callable[[], Recovered | None]] = {
        "embedding rows": partial(read_rows, seen),
        "span": partial(search_span, seen),
    }
    if dlg_steps is not None:
        attacks["DLG"] = partial(match_gradients, seen, steps=dlg_steps, seed=seed)
    return attacks


def _finding(
    arm: str,
    number: str,
    view: View,
    name: str,
    victim: Victim,
    rows: Rows,
    seed: int,
    attack: Callable[[], Recovered | None],
) -> Finding:
    texts = victim.texts(rows)
    special = victim.special_tokens()
    start = time.monotonic()
    recovered = attack()
    return Finding(
        arm=arm,
        round=number,
        view=view,
        batch=len(rows),
        seed=seed,
        attack=name,
        scores=None if recovered is None else score(recovered, texts, special),
        tokens=words_of((token for text in texts for token in text), special).total(),
        seconds=time.monotonic() - start,
    )


def _frequent(victim: Victim, public: Rows, rows: Rows) -> Recovered:
    special = victim.special_tokens()
    known, own = (
        words_of((token for text in victim.texts(part) for token in text), special) for part in (public, rows)
    )
    return Recovered(tokens=Counter(token for token, _ in known.most_common(own.total())))
