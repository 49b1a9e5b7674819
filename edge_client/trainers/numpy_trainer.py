"""A trainer without torch: deterministic least squares on the factors, for tests, scale runs and fault runs.

Each client pulls every low-rank module toward a target ``W_i`` of its own, part shared by all clients and part
its own, by preconditioned gradient steps (ScaledGD) on the factors it was handed:

    B̂ ← B̂ − η·E·Aᵀ(AAᵀ + εI)⁻¹,   A ← A − η·(B̂ᵀB̂ + εI)⁻¹B̂ᵀE,   E = B̂A + (frozen residual) − W_i.

Nothing dense is formed: a step costs ``O((m+n)·r²)``. Dense tensors move a share ``η`` of the way to their target.
Asked to probe, a client scores a layer by its loss there, and would keep the layers above the mean.
With FedProx's ``μ`` every step is followed by the proximal map of ``μ/2·‖w − w₀‖²``, ``w ← (w + ημ·w₀)/(1 + ημ)``, for
``w`` each of ``B̂``, ``A`` and the dense tensors: the minimum is the same as by its gradient, and no ``μ`` overshoots.

Reference: Tong, Ma, Chi, "Accelerating Ill-Conditioned Low-Rank Matrix Estimation via Scaled Gradient Descent",
2021, arXiv:2005.08898, section 1.2 (the preconditioned step).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_client.errors import AggregatorError, ConfigError
from edge_client.trainer import Cancelled, LocalResult, Progress, TrainerInfo
from protocol.assignment import Assignment, AssignmentKind
from protocol.initializers import fresh_rows
from protocol.manifest import LowRankModule, Manifest, Quantization, layer_of
from protocol.payload import AdapterTensors, Factor, Layout
from protocol.probes import LayerReport, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NumpyTrainer"]

_SHARED_SEED = 0
_RIDGE = 1e-6
_DEFAULT_STEPS = 4


@dataclass
class _Problem:
    """One module's least-squares problem, in factors: trained, and constant (residual and target) ones."""

    b: NDArray[np.float64]
    a: NDArray[np.float64]
    fixed_b: NDArray[np.float64]
    fixed_a: NDArray[np.float64]

    def loss(self) -> float:
        """``½‖E‖²_F`` through the Gram matrices of the stacked factors."""
        left, right = np.hstack([self.b, self.fixed_b]), np.vstack([self.a, self.fixed_a])
        return max(0.0, 0.5 * float(np.sum((left.T @ left) * (right @ right.T))))

    def step(self, rate: float, frozen: Container[Factor]) -> None:
        """One ScaledGD step, both factors from the same ``E``; a frozen one stays."""
        left, right = np.hstack([self.b, self.fixed_b]), np.vstack([self.a, self.fixed_a])
        ridge = _RIDGE * np.eye(self.a.shape[0])
        db = left @ np.linalg.solve(self.a @ self.a.T + ridge, self.a @ right.T).T
        da = np.linalg.solve(self.b.T @ self.b + ridge, (self.b.T @ left) @ right)
        if Factor.B not in frozen:
            self.b = self.b - rate * db
        if Factor.A not in frozen:
            self.a = self.a - rate * da


class NumpyTrainer:
    """Implements :class:`edge_client.trainer.Trainer` without torch, data or a model.

    Args:
        seed: This client's identity: two trainers of one seed do exactly the same. Above 0.
        num_examples: Examples it claims to have, its aggregation weight.
        rank: LoRA rank it asks for; None: the run's default.
        residual: Whether it takes the frozen residual.
        quantization: How it claims to hold the base.
        fingerprint: Base model it claims to hold, 64 hex digits; None: the manifest's.
        heterogeneity: Size of its own part of the target, relative to the part that all clients share.
        rate: ``η`` of a step, before the assignment's ``learning_rate_scale``; 0 makes a no-op client.

    After :meth:`install`, ``installed`` holds what was installed and its rank.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_examples: int = 100,
        rank: int | None = None,
        residual: bool = False,
        quantization: Quantization = Quantization.FP32,
        fingerprint: str | None = None,
        heterogeneity: float = 0.3,
        rate: float = 0.5,
    ) -> None:
        if seed <= _SHARED_SEED:
            raise ConfigError(f"seed: expected a whole number above {_SHARED_SEED}, got {seed}")
        self._seed = seed
        self._num_examples = num_examples
        self._rank = rank
        self._residual = residual
        self._quantization = quantization
        self._fingerprint = fingerprint
        self._heterogeneity = heterogeneity
        self._rate = rate
        self._manifest: Manifest | None = None
        self._dense_targets: dict[str, NDArray[np.float64]] = {}
        self.installed: tuple[AdapterTensors, int] | None = None

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Says what this device claims to be."""
        self._manifest = manifest
        return TrainerInfo(
            fingerprint=self._fingerprint or manifest.base.fingerprint,
            quantization=self._quantization,
            rank=self._rank,
            residual=self._residual,
            num_examples=self._num_examples,
        )

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """Carries out one assignment; ``learning_rate``, ``epochs`` and ``batch_size`` have no meaning here.

        Raises:
            Cancelled: ``cancelled()`` came true between two steps.
            ConfigError: Called before :meth:`info`.
            AggregatorError: Asked for a probe that it does not know.
        """
        if self._manifest is None:
            raise ConfigError("run() came before info(manifest)")
        layout, active = Layout.of(self._manifest), assignment.update_layout(self._manifest)
        problems = {m.name: self._problem(layout, m, handout, assignment.rank) for m in layout.low_rank}
        offsets = {name: value.astype(np.float64) for name, value in handout.dense.items()}
        if assignment.kind is AssignmentKind.PROBE:
            return self._probe(assignment.probe, self._manifest, problems, offsets)
        if assignment.kind is AssignmentKind.TRAIN:
            rate = self._rate * assignment.local.learning_rate_scale
            steps = _DEFAULT_STEPS if assignment.local.max_steps is None else assignment.local.max_steps
            for step in range(1, steps + 1):
                if cancelled():
                    raise Cancelled
                loss = self._loss(problems, offsets)
                for module in active.low_rank:
                    problems[module.name].step(rate, active.frozen)
                for tensor in active.dense:
                    offsets[tensor.name] += rate * (
                        self._dense_target(tensor.name, tensor.shape) - offsets[tensor.name]
                    )
                _pull_back(layout, handout, problems, offsets, rate * assignment.local.proximal_mu)
                progress(Progress(step=step, steps=steps, loss=loss, round=assignment.round))
        update = None
        if assignment.kind is AssignmentKind.TRAIN:
            update = _change(layout, active, handout, assignment.rank, problems, offsets)
        return LocalResult(
            update=update, num_examples=self._num_examples, metrics={"loss": self._loss(problems, offsets)}
        )

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Keeps the adapter in ``installed``."""
        self.installed = (adapter, rank)

    def target(self, module: LowRankModule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """This client's target for a module, ``W_i = left @ right`` of rank 4 at most.

        Returns:
            ``left`` ``[m, 4]`` and ``right`` ``[4, n]``, the first two slots being shared by all clients.
        """
        parts = [(_SHARED_SEED, 1.0), (self._seed, self._heterogeneity)]
        left = [
            scale * fresh_rows(seed, f"left {module.name}", range(2), module.out_features).T for seed, scale in parts
        ]
        right = [fresh_rows(seed, f"right {module.name}", range(2), module.in_features) for seed, _ in parts]
        return np.hstack(left).astype(np.float64), np.vstack(right).astype(np.float64)

    def _dense_target(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """This client's target for a dense tensor, kept: drawing millions of values costs more than a step."""
        if name not in self._dense_targets:
            size = int(np.prod(shape))
            shared = fresh_rows(_SHARED_SEED, name, range(1), size)
            own = fresh_rows(self._seed, name, range(1), size)
            self._dense_targets[name] = (shared + self._heterogeneity * own).astype(np.float64)
        return self._dense_targets[name].reshape(shape)

    def _problem(self, layout: Layout, module: LowRankModule, handout: AdapterTensors, rank: int) -> _Problem:
        b, a = (factor.astype(np.float64) for factor in layout.factors(handout.slots, module.name))
        left, right = self.target(module)
        return _Problem(b[:, :rank], a[:rank], np.hstack([b[:, rank:], -left]), np.vstack([a[rank:], right]))

    def _probe(
        self,
        probe: str | None,
        manifest: Manifest,
        problems: dict[str, _Problem],
        offsets: dict[str, NDArray[np.float64]],
    ) -> LocalResult:
        if probe not in list(Probe):
            raise AggregatorError(f"asked for the probe {probe!r}, which this trainer does not know")
        scores = np.zeros(max(manifest.layers, default=-1) + 1)
        for layer in manifest.layers:
            names = {name for name in manifest.names if layer_of(name) == layer}
            scores[layer] = self._loss(
                {name: problem for name, problem in problems.items() if name in names},
                {name: value for name, value in offsets.items() if name in names},
            )
        share = float(np.mean(scores > scores.mean())) if probe == Probe.KEPT_LAYERS else None
        report = LayerReport(scores=tuple(map(float, scores)), kept_share=share)
        return LocalResult(update=None, num_examples=self._num_examples, metrics=report.metrics)

    def _loss(self, problems: dict[str, _Problem], offsets: dict[str, NDArray[np.float64]]) -> float:
        dense = sum(
            0.5 * float(np.sum((value - self._dense_target(name, value.shape)) ** 2)) for name, value in offsets.items()
        )
        return dense + sum(problem.loss() for problem in problems.values())


def _pull_back(
    layout: Layout,
    handout: AdapterTensors,
    problems: dict[str, _Problem],
    offsets: dict[str, NDArray[np.float64]],
    share: float,
) -> None:
    """``w ← w₀ + (w − w₀) / (1 + share)``; what is frozen is at ``w₀`` and stays there, to the last bit."""
    if share == 0.0:
        return
    for name, problem in problems.items():
        rank = len(problem.a)
        b, a = layout.factors(handout.slots[:rank], name)
        problem.b, problem.a = b + (problem.b - b) / (1.0 + share), a + (problem.a - a) / (1.0 + share)
    for name, value in offsets.items():
        start = handout.dense[name]
        offsets[name] = start + (value - start) / (1.0 + share)


def _change(
    layout: Layout,
    active: Layout,
    handout: AdapterTensors,
    rank: int,
    problems: dict[str, _Problem],
    offsets: dict[str, NDArray[np.float64]],
) -> AdapterTensors:
    """The differences to the hand-out, in the update's layout."""
    change = active.zeros(rank)
    for module in active.low_rank:
        b, a = layout.factors(handout.slots, module.name)
        db, da = active.factors(change.slots, module.name)
        if Factor.B not in active.frozen:
            db[:] = problems[module.name].b - b[:, :rank]
        if Factor.A not in active.frozen:
            da[:] = problems[module.name].a - a[:rank]
    dense = {t.name: (offsets[t.name] - handout.dense[t.name]).astype(np.float32) for t in active.dense}
    return AdapterTensors(dense, change.slots)
