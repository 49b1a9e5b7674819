"""What listens is tested on real sockets; the core behind it on fake devices, a turned clock and stepped workers."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

from aggregator.gate.router import make_context
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Quantization, Task, TaskKind
from tests.aggregator.dealer import Device
from tests.aggregator.world import World


@dataclass(frozen=True)
class ServerKey:
    public: bytes
    secret: bytes


@pytest.fixture
def server_key() -> ServerKey:
    return ServerKey(*zmq.curve_keypair())


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    made = make_context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def device(server_key: ServerKey) -> Iterator[Callable[..., Device]]:
    """Makes devices of one context, and closes them."""
    made: list[Device] = []
    with zmq.Context() as own:

        def make(endpoint: str, **options) -> Device:
            made.append(Device(own, endpoint, server_key.public, **options))
            return made[-1]

        yield make
        for each in made:
            each.close()


@pytest.fixture
def manifest() -> Manifest:
    """Two low-rank modules that are not square, and a dense vector."""
    return Manifest(
        base=BaseModel(
            name="toy",
            fingerprint="f" * 64,
            architecture="Toy",
            tokenizer_digest="0" * 64,
            quantizations=(Quantization.NF4, Quantization.BF16),
        ),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=4,
        low_rank=(
            LowRankModule(name="up", out_features=6, in_features=5),
            LowRankModule(name="down", out_features=5, in_features=7),
        ),
        dense=(DenseTensor(name="bias", shape=(3,)),),
    )


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes folders, in memory where possible: what lies in them is fsynced at every step."""
    memory = Path("/dev/shm")
    root = memory if memory.is_dir() else tmp_path
    with ExitStack() as stack:
        yield lambda: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root)))


@pytest.fixture
def new_world(folders: Callable[[], Path], manifest: Manifest) -> Iterator[Callable[..., World]]:
    """Makes worlds, each in a folder of its own."""
    with ExitStack() as stack:

        def make(**settings: Any) -> World:
            made = World(folders(), settings.pop("manifest", manifest), **settings)
            stack.callback(lambda: made.journal.close())
            return made

        yield make


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """A run of two rounds with cohorts of two."""
    return new_world()
