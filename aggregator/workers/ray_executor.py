"""Tasks on the machines of a Ray cluster, behind :class:`concurrent.futures.Executor`; needs the extra ``ray``.

Ray ships no such executor (its issue 29456 is open). A task is given one CPU and one BLAS thread, and runs again if its
process or its machine is lost. Arrays in arguments and results travel through Ray's object store, memory that the
processes of a machine share: what comes back is read-only, and its memory is free once nothing refers to it.

Every node needs this release of the package. As Ray comes, nothing but the network guards its ports: whoever reaches
them can run code on every node, and read what devices sent. It has token authentication and TLS to be turned on.

Reference: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018, arXiv:1712.05889.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RETRIES", "RayBytes", "RayExecutor"]

RETRIES = 3
"""How often a task runs again when its process or machine was lost; what a task itself raises is final."""

CONNECT_S = 5.0
"""How long the head of a cluster may take to answer."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class RayBytes:
    """Bytes in the object store; picklable."""

    ref: ray.ObjectRef[NDArray[np.uint8]]
    """Names them."""

    def __call__(self) -> memoryview:
        """The bytes, brought to this machine if need be."""
        return memoryview(ray.get(self.ref))


class RayExecutor(Executor):
    """Runs tasks on a cluster, as many at a time as it has CPUs. Ray connects a process to one cluster at a time.

    Args:
        address: ``HOST:PORT`` of the cluster's head. This machine has to be one of its nodes (``ray start``). None: a
            cluster is made of this machine, and ends with the executor.

    Raises:
        BrokenExecutor: No cluster answers there, or this machine is none of its nodes.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None:
            _check_answers(address)
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RayError) as error:
            hint = f"if this machine is none of its nodes yet, run `ray start --address {address}` on it"
            raise BrokenExecutor(f"the Ray cluster at {address} takes no work from here; {hint}: {error}") from error
        self._call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        self._open: set[Future[Any]] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hands a task over.

        Its future raises what the task raises, and ``BrokenExecutor`` if the cluster lost it too often. Cancelling
        the future ends the task, and the process that it runs in, at any time before it is done.

        Args:
            fn: What to call: by name, so every node has to have it.
            args: Its arguments. A :class:`ray.ObjectRef` is replaced by its object, which is brought to the task's
                machine before the task takes a CPU.
            kwargs: The same, by name.

        Raises:
            RuntimeError: The executor is shut down.
        """
        if not ray.is_initialized():
            raise RuntimeError("an executor that is shut down takes no task")
        future: Future[T] = Future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        ref = self._call.remote(fn, *args, **kwargs)
        future.add_done_callback(partial(_cancel, ref))
        ref.future().add_done_callback(partial(_settle, future))
        return future

    @property
    def cpus(self) -> int:
        """CPUs that the cluster has now: nodes may come and go."""
        return int(ray.cluster_resources().get("CPU", 0))

    def put(self, data: NDArray[np.uint8]) -> RayBytes:
        """Leaves bytes in the object store, for as long as something refers to them."""
        return RayBytes(ray.put(data))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster. Ray ends the tasks of a process that left, so ``wait=False`` cancels them too."""
        left = set(self._open)
        for future in left if cancel_futures or not wait else ():
            future.cancel()
        futures.wait(left)
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Tells a cluster that is down at once; Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise BrokenExecutor(f"no Ray cluster answers at {address!r} (expected HOST:PORT): {error}") from error


def _call(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with threadpool_limits(1):
        return fn(*args, **kwargs)


def _cancel(ref: ray.ObjectRef[Any], future: Future[Any]) -> None:
    if future.cancelled():
        ray.cancel(ref, force=True)


def _settle(future: Future[T], done: Future[T]) -> None:
    """Passes on how a task ended, in the words of :mod:`concurrent.futures`."""
    if not future.set_running_or_notify_cancel():
        return
    error = done.exception()
    cause = error.cause if isinstance(error, RayTaskError) else error
    if cause is None:
        future.set_result(done.result())
    elif isinstance(cause, RayError):
        lost = BrokenExecutor(f"the Ray cluster could not do a task: {type(cause).__name__}: {cause}")
        lost.__cause__ = cause
        future.set_exception(lost)
    else:
        future.set_exception(cause)
