"""DP-SGD: gradients that no single example moves far, with noise over what it moves (Abadi et al. 2016).

A step takes each example with probability ``q``, independently, clips its gradient to norm ``C`` over all that is
trained together, and adds Gaussian noise of standard deviation ``σ·C`` to the sum:

    g = (Σ_{i in batch} g_i·min(1, C/‖g_i‖) + N(0, σ²C²·I)) / batch_size,   q = batch_size / num_examples.

The divisor is the expected batch size: the true one is secret, and a batch may be empty, which is a step as any other.

Examples go through the model one by one, which is exact for every model, method and precision. ``torch.func`` cannot
vectorise transformers' masks. Opacus 1.6, whose hooks rebuild the gradients of a batch per example, knows some layers
and no bare parameters such as prompts, and needs memory for a copy of the trainables per example; it takes four
fifths of the time on a CPU (MiniLM, rank 8, 16 texts of 62 tokens: 0.85 s, one by one 1.0 s, a plain batch 0.69 s).
On a GPU, which a single text does not fill, expect one by one to cost more than that; it was not measured.

Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv:1607.00133, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.data.tasks import Example
from edge_client.errors import ConfigError
from edge_client.training.objectives import Context, Objective
from protocol.assignment import LocalTraining

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["poisson_sample", "private_gradients"]


def private_gradients(
    context: Context,
    objective: Objective,
    examples: Sequence[Example],
    parameters: Sequence[nn.Parameter],
    local: LocalTraining,
    secret: np.random.Generator,
) -> Iterator[float]:
    """Sets the parameters' gradients for one step after another, without end.

    An example's loss is the mean over its own units, so a text weighs the same however long it is.

    Args:
        context: The model, in training mode.
        objective: What to minimise.
        examples: Local data, at least ``local.batch_size``.
        parameters: All that is trained.
        local: ``clip_norm``, ``noise_multiplier`` and ``batch_size``.
        secret: Draws batches and noise. Who knows its seed can take the noise off again, so it is never one that the
            aggregator was told or has chosen.

    Yields:
        The step's mean loss, over the expected batch size. It has no noise: it must not leave the device.

    Raises:
        ConfigError: The loss has no gradient per example.
    """
    if not objective.splittable:
        raise ConfigError(
            "the run asks for private training, but this task's loss contrasts the examples of a batch with each "
            "other: there is no gradient of one example to clip"
        )
    while True:
        sums, loss = [torch.zeros_like(parameter) for parameter in parameters], 0.0
        for index in poisson_sample(len(examples), local.batch_size / len(examples), secret):
            example_loss, gradients = _gradients_of(context, objective, examples[index], parameters)
            _add_clipped(sums, gradients, local.clip_norm)
            loss += example_loss
        for parameter, total in zip(parameters, sums, strict=True):
            noise = secret.standard_normal(tuple(total.shape), dtype=np.float32)
            total.add_(torch.from_numpy(noise).to(total.device), alpha=local.noise_multiplier * local.clip_norm)
            parameter.grad = total.div_(local.batch_size)
        yield loss / local.batch_size


def poisson_sample(count: int, rate: float, secret: np.random.Generator) -> NDArray[np.int64]:
    """Indices of a batch that takes each of ``count`` examples with probability ``rate``, independently; maybe none."""
    return np.flatnonzero(secret.random(count) < rate)


def _gradients_of(
    context: Context, objective: Objective, example: Example, parameters: Sequence[nn.Parameter]
) -> tuple[float, Sequence[Tensor]]:
    loss = objective.loss_sum(context, [example]) / objective.units([example])
    return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def _add_clipped(sums: Sequence[Tensor], gradients: Sequence[Tensor], clip_norm: float) -> None:
    """Adds one example's gradients at a flat norm of ``clip_norm`` at most; nothing, where the norm is not finite."""
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        return
    share = min(1.0, clip_norm / norm) if norm > 0 else 1.0
    for total, gradient in zip(sums, gradients, strict=True):
        total.add_(gradient, alpha=share)
