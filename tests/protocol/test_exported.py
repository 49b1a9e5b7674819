"""An exported adapter is read back bit for bit, and nothing else is taken for one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.exported import ADAPTER_FILE, MANIFEST_FILE, ExportedAdapter
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

MODULE = LowRankModule(name="q", out_features=3, in_features=2)
BIAS, HEAD = DenseTensor(name="bias", shape=(4,)), DenseTensor(name="head", shape=(2, 3))


def manifest_of(low_rank: tuple[LowRankModule, ...] = (MODULE,), dense: tuple[DenseTensor, ...] = (BIAS,)) -> Manifest:
    return Manifest(
        base=BaseModel(name="m", fingerprint="0" * 64, architecture="M", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.CAUSAL_LM),
        rank_max=4,
        low_rank=low_rank,
        dense=dense,
    )


def exported(manifest: Manifest, rank: int, seed: int = 0) -> ExportedAdapter:
    rng, tensors = np.random.default_rng(seed), Layout.of(manifest).zeros(rank)
    dense = {name: rng.standard_normal(value.shape, np.float32) for name, value in tensors.dense.items()}
    return ExportedAdapter(manifest, AdapterTensors(dense, rng.standard_normal(tensors.slots.shape, np.float32)))


@given(
    rank=st.integers(1, 12),
    universe=st.sampled_from([((MODULE,), (BIAS, HEAD)), ((MODULE,), ()), ((), (HEAD, BIAS))]),
    seed=st.integers(0, 99),
)
def test_what_was_written_is_read_bit_for_bit(rank, universe, seed):
    before = exported(manifest_of(*universe), rank, seed)
    after = ExportedAdapter.of_files(before.to_files())
    assert after.manifest == before.manifest
    assert after.tensors.dense.keys() == before.tensors.dense.keys()
    for name, value in before.tensors.dense.items():
        np.testing.assert_array_equal(after.tensors.dense[name], value)
    if universe[0]:
        np.testing.assert_array_equal(after.tensors.slots, before.tensors.slots)
    assert after.tensors.rank == (rank if universe[0] else 0)


def damaged(adapter: bytes, header: dict) -> bytes:
    """The same body behind another header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + adapter[8 + int.from_bytes(adapter[:8], "little") :]


GOOD = exported(manifest_of(), 2).to_files()
SLOTS = {"dtype": "F32", "shape": [2, 5], "data_offsets": [16, 56]}
OTHER = exported(manifest_of(dense=(HEAD,)), 2).to_files()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({ADAPTER_FILE: GOOD[ADAPTER_FILE][:-4]}, "the body has 52 bytes"),
        ({ADAPTER_FILE: b""}, "not valid JSON"),
        ({ADAPTER_FILE: b"\xff" * 64}, "not valid JSON"),
        ({ADAPTER_FILE: damaged(GOOD[ADAPTER_FILE], {"bias": SLOTS})}, "field 'slots' is missing"),
        ({ADAPTER_FILE: damaged(GOOD[ADAPTER_FILE], {"slots": SLOTS | {"shape": []}})}, r"1\.\.4096 slots, got \[\]"),
        ({ADAPTER_FILE: damaged(GOOD[ADAPTER_FILE], {"slots": SLOTS | {"shape": [5000, 5]}})}, r"got \[5000, 5\]"),
        ({ADAPTER_FILE: damaged(GOOD[ADAPTER_FILE], {"slots": SLOTS})}, "'bias'"),
        ({ADAPTER_FILE: OTHER[ADAPTER_FILE]}, f"{ADAPTER_FILE} does not fit {MANIFEST_FILE}: .*'bias'"),
        ({ADAPTER_FILE: GOOD[ADAPTER_FILE][:-4] + np.float32(np.nan).tobytes()}, "NaN|finite"),
        ({MANIFEST_FILE: b"{}"}, "'format' is missing"),
        ({MANIFEST_FILE: replace(manifest_of(), format="tributary-manifest/9").to_json()}, "expected format"),
    ],
)
def test_what_is_no_such_pair_is_refused_with_the_reason(files, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        ExportedAdapter.of_files({**GOOD, **files})


@given(st.integers(0, len(GOOD[ADAPTER_FILE]) - 1), st.binary(min_size=1, max_size=9))
def test_whatever_is_in_the_file_only_a_protocol_error_comes_of_it(at, junk):
    adapter = GOOD[ADAPTER_FILE]
    try:
        found = ExportedAdapter.of_files({**GOOD, ADAPTER_FILE: adapter[:at] + junk + adapter[at + len(junk) :]})
    except RemoteProtocolError:
        return
    assert np.isfinite(found.tensors.slots).all()
    assert found.tensors.slots.shape == (2, 5)
