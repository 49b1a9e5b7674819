from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.config import Mode, RunConfig
from aggregator.store.objects import ObjectStore
from aggregator.store.rows import UploadState
from benchmarks.faults.recompute import recomputed_state
from benchmarks.simulation import Device, SimulatedRun
from benchmarks.simulation.manifests import toy_manifest
from edge_client.trainers.numpy_trainer import NumpyTrainer


def test_the_journalled_cohort_gives_the_version_and_nothing_else_does(tmp_path: Path) -> None:
    manifest = toy_manifest(rank_max=4)
    config = RunConfig(run="run", rounds=2, cohort_size=3, default_rank=2)
    trainers = [NumpyTrainer(seed=number, rank=number, num_examples=10 * number) for number in (1, 2, 3)]
    with SimulatedRun(tmp_path, config, manifest, trainers) as run:
        run.until_finished()
        *versions, version = run.journal.versions()
        cohort = run.journal.uploads(2)
        given = {row.token: row for row in run.journal.assignments(2)}
        objects = ObjectStore(tmp_path / "store")

        def state(*rows: object) -> str:
            return recomputed_state(versions, rows, given, objects, manifest, config)  # type: ignore[arg-type]

        first, *rest = cohort
        assert state(*cohort) == state(*reversed(cohort)) == version.state_digest
        assert state(*rest) != version.state_digest
        assert state(replace(first, num_examples=first.num_examples + 1), *rest) != version.state_digest
        with pytest.raises(Exception, match="two updates"):
            state(first, *cohort)


def test_a_buffer_of_mixed_versions_is_recomputed_bit_by_bit(tmp_path: Path) -> None:
    manifest = toy_manifest(rank_max=4)
    config = RunConfig(
        run="run", mode=Mode.ASYNC, rounds=6, cohort_size=2, default_rank=2, keep_versions=None, poll_s=1.0
    )
    trainers = [NumpyTrainer(seed=number, rank=number, num_examples=10 * number) for number in (1, 2, 3)]
    with SimulatedRun(
        tmp_path, config, manifest, trainers, devices=[Device(assignment_s=seconds) for seconds in (1.0, 1.5, 7.0)]
    ) as run:
        run.until_finished()
        versions, objects = run.journal.versions(), ObjectStore(tmp_path / "store")
        given = {row.token: row for number in range(1, 7) for row in run.journal.assignments(number)}
        stale = 0
        for number in range(1, 7):
            cohort = [row for row in run.journal.uploads(number) if row.state is UploadState.MERGED]
            stale += sum(given[row.token].version < number - 1 for row in cohort)
            state = recomputed_state(versions[:number], cohort, given, objects, manifest, config)
            assert state == versions[number].state_digest
        assert stale >= 2
