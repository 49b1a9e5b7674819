"""The memory of a merge, as the daemon has it done: it does not grow with the number of devices."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from aggregator.merge.strategies import StrategyName, make_strategy
from aggregator.rounds.merge_rule import MergeRule
from aggregator.rounds.work import FirstVersionJob, MergeJob, StoredUpdate, merge_cohort, store_first_version
from aggregator.store.objects import ObjectStore
from aggregator.workers.processes import process_pool
from benchmarks.anonymous_memory import peak_growth_bytes
from protocol.assignment import Assignment, AssignmentKind, Handout
from protocol.codecs import Codec
from protocol.manifest import BaseModel, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

RANK = 16
MANIFEST = Manifest(
    base=BaseModel(name="toy", fingerprint="f" * 64, architecture="Toy", tokenizer_digest="0" * 64),
    task=Task(kind=TaskKind.EMBEDDING),
    rank_max=RANK,
    low_rank=tuple(LowRankModule(name=f"layer.{i}.q_proj", out_features=192, in_features=160) for i in range(4)),
)
LAYOUT = Layout.of(MANIFEST)
PAYLOAD_BYTES = LAYOUT.object_bytes(RANK, Codec.FP32)
SLACK_BYTES = 6 << 20
"""Buffers of a sum, full: what a merge of few devices does not fill."""


def stored_cohort(root: Path, clients: int, strategy: StrategyName) -> MergeJob:
    """Version 0 and this many updates, in a store."""
    store, manifest = ObjectStore(root), MANIFEST.to_json()
    rule = MergeRule(strategy=make_strategy(strategy))
    first = FirstVersionJob(
        objects=root, manifest=manifest, state=None, codec=Codec.BF16, slots=RANK, seed=0, rule=rule
    )
    given = Assignment(
        kind=AssignmentKind.TRAIN,
        run="run",
        round=1,
        version=0,
        token="0" * 32,
        rank=RANK,
        handout=Handout(digest="0" * 64, slots=RANK, codec=Codec.BF16, object_bytes=1),
        update_codec=Codec.FP32,
        seed=0,
        deadline_s=None,
    ).to_json()
    updates = []
    for client in range(clients):
        rng = np.random.default_rng(client)
        slots = 0.01 * rng.standard_normal((RANK, LAYOUT.width), np.float32)
        data = LAYOUT.encode(AdapterTensors({}, slots), Codec.FP32)
        path = store.path(sha256(data).hexdigest())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)  # without the fsyncs of a put: they would be most of the test
        updates.append(StoredUpdate(client=f"{client:040}", num_examples=1, sha256=path.name, assignment=given))
    return MergeJob(
        objects=root,
        manifest=manifest,
        base=store_first_version(first),
        updates=tuple(updates),
        round=1,
        seed=0,
        rule=rule,
    )


def peak_bytes(warm_up: MergeJob, job: MergeJob) -> int:
    """The most anonymous memory that a merge adds to a process that has merged before."""
    merge_cohort(warm_up)
    return peak_growth_bytes(lambda: merge_cohort(job))


def peaks(folder: Path, strategy: StrategyName, cohorts: list[int]) -> list[int]:
    found = []
    for clients in cohorts:
        jobs = [stored_cohort(folder / f"{clients}-{part}", n, strategy) for part, n in enumerate((2, clients))]
        with process_pool(1) as process:
            found.append(process.submit(peak_bytes, *jobs).result())
    return found


def test_a_merge_takes_no_more_memory_for_more_devices(tmp_path: Path) -> None:
    few, many = peaks(tmp_path, StrategyName.DELTA, [10, 200])
    assert many - few < SLACK_BYTES < 200 * PAYLOAD_BYTES / 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["delta", "hlora", "raflora", "zero-padding", "hetlora", "fedit"])
def test_a_thousand_devices_take_no_more_memory_than_ten(tmp_path: Path, strategy: str) -> None:
    few, many = peaks(tmp_path, StrategyName(strategy), [10, 1000])
    assert many - few < SLACK_BYTES < 1000 * PAYLOAD_BYTES / 10
