"""A run of any method as a folder: written whole or not at all, and a start for another run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator.adapters.exported_folder import read_exported_folder, write_exported_folder
from aggregator.adapters.exported_state import exported_from_state, state_from_exported
from aggregator.adapters.warm_start import start_from_folder
from aggregator.errors import AdapterError
from aggregator.merge import Factors, GlobalState, Increment, MergeError
from protocol.exported import ADAPTER_FILE, FILES, MANIFEST_FILE, ExportedAdapter
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind

FRESH = Initializer(distribution=Distribution.NORMAL, scale=0.5, seed=1)
RUN = Manifest(
    base=BaseModel(name="m", fingerprint="1" * 64, architecture="M", tokenizer_digest="0" * 64),
    task=Task(kind=TaskKind.CAUSAL_LM),
    rank_max=4,
    method="some",
    method_options={"width": 4},
    low_rank=(LowRankModule(name="q", out_features=6, in_features=5),),
    dense=(DenseTensor(name="bias", shape=(4,)), DenseTensor(name="head", shape=(2, 3), initializer=FRESH)),
)


def random_state(manifest: Manifest, width: int = 3) -> GlobalState:
    rng = np.random.default_rng(1)
    low_rank = {
        m.name: Factors(rng.standard_normal((m.out_features, width)), rng.standard_normal((width, m.in_features)))
        for m in manifest.low_rank
    }
    dense = {tensor.name: rng.standard_normal(tensor.shape) for tensor in manifest.dense}
    return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense=dense))


def exported(rank: int = 4) -> ExportedAdapter:
    return exported_from_state(random_state(RUN), RUN, rank)


def test_a_run_starts_where_the_exported_one_was(tmp_path: Path) -> None:
    state = random_state(RUN)
    write_exported_folder(tmp_path / "out", exported_from_state(state, RUN, 4))
    again = start_from_folder(tmp_path / "out", RUN)
    np.testing.assert_allclose(again.low_rank["q"].svd.dense(), state.low_rank["q"].svd.dense(), atol=1e-5)
    assert again.low_rank["q"].svd.rank == 3, "slots that the state does not reach must stay empty"
    for name, value in state.dense.items():
        np.testing.assert_allclose(again.dense[name], value, atol=1e-6)


def test_a_head_that_starts_elsewhere_starts_at_the_same_value() -> None:
    head = replace(RUN.dense[1], initializer=replace(FRESH, seed=2))
    other = replace(RUN, method="another", method_options={}, dense=(RUN.dense[0], head))
    start, tensors = state_from_exported(exported(), other), exported().tensors
    value = replace(FRESH, seed=2).values((2, 3)) + start.dense["head"]
    np.testing.assert_allclose(value, FRESH.values((2, 3)) + tensors.dense["head"], atol=1e-6)
    np.testing.assert_allclose(start.dense["bias"], tensors.dense["bias"], atol=1e-6)


def test_what_the_exported_run_did_not_have_starts_at_zero() -> None:
    more = replace(RUN, low_rank=(*RUN.low_rank, LowRankModule(name="k", out_features=2, in_features=2)))
    assert state_from_exported(exported(), more).low_rank["k"].norm() == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base": replace(RUN.base, fingerprint="2" * 64)}, "fingerprint 111111111111…, this one m of 222222222222…"),
        ({"method_options": {"width": 8}}, r"method 'some' has the settings \{'width': 4\} there and \{'width': 8\}"),
        ({"low_rank": ()}, "'q' of 6 x 5 is no low-rank module"),
        ({"low_rank": (replace(RUN.low_rank[0], in_features=4),)}, "'q' of 6 x 5 is no low-rank module"),
        ({"dense": RUN.dense[:1]}, r"'head' of shape \(2, 3\), fresh, is no dense tensor"),
        (
            {"dense": (replace(RUN.dense[0], shape=(5,)), RUN.dense[1])},
            r"'bias' of shape \(4,\), the base's own, is no",
        ),
        (
            {"dense": (replace(RUN.dense[0], initializer=FRESH), RUN.dense[1])},
            r"'bias' of shape \(4,\), the base's own",
        ),
    ],
)
def test_what_does_not_fit_does_not_start_a_run(change: dict, reason: str) -> None:
    with pytest.raises(MergeError, match=reason):
        state_from_exported(exported(), replace(RUN, **change))


@pytest.mark.parametrize("rank", [0, 4097])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(MergeError, match=f"a rank in 1..4096, got {rank}"):
        exported(rank)


def test_a_folder_with_something_in_it_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write_exported_folder(out, exported(1))
    with pytest.raises(AdapterError, match="not an empty folder"):
        write_exported_folder(out, exported(2))
    assert read_exported_folder(out).tensors.rank == 1
    write_exported_folder(out, exported(2), overwrite=True)
    assert read_exported_folder(out).tensors.rank == 2
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def failing(path: Path, data: bytes) -> int:
        if path.name == ADAPTER_FILE:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(AdapterError, match=r"out cannot be written: .*No space left"):
        write_exported_folder(tmp_path / "out", exported())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (ADAPTER_FILE, None, r"is not an exported run: .*adapter\.safetensors"),
        (ADAPTER_FILE, b"junk", "does not fit manifest.json.*export it again"),
        (MANIFEST_FILE, b"junk", "not valid JSON.*export it again"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, name: str, data: bytes | None, reason: str) -> None:
    write_exported_folder(tmp_path / "out", exported())
    if data is None:
        (tmp_path / "out" / name).unlink()
    else:
        (tmp_path / "out" / name).write_bytes(data)
    with pytest.raises(AdapterError, match=reason):
        start_from_folder(tmp_path / "out", RUN)


def test_a_folder_that_is_nothing_is_taken_for_pefts(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no readable adapter_config\.json"):
        start_from_folder(tmp_path, RUN)
