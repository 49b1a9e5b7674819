"""FedProx's term against minima known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_client.data.tasks import Encoded, Example
from edge_client.training.loop import train
from edge_client.training.proximal import ProximalTerm

START = torch.tensor([1.0, -2.0, 0.5])
CURVATURE = torch.tensor([1.0, 0.5, 2.0])
TARGET = torch.tensor([0.0, 1.0, 0.5])


def minimum(mu: float) -> np.ndarray:
    """Of ``½·(w − t)ᵀH(w − t) + μ/2·‖w − w₀‖²`` with a diagonal ``H``."""
    return ((CURVATURE * TARGET + mu * START) / (CURVATURE + mu)).numpy()


def loss(w: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * (w - TARGET) ** 2).sum()


@pytest.mark.parametrize("mu", [0.0, 0.3, 4.0])
def test_gradient_descent_ends_at_the_proximal_minimum(mu: float) -> None:
    w = nn.Parameter(START.clone())
    optimizer, term = torch.optim.SGD([w], lr=0.25), ProximalTerm([w], mu)
    for _ in range(150):
        optimizer.zero_grad()
        loss(w).backward()
        term.add_gradient()
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), minimum(mu), atol=1e-5)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    w, idle = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    term = ProximalTerm([w, idle], 1.0)
    loss(w).backward()
    term.add_gradient()
    assert idle.grad is None


@dataclass
class Quadratic:
    """An objective whose loss per example is the quadratic above."""

    w: nn.Parameter
    splittable: bool = True

    def units(self, examples: list[Example]) -> int:
        return len(examples)

    def loss_sum(self, context: object, examples: list[Example]) -> Tensor:
        return len(examples) * loss(self.w)


@pytest.mark.parametrize(("mu", "micro_batch_size"), [(0.0, None), (0.3, 1), (4.0, None)])
def test_the_training_loop_ends_at_the_proximal_minimum(assign, mu, micro_batch_size) -> None:
    w = nn.Parameter(START.clone())
    examples = [Example(inputs=(Encoded(ids=(1,)),), label=0)] * 4
    given = assign(2, batch_size=4, epochs=400, learning_rate=0.04, warmup_ratio=0.0, proximal_mu=mu)
    metrics = train(
        None, Quadratic(w), examples, [w], given, micro_batch_size=micro_batch_size,
        cancelled=lambda: False, progress=lambda _: None, secret=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(w.detach().numpy(), minimum(mu), atol=2e-3)
    assert metrics["train_loss"] <= float(loss(START))
