"""Large cohorts and modules: read from files, merged by any number of workers, and still the same bits."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from aggregator.merge import (
    ClientUpdate,
    EncodedAdapter,
    Factors,
    GlobalState,
    LowRank,
    MergeError,
    Round,
    make_handout,
    measure_bias,
    merge_round,
)
from aggregator.merge.opened import merge_here
from aggregator.merge.parallel import merge_round_on
from protocol.codecs import Codec
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

SHAPES = {"stacked": (420, 380), "wide": (90, 400), "small": (20, 30)}
SLOTS = 8


def manifest_of(shapes: dict[str, tuple[int, int]] = SHAPES) -> Manifest:
    return Manifest(
        base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="Tiny", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=SLOTS,
        low_rank=tuple(LowRankModule(name=name, out_features=m, in_features=n) for name, (m, n) in shapes.items()),
        dense=(DenseTensor(name="head", shape=(2, 3)),),
    )


MANIFEST = manifest_of()
LAYOUT = Layout.of(MANIFEST)


@dataclass(frozen=True)
class Files:
    """A round that lies in files."""

    folder: Path
    clients: int
    rounds: int = 2
    codec: Codec = Codec.BF16

    def write(self) -> None:
        """Two rounds, so that the second one starts from a version that has leading triplets of its own."""
        state = GlobalState.zeros(MANIFEST)
        for number in range(self.rounds):
            body = LAYOUT.encode_body(make_handout(state, MANIFEST, SLOTS, seed=number), self.codec)
            (self.folder / "body").write_bytes(body)
            (self.folder / "state").write_bytes(state.to_bytes())
            for client in range(self.clients):
                tensors = trained(client, 1 + client % SLOTS, seed=number)
                (self.folder / f"{client}").write_bytes(LAYOUT.encode(tensors, self.codec))
            if number + 1 < self.rounds:
                state, _ = merge_round(state, MANIFEST, self.handout(), self.updates())

    def handout(self) -> EncodedAdapter:
        read = partial(read_view, self.folder / "body")
        return EncodedAdapter(layout=LAYOUT, read=read, rank=SLOTS, codec=self.codec, framed=False)

    def updates(self) -> list[ClientUpdate]:
        return [
            ClientUpdate(
                client=f"{client:04}",
                num_examples=1 + client,
                rank=1 + client % SLOTS,
                tensors=EncodedAdapter(
                    layout=LAYOUT,
                    read=partial(read_view, self.folder / str(client)),
                    rank=1 + client % SLOTS,
                    codec=self.codec,
                ),
            )
            for client in range(self.clients)
        ]

    def open(self) -> Round:
        state = GlobalState.from_bytes(read_view(self.folder / "state"), MANIFEST)
        return Round.of(
            state, MANIFEST, self.handout(), self.updates(), report_ranks=[1, SLOTS, SLOTS + 1], scratch=self.folder
        )


def read_view(path: Path) -> memoryview:
    return memoryview(path.read_bytes())


def trained(client: int, rank: int, seed: int) -> AdapterTensors:
    rng = np.random.default_rng([client, seed])
    head = rng.standard_normal((2, 3)).astype(np.float32)
    return AdapterTensors({"head": head}, 0.1 * rng.standard_normal((rank, LAYOUT.width), np.float32))


def decoded(update: ClientUpdate) -> ClientUpdate:
    return replace(update, tensors=AdapterTensors(update.tensors.dense, update.tensors.slots))


@pytest.mark.parametrize("codec", Codec)
def test_a_cohort_in_files_merges_to_the_bits_of_the_one_in_memory(tmp_path: Path, codec: Codec) -> None:
    files = Files(tmp_path, 5, rounds=1, codec=codec)
    files.write()
    state = GlobalState.from_bytes(read_view(tmp_path / "state"), MANIFEST)
    handed = AdapterTensors(files.handout().dense, files.handout().slots)
    in_memory, report = merge_round(state, MANIFEST, handed, [decoded(update) for update in files.updates()])
    in_files, same_report = merge_round(state, MANIFEST, files.handout(), files.updates(), scratch=tmp_path)
    assert in_files.to_bytes() == in_memory.to_bytes()
    assert same_report == report


def executors() -> list[Executor]:
    return [ThreadPoolExecutor(1), ProcessPoolExecutor(2, mp_context=get_context("spawn"))]


def test_however_many_workers_merge_the_bits_are_the_same(tmp_path: Path) -> None:
    files = Files(tmp_path, 60)
    files.write()
    alone, report = merge_here(files.open())
    kept = set(tmp_path.iterdir())
    for executor in executors():
        with executor:
            together, same_report = merge_round_on(executor, files.open, tmp_path)
        assert together.to_bytes() == alone.to_bytes()
        assert same_report == report
        assert set(tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    ("clients", "rounds", "form"), [(3, 2, LowRank), (30, 1, Factors), (30, 2, np.ndarray), (60, 2, np.ndarray)]
)
def test_every_form_of_the_state_is_the_weighted_sum_of_deltas(
    tmp_path: Path, clients: int, rounds: int, form: type
) -> None:
    files = Files(tmp_path, clients, rounds)
    files.write()
    given = files.open()
    merged, report = given.finish({module.name: given.merge_module(module) for module in MANIFEST.low_rank})
    assert isinstance(merged.low_rank["stacked"].value, form)
    total = sum(update.num_examples for update in files.updates())
    for module, told in zip(MANIFEST.low_rank, report.modules, strict=True):
        B, A = (part.astype(np.float64) for part in files.handout().factors(module.name))
        before = given.state.low_rank[module.name].svd.dense()
        added = np.zeros(before.shape)
        for update in files.updates():
            dB, dA = update.tensors.factors(module.name)  # type: ignore[union-attr]
            rank = update.rank
            added += update.num_examples / total * ((B[:, :rank] + dB) @ (A[:rank] + dA) - B[:, :rank] @ A[:rank])
        exact, state = before + added, merged.low_rank[module.name]
        assert np.linalg.norm(state.factors().dense() - exact) <= 1e-12 * np.linalg.norm(exact)
        S = np.linalg.svd(exact, compute_uv=False)
        handed = state.handed_out(SLOTS)
        error = np.linalg.norm(exact - handed.dense())
        assert error <= np.linalg.norm(S[SLOTS:]) + 1e-6 * np.linalg.norm(S)
        assert told.handout_error[8] == pytest.approx(error / np.linalg.norm(S), rel=1e-6, abs=1e-9)
        assert told.norm == pytest.approx(np.linalg.norm(S))
        assert told.update_norm == pytest.approx(np.linalg.norm(added))
        share = S**2 / np.sum(S**2)
        assert told.effective_rank >= np.exp(-np.sum(share * np.log(share + 1e-300))) * (1 - 1e-9)
        assert list(told.handout_error)[-1] == SLOTS, "nobody is handed more"
        top = max(told.retention)
        held = sum(update.num_examples for update in files.updates() if update.rank == top)
        assert told.retention[top] == pytest.approx(held / total)


def test_a_merge_by_threads_leaves_nothing_of_its_round_behind(tmp_path: Path) -> None:
    """What a round has mapped would keep its place on the disk until the next merge."""
    files, opened = Files(tmp_path, 3), []
    files.write()

    def open_round() -> Round:
        given = files.open()
        opened.append(weakref.ref(given))
        return given

    with ThreadPoolExecutor(1) as executor:
        merge_round_on(executor, open_round, tmp_path)
    gc.collect()
    assert [each() for each in opened] == [None, None], "one to hand modules out, one to merge them"


def test_a_cap_certifies_what_it_drops(tmp_path: Path) -> None:
    files = Files(tmp_path, 12)
    files.write()
    given = replace(files.open(), rank_cap=10)
    exact = files.open()
    for module in MANIFEST.low_rank:
        capped, told = given.merge_module(module)
        whole, _ = exact.merge_module(module)
        assert capped.svd.rank <= 10
        error = np.linalg.norm(capped.svd.dense() - whole.svd.dense())
        assert error <= capped.discarded * (1 + 1e-9)
        assert told.merge_error == pytest.approx(capped.discarded / capped.svd.norm)


def test_the_mean_handout_is_told_as_gain_and_direction(tmp_path: Path) -> None:
    files = Files(tmp_path, 12)
    files.write()
    given = files.open()
    total = sum(update.num_examples for update in files.updates())
    for module in MANIFEST.low_rank:
        state, told = given.merge_module(module)
        parts = [u.num_examples / total * state.svd.truncate(u.rank).dense() for u in files.updates()]
        mean = sum(parts, np.zeros(state.shape))
        measured = measure_bias(Factors(mean, np.eye(mean.shape[1])), state.factors())
        assert told.handout_bias is not None
        assert told.handout_bias.error == pytest.approx(measured.error, rel=1e-6)
        assert told.handout_bias.gain == pytest.approx(measured.gain, rel=1e-6)
        assert told.handout_bias.direction == pytest.approx(measured.direction, rel=1e-6)


def test_an_encoded_update_that_is_damaged_is_refused_by_its_name(tmp_path: Path) -> None:
    files = Files(tmp_path, 3, rounds=1, codec=Codec.FP32)
    files.write()
    data = bytearray((tmp_path / "1").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "1").write_bytes(data)
    with pytest.raises(MergeError, match=r"update of '0001': 'small'.*NaN"):
        merge_round(GlobalState.zeros(MANIFEST), MANIFEST, files.handout(), files.updates())
    (tmp_path / "1").write_bytes(data[:-1])
    with pytest.raises(MergeError, match=r"update of '0001': the body has"):
        merge_round(GlobalState.zeros(MANIFEST), MANIFEST, files.handout(), files.updates())


@pytest.mark.parametrize("clients", [3, 30, 60])
def test_every_form_of_the_state_is_stored_with_its_leading_triplets(tmp_path: Path, clients: int) -> None:
    files = Files(tmp_path, clients, rounds=1)
    files.write()
    given = files.open()
    merged, _ = given.finish({module.name: given.merge_module(module) for module in MANIFEST.low_rank})
    data = merged.to_bytes()
    again = GlobalState.from_bytes(memoryview(data), MANIFEST)
    assert again.to_bytes() == data
    held = merged.low_rank["stacked"]
    assert (held.top is None) == isinstance(held.value, LowRank)
