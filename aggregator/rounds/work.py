"""What the workers do for a round: check an upload, merge a cohort. Files in, files out, nothing else.

Each job is a small picklable value, so that it runs in a thread, a process or inline alike. Merging is a pure function
of the job: run again after a crash it writes the same objects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.errors import StoreCorrupt
from aggregator.merge import ClientUpdate, EncodedAdapter, GlobalState, MergeError, MergeReport, make_handout
from aggregator.merge.opened import OpenMerge, merge_here
from aggregator.merge.parallel import merge_round_on, merge_seconds
from aggregator.merge.strategies import RoundInput, Strategy
from aggregator.merge.weighting import weigh
from aggregator.rounds.merge_rule import MergeRule
from aggregator.store.objects import DigestMismatch, ObjectStore, full_disk_told
from aggregator.store.states import put_state, view_state
from aggregator.workers.cluster import RayCluster
from aggregator.workers.processes import process_pool
from protocol.assignment import Assignment
from protocol.codecs import Codec
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout

__all__ = [
    "FirstVersionJob",
    "MergeJob",
    "OpenRound",
    "StoredUpdate",
    "StoredVersion",
    "VerifyJob",
    "merge_cohort",
    "store_first_version",
    "verify_upload",
    "version_seed",
]


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """Where one version of the global state lies."""

    version: int
    """Its number."""
    state: str
    """Digest of the exact state."""
    body: str
    """Digest of the hand-out's body."""
    codec: Codec
    """The body's number format."""
    slots: int
    """Slots in the body."""
    final: str | None = None
    """Digest of the body of the adapters that devices keep; None: the run goes on, and ``body`` serves."""


@dataclass(frozen=True, kw_only=True)
class StoredUpdate:
    """A durable update."""

    client: str
    """The client's key."""
    num_examples: int
    """Its weight."""
    sha256: str
    """Digest of the object."""
    assignment: bytes
    """The assignment it answers, as JSON."""


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """Checks one complete upload and makes it durable."""

    objects: Path
    """Root of the object store."""
    manifest: bytes
    """The run's manifest, as JSON."""
    upload: str
    """Id of the upload, whose part file is complete."""
    sha256: str
    """Digest that the client offered."""
    assignment: bytes
    """The assignment it answers, as JSON."""
    norm_max: float
    """Bound on the Frobenius norm of all values."""


@dataclass(frozen=True, kw_only=True)
class FirstVersionJob:
    """Stores version 0."""

    objects: Path
    """Root of the object store."""
    manifest: bytes
    """The run's manifest, as JSON."""
    state: bytes | None
    """A state to start from (:meth:`GlobalState.to_bytes`); None: zero."""
    codec: Codec
    """Number format of hand-outs."""
    slots: int
    """Slots to store."""
    seed: int
    """The run's seed."""
    rule: MergeRule = field(default_factory=MergeRule)
    """Whose state it is."""


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """Merges one closed cohort into the next version."""

    objects: Path
    """Root of the object store."""
    manifest: bytes
    """The run's manifest, as JSON."""
    base: StoredVersion
    """The live version, which the cohort is merged into."""
    updates: tuple[StoredUpdate, ...]
    """The cohort."""
    round: int
    """Its round."""
    seed: int
    """The run's seed."""
    rule: MergeRule = field(default_factory=MergeRule)
    """What the cohort is merged by."""
    earlier: tuple[StoredVersion, ...] = ()
    """Earlier versions that updates are against."""
    population: tuple[tuple[str, int], ...] = ()
    """Clients that were present when the round opened and their examples, where the weights need them."""
    last: bool = False
    """Whether the run ends with the round: then the adapters that devices keep are stored, too."""
    workers: int | RayCluster = 1
    """Processes that may merge, or the cluster that does; the result has the same bits with any number."""


PARALLEL_FROM_S = 3.0
"""Estimated work of a merge from which on workers do it, and what they merged lies in files, not in memory: a process
takes about half a second to start."""


def version_seed(run_seed: int, version: int) -> int:
    """Seed of a version's fresh LoRA rows."""
    digest = hashlib.sha256(f"version\0{run_seed}\0{version}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def verify_upload(job: VerifyJob) -> None:
    """Checks digest, header, finiteness and norm, then seals the upload: fsync, rename, fsync of the folder.

    Raises:
        RemoteProtocolError: The upload is refused; ``code`` says why. Its part file is gone.
    """
    store = ObjectStore(job.objects)
    try:
        store.seal(job.upload, job.sha256, check=lambda data: _check(job, data))
    except DigestMismatch as error:
        raise RemoteProtocolError(
            f"the bytes received do not hash to the digest offered: {error}", NackCode.DIGEST
        ) from error


def store_first_version(job: FirstVersionJob) -> StoredVersion:
    """Writes version 0: zero, or what a warm start brought."""
    manifest = Manifest.from_json(job.manifest)
    offset = GlobalState.zeros(manifest) if job.state is None else GlobalState.from_bytes(job.state, manifest)
    state = job.rule.strategy.start(manifest, offset, version_seed(job.seed, 0))
    return _store(job, manifest, state, 0, job.codec, job.slots)


def merge_cohort(job: MergeJob) -> tuple[StoredVersion, tuple[str, ...]]:
    """Merges a cohort and writes the next version.

    A result that the run's number format cannot hand out is discarded, and the next version is as the last one: one
    device alone can bring that about, and it must cost the round, not the run.

    Returns:
        The next version, and the report as JSON lines.
    """
    manifest, base = Manifest.from_json(job.manifest), job.base
    with ObjectStore(job.objects).scratch(f"round-{job.round}") as scratch, full_disk_told():
        merged, report = _merged(OpenRound(job, scratch))
        try:
            following = _store(job, manifest, merged, base.version + 1, base.codec, base.slots)
        except (MergeError, LocalProtocolError) as error:
            told = {"round": job.round, "clients": len(job.updates), "kind": "discarded", "reason": str(error)}
            before = view_state(ObjectStore(job.objects), base.state)
            merged = job.rule.strategy.of_tensors(before, manifest)
            return _with_final(job, manifest, merged, replace(base, version=base.version + 1)), (json.dumps(told),)
        return _with_final(job, manifest, merged, following), tuple(report.lines(job.round))


@dataclass(frozen=True)
class OpenRound:
    """Opens the merge of a job, in whatever process it is called. Equal ones open the same."""

    job: MergeJob
    """It names all there is to merge by digest."""
    scratch: Path
    """Folder for what is large."""

    def __call__(self) -> OpenMerge[Any]:
        """Checks the cohort; values stay in their files until a module's turn comes.

        Raises:
            MergeError: The cohort is empty, or an update cannot be merged.
            StoreCorrupt: An object is missing.
        """
        strategy, state, given = self.read()
        return strategy.open(state, given)

    def read(self) -> tuple[Strategy[Any], Any, RoundInput]:
        """Rule, state and cohort, mapped from their files.

        Raises:
            MergeError: The state is not one of this run.
            StoreCorrupt: An object is missing.
        """
        job, store, manifest = self.job, ObjectStore(self.job.objects), Manifest.from_json(self.job.manifest)
        strategy, base = job.rule.strategy, job.base
        updates, handout = tuple(_updates(store, manifest, job)), _handout(store, manifest, base)
        if job.rule.clipping is None:
            weighted = weigh(job.rule.weighting, updates, dict(job.population))
        else:
            weighted = job.rule.clipping.weigh(updates, manifest, handout)
        given = RoundInput(
            manifest=manifest,
            handout=handout,
            updates=weighted.updates,
            step=job.rule.step * weighted.step,
            scratch=self.scratch,
            stale={base.version - each.version: _handout(store, manifest, each) for each in job.earlier},
        )
        return strategy, strategy.of_tensors(view_state(store, base.state), manifest), given


def _merged(open_round: OpenRound) -> tuple[Any, MergeReport]:
    opened, job = open_round(), open_round.job
    if merge_seconds(opened, job.base.slots) < PARALLEL_FROM_S:
        return merge_here(opened)
    if isinstance(job.workers, RayCluster):
        return _merged_by(job.workers, open_round)
    processes = min(job.workers, len(opened.manifest.low_rank))
    with process_pool(processes) if processes > 1 else ThreadPoolExecutor(1) as workers:
        return merge_round_on(workers, open_round, open_round.scratch)


def _merged_by(cluster: RayCluster, open_round: OpenRound) -> tuple[Any, MergeReport]:
    from aggregator.workers.ray_executor import RayExecutor  # an extra
    from aggregator.workers.ray_merge import merge_round_sent

    with RayExecutor(cluster.address) as workers:
        if not cluster.shared_files:
            return merge_round_sent(workers, *open_round.read(), open_round.scratch)
        try:
            return merge_round_on(workers, open_round, open_round.scratch)
        except (OSError, StoreCorrupt) as error:  # this machine has just opened it all
            raise BrokenExecutor(
                f"a node of the cluster cannot use the run's home, which it should have under the same path: {error}"
            ) from error


def _store(
    job: FirstVersionJob | MergeJob, manifest: Manifest, state: Any, version: int, codec: Codec, slots: int
) -> StoredVersion:
    store, strategy = ObjectStore(job.objects), job.rule.strategy
    handout = strategy.handout(state, manifest, slots, version_seed(job.seed, version))
    body = store.put(Layout.of(manifest).encode_body(handout, codec))
    stored = put_state(store, strategy.tensors(state), job.base.state if isinstance(job, MergeJob) else None)
    return StoredVersion(version=version, state=stored, body=body, codec=codec, slots=slots)


def _handout(store: ObjectStore, manifest: Manifest, version: StoredVersion) -> EncodedAdapter:
    return EncodedAdapter(
        layout=Layout.of(manifest),
        read=partial(store.view, version.body),
        rank=version.slots,
        codec=version.codec,
        framed=False,
    )


def _with_final(job: MergeJob, manifest: Manifest, state: Any, version: StoredVersion) -> StoredVersion:
    """Stores the best adapter of every rank, if the run ends here: what is handed out to train need not be that.

    What the number format cannot hold is left: the devices then keep what they would be handed next.
    """
    if not job.last:
        return version
    offset, seed = job.rule.strategy.offset(state, manifest), version_seed(job.seed, version.version)
    try:
        best = make_handout(offset, manifest, version.slots, seed)
        body = Layout.of(manifest).encode_body(best, version.codec)
    except (MergeError, LocalProtocolError):
        return version
    return replace(version, final=ObjectStore(job.objects).put(body))


def _updates(store: ObjectStore, manifest: Manifest, job: MergeJob) -> Iterator[ClientUpdate]:
    layouts: dict[Layout, Layout] = {}
    for update in job.updates:
        assignment = Assignment.from_json(update.assignment)
        layout = assignment.update_layout(manifest)
        yield ClientUpdate(
            client=update.client,
            num_examples=update.num_examples,
            rank=assignment.rank,
            tensors=EncodedAdapter(
                layout=layouts.setdefault(layout, layout),  # one for all: a thousand would be much memory
                read=partial(store.view, update.sha256),
                rank=assignment.rank,
                codec=assignment.update_codec,
            ),
            active=assignment.active,
            frozen=assignment.frozen_factors,
            residual=assignment.handout.slots - assignment.rank,
            staleness=job.base.version - assignment.version,
            step_length=assignment.local.step_length(update.num_examples),
        )


def _check(job: VerifyJob, data: memoryview) -> None:
    assignment = Assignment.from_json(job.assignment)
    layout = assignment.update_layout(Manifest.from_json(job.manifest))
    norm = _norm(layout.decode(data, assignment.rank, assignment.update_codec))
    if norm > job.norm_max:
        raise RemoteProtocolError(
            f"the update's norm is {norm:.4g}, this run takes at most {job.norm_max:.4g}; did training diverge?",
            NackCode.NORM,
        )


def _norm(tensors: AdapterTensors) -> float:
    parts = [tensors.slots, *tensors.dense.values()]
    return math.sqrt(sum(float(np.vdot(part, part)) if part.size else 0.0 for part in map(_float64, parts)))


def _float64(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)
