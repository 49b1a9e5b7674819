"""Whole runs with adapters of mixed widths: who trains what, what it costs on the wire, and what comes of the merge."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.config import RunConfig
from benchmarks.simulation import Committed, Device, MemoryNetwork, MemoryTransport, SimulatedRun
from edge_client.methods.adapter import Adapter
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainer import LocalResult, Trainer
from edge_client.trainers.numpy_trainer import NumpyTrainer
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import Assignment, LocalTraining
from protocol.codecs import Codec
from protocol.header import Frames, decode
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind
from protocol.messages import Chunk, Data
from protocol.payload import AdapterTensors, Layout

WIDTHS = (8, 16, 64)
EXAMPLES = (16, 8, 24)
HIDDEN, SITES = 48, 4
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN, max_length=16)

Offsets = dict[str, NDArray[np.float64]]
Play = Callable[..., Offsets]


class Recorded:
    """Any trainer, with a record of what it sent."""

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner
        self.info, self.install = inner.info, inner.install
        self.updates: list[AdapterTensors] = []

    def run(self, assignment: Assignment, handout: AdapterTensors, **calls: object) -> LocalResult:
        result = self._inner.run(assignment, handout, **calls)  # type: ignore[arg-type]
        self.updates.append(result.update)  # type: ignore[arg-type]
        return result


class Meter:
    """Counts the bytes of updates, hand-outs and manifest that go over a network's links, device by device."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._connect, network.connect = network.connect, self._metered  # type: ignore[method-assign]

    def _metered(self, key: str, device: Device, heard: Callable[[], None]) -> MemoryTransport:
        link = self._connect(key, device, heard)
        send, take = link.send, link.take

        def sending(frames: Frames) -> None:
            self.sent[key] += bulk_bytes(frames)
            send(frames)

        def taking(frames: Frames) -> None:
            self.received[key] += bulk_bytes(frames)
            take(frames)

        link.send, link.take = sending, taking  # type: ignore[method-assign]
        return link


def bulk_bytes(frames: Frames) -> int:
    message = decode(frames)
    return len(message.payload) if isinstance(message, Chunk | Data) else 0


@pytest.fixture(scope="module")
def manifest(tiny_bert: Path) -> Manifest:
    return write_manifest(tiny_bert, LABELS, method=Adapter(widths=WIDTHS), rank_max=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Folders in memory, where there are such: runs fsync at every step, and durability is tested elsewhere."""
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        root = memory if memory.is_dir() else tmp_path_factory.mktemp("runs")
        yield lambda: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root)))


@pytest.fixture(scope="module")
def play(manifest: Manifest, folder: Callable[[], Path]) -> Play:
    """Plays a run of these devices to its end; returns the dense offsets that it ends with."""

    def play(trainers: Sequence[Trainer], rounds: int = 1) -> Offsets:
        with SimulatedRun(folder(), config(len(trainers), rounds), manifest, trainers) as run:
            run.until_finished()
            return dict(run.committed(rounds).offset.dense)

    return play


@pytest.fixture(scope="module")
def mixed(play: Play) -> Offsets:
    """What one round of devices of all widths makes of version 0."""
    return play(devices())


def config(cohort: int, rounds: int) -> RunConfig:
    return RunConfig(
        run="widths",
        rounds=rounds,
        cohort_size=cohort,
        handout_codec=Codec.FP32,
        update_codec=Codec.FP32,
        keep_versions=None,
        local=LocalTraining(batch_size=8, max_steps=2, learning_rate=1e-2),
    )


def devices(rate: float = 0.5) -> list[Trainer]:
    return [
        NumpyTrainer(seed=1 + index, rank=width, num_examples=examples, rate=rate)
        for index, (width, examples) in enumerate(zip(WIDTHS, EXAMPLES, strict=True))
    ]


def blocks(offsets: Offsets, *indices: int) -> Offsets:
    """The tensors of these blocks, of all adapters."""
    return {name: value for name, value in offsets.items() for i in indices if f".blocks.{i}." in name}


def assert_close(found: Offsets, expected: Offsets) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_devices_of_three_widths_train_and_send_what_is_theirs(
    manifest: Manifest, tiny_bert: Path, folder: Callable[[], Path]
) -> None:
    base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.NF4, device="cpu"))
    rows = [{"sentence": f"{'good' if i % 2 else 'bad'} w{i % 40} film", "label": i % 2} for i in range(48)]
    trainers = [
        Recorded(TorchTrainer.sharing(base, rows[:examples], rank=width))
        for width, examples in zip(WIDTHS, EXAMPLES, strict=True)
    ]
    seen: list[Committed] = []
    with SimulatedRun(folder(), config(3, 2), manifest, trainers) as run:
        meter = Meter(run.network)
        run.until_finished(seen.append)

    handed_out = len(manifest.to_json()) + 3 * Layout.of(manifest).object_bytes(0, Codec.FP32)
    assert set(meter.received.values()) == {handed_out}
    for width, (_, sent) in zip(WIDTHS, sorted(meter.sent.items()), strict=True):
        header = Layout.of(manifest, manifest.active(width)).header(0, Codec.FP32)
        parameters = 2 * HIDDEN + 2 + SITES * (2 * width * HIDDEN + width + HIDDEN)
        assert sent == 2 * (4 * parameters + len(header))

    for number in (1, 2):
        step = {name: value - seen[number - 1].offset.dense[name] for name, value in seen[number].offset.dense.items()}
        updates = [trainer.updates[number - 1].dense for trainer in trainers]
        expected = {
            name: sum(n / sum(EXAMPLES) * u[name] for n, u in zip(EXAMPLES, updates, strict=True) if name in u)
            for name in step
        }
        assert_close(step, expected)  # type: ignore[arg-type]
    assert all(value.any() for value in seen[2].offset.dense.values())


def test_blocks_that_nobody_trains_stay_where_they_are(manifest: Manifest, folder: Callable[[], Path]) -> None:
    home, seen = folder(), []

    class StoppedError(Exception):
        """The wide device is gone for good."""

    def stop_at_one(committed: Committed) -> None:
        seen.append(committed.offset.dense)
        if committed.version == 1:
            raise StoppedError

    with pytest.raises(StoppedError), SimulatedRun(home, config(3, 4), manifest, devices()) as run:
        run.until_finished(stop_at_one)
    with SimulatedRun(home, config(2, 4), manifest, devices()[:2]) as run:
        run.until_finished(lambda committed: seen.append(committed.offset.dense), observed=1)
    assert len(seen) == 5
    assert all(value.any() for value in seen[1].values())
    for earlier, later in pairwise(seen[1:]):
        assert all(np.array_equal(value, earlier[name]) for name, value in blocks(later, 2).items())
        assert not any(np.array_equal(value, earlier[name]) for name, value in blocks(later, 0, 1).items())


def test_devices_that_do_nothing_leave_every_block_at_zero(play: Play) -> None:
    assert not any(value.any() for value in play(devices(rate=0.0)[::2], rounds=10).values())


def test_identical_wide_devices_make_of_every_block_what_one_of_them_would(play: Play) -> None:
    together = play([NumpyTrainer(seed=1, rank=64, num_examples=n) for n in EXAMPLES])
    assert_close(together, play([NumpyTrainer(seed=1, rank=64)]))


def test_the_order_of_the_devices_has_no_meaning(play: Play, mixed: Offsets) -> None:
    assert_close(play(devices()[::-1]), mixed)


def test_a_device_split_in_two_weighs_what_it_weighed(play: Play, mixed: Offsets) -> None:
    halves = [NumpyTrainer(seed=3, rank=64, num_examples=EXAMPLES[2] // 2) for _ in range(2)]
    assert_close(play([*devices()[:2], *halves]), mixed)


def test_a_block_moves_by_its_holders_share_of_the_whole_cohort(play: Play, mixed: Offsets) -> None:
    alone = play([NumpyTrainer(seed=3, rank=64)])
    share = EXAMPLES[2] / sum(EXAMPLES)
    assert_close(blocks(mixed, 2), {name: share * value for name, value in blocks(alone, 2).items()})
