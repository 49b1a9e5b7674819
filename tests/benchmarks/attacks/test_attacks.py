"""Attacks find what is there, and nothing where there is nothing."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.attacks import plan
from benchmarks.attacks.dlg import match_gradients
from benchmarks.attacks.embedding_rows import read_rows
from benchmarks.attacks.recovered import Recovered, score, words_of
from benchmarks.attacks.settings import ARMS
from benchmarks.attacks.span import row_span, search_span
from benchmarks.attacks.victim import Seen, Victim, View
from benchmarks.command_line import BenchmarkError, UsageError, run_command
from protocol.manifest import Pooling, Task, TaskKind

TASK = Task(kind=TaskKind.CLASSIFICATION, max_length=32, labels=("no", "yes"), pooling=Pooling.MEAN)
ROWS = [
    {"sentence": "w1 w7 good film w30 w7 w22", "label": 1},
    {"sentence": "bad w4 w41 w9 a", "label": 0},
]
PUBLIC = [{"sentence": f"w{n} w{2 * n} film w{n + 11}", "label": n % 2} for n in range(16)]


@pytest.fixture(scope="module")
def sharp_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with larger weights, so that its attention tells tokens apart, as a pretrained one's does."""
    from transformers import AutoModel

    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("models") / "sharp-bert")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(10.0 if value.ndim == 2 and "encoder" in name else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def victims(sharp_bert: Path) -> dict[str, Victim]:
    return {name: Victim(str(sharp_bert), ARMS[name], TASK) for name in ("full", "lora r=8", "bitfit")}


def noise_like(seen: Seen) -> Seen:
    """What would come from nobody: gradients of the same shapes and sizes, of low rank as real ones are."""
    rng = torch.Generator().manual_seed(0)

    def drawn(real: torch.Tensor) -> torch.Tensor:
        if real.ndim != 2:
            return torch.randn(real.shape, generator=rng) * real.std()
        rank = int(torch.linalg.matrix_rank(real).clamp(min=1))
        left = torch.randn((len(real), rank), generator=rng)
        return left @ torch.randn((rank, real.shape[1]), generator=rng) * real.std() / rank**0.5

    return replace(seen, tensors={name: drawn(real) for name, real in seen.tensors.items()})


@pytest.mark.parametrize("view", View)
def test_rows_of_the_table_of_words_are_exactly_the_words_of_the_batch(victims: dict[str, Victim], view: View) -> None:
    victim = victims["full"]
    found = read_rows(victim.see(view, ROWS, victim.first_handout(0), 0))
    assert found is not None
    truth = {token for text in victim.texts(ROWS) for token in text}
    assert set(found.tokens) == truth
    assert set(found.tokens.values()) == {1}


@pytest.mark.parametrize("arm", ["lora r=8", "bitfit"])
def test_without_a_table_of_words_there_are_no_rows_to_read(victims: dict[str, Victim], arm: str) -> None:
    victim = victims[arm]
    assert read_rows(victim.see(View.GRADIENT, ROWS, victim.first_handout(0), 0)) is None


def test_the_span_of_full_gradients_holds_every_token_at_its_place_and_few_others(victims: dict[str, Victim]) -> None:
    victim = victims["full"]
    seen = victim.see(View.GRADIENT, ROWS[:1], victim.first_handout(0), 0)
    found, texts = search_span(seen), victim.texts(ROWS[:1])
    assert found is not None
    scores = score(found, texts, victim.special_tokens())
    assert scores.placed == 1.0
    assert len(found.tokens) <= len(set(texts[0])) + 1


def test_the_signs_that_adamw_sends_hide_the_span(victims: dict[str, Victim]) -> None:
    victim = victims["full"]
    found = search_span(victim.see(View.UPDATE, ROWS[:1], victim.first_handout(0), 0))
    assert found == Recovered(tokens=Counter(), placed=frozenset())


def test_lora_shows_nothing_at_first_and_short_texts_later(victims: dict[str, Victim]) -> None:
    victim = victims["lora r=8"]
    first = search_span(victim.see(View.GRADIENT, ROWS[:1], victim.first_handout(0), 0))
    assert first == Recovered(tokens=Counter(), placed=frozenset())
    later = search_span(victim.see(View.GRADIENT, ROWS[:1], victim.later_handout(PUBLIC, 0), 0))
    assert later is not None
    scores = score(later, victim.texts(ROWS[:1]), victim.special_tokens())
    assert scores.placed == 1.0


def test_biases_have_no_span(victims: dict[str, Victim]) -> None:
    victim = victims["bitfit"]
    assert search_span(victim.see(View.GRADIENT, ROWS, victim.first_handout(0), 0)) is None


def test_gradients_of_nobody_tell_nothing(victims: dict[str, Victim]) -> None:
    """What is found comes from the gradients: nothing else that the attacks are given holds the texts."""
    victim = victims["full"]
    seen = noise_like(victim.see(View.GRADIENT, ROWS[:1], victim.first_handout(0), 0))
    spanned = search_span(seen)
    assert spanned is not None
    assert spanned.tokens.total() <= 2
    chance = [score(match_gradients(seen, steps=10, seed=s), victim.texts(ROWS[:1]), {2, 3}).f1 for s in range(4)]
    assert sum(chance) / len(chance) < 0.3  # seven of 60 words


def test_gradient_matching_finds_more_than_chance(victims: dict[str, Victim]) -> None:
    victim = victims["full"]
    seen = victim.see(View.GRADIENT, ROWS[:1], victim.first_handout(0), 0)
    texts, special = victim.texts(ROWS[:1]), victim.special_tokens()
    chance, found = (score(match_gradients(seen, steps=n, seed=0), texts, special) for n in (0, 60))
    assert found.f1 > chance.f1 + 0.4


def test_other_architectures_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(BenchmarkError, match="expected a BERT, got a LlamaModel"):
        Victim(str(tiny_llama), ARMS["head"], TASK)


def test_the_row_span_has_the_rank_of_the_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn((3, 48), generator=rng)
    span = row_span(torch.randn((40, 3), generator=rng) @ rows)
    assert span.shape == (3, 48)
    torch.testing.assert_close(rows @ span.T @ span, rows)
    assert len(row_span(torch.zeros(5, 48))) == 0


def test_special_tokens_do_not_count() -> None:
    assert words_of([2, 5, 5, 3], {2, 3}) == Counter({5: 2})
    assert score(Recovered(tokens=Counter([2, 3])), [[2, 5, 3]], {2, 3}).f1 == 0.0


def test_places_count_by_position_and_token() -> None:
    found = Recovered(tokens=Counter([5, 6]), placed=frozenset({(1, 5), (2, 5)}))
    assert score(found, [[2, 5, 6, 3]], {2, 3}).placed == 0.5


def test_a_task_on_pairs_is_refused() -> None:
    with pytest.raises(UsageError, match="--task: expected one of agnews, cola, sst2, got 'mrpc'"):
        plan(task="mrpc")


@pytest.mark.slow
def test_the_command_writes_every_attack_on_every_method(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) for row in PUBLIC]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "attack.json"
    flags = [f"--data={folder.parent}", f"--model={tiny_bert}", f"--out={out}", f"--plot={tmp_path / 'a.png'}"]
    assert run_command(["attack", "--preset=tiny", *flags]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["attack"] for row in rows} == {"embedding rows", "span", "DLG", "frequent words"}
    assert {row["arm"] for row in rows} == {"full", "lora r=8"}
    assert (tmp_path / "a.png").stat().st_size > 0
