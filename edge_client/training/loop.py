"""The loop: optimizer steps from batches, with a fresh AdamW, a way to stop, and word of how it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from edge_client.data.batching import training_batches
from edge_client.data.tasks import Example
from edge_client.errors import EdgeClientError
from edge_client.trainer import Cancelled, Progress
from edge_client.training.objectives import Context, Objective
from edge_client.training.private import private_gradients
from edge_client.training.proximal import ProximalTerm
from edge_client.training.schedule import warmup_then_linear
from protocol.assignment import Assignment

__all__ = ["train"]


def train(
    context: Context,
    objective: Objective,
    examples: Sequence[Example],
    parameters: Sequence[nn.Parameter],
    assignment: Assignment,
    *,
    micro_batch_size: int | None,
    cancelled: Callable[[], bool],
    progress: Callable[[Progress], None],
    secret: np.random.Generator,
) -> dict[str, float]:
    """Trains as an assignment says; a pure function of weights, data and seed on one machine.

    The seed is ``assignment.seed``, or, where training is private, what only ``secret`` knows.

    Args:
        context: The model, in training mode.
        objective: What to minimise.
        examples: Local data.
        parameters: What to change, at the values handed out; all of it requires gradients.
        assignment: Steps, rates and seed. Moments start at zero: they do not outlive a round, since the factors'
            axes are others in the next one.
        micro_batch_size: Examples per forward pass; None: the whole batch.
        cancelled: Polled before every step.
        progress: Called after every step.
        secret: Draws batches, noise and dropout of private training; see :func:`.private.private_gradients`.

    Returns:
        ``train_loss``, the mean over all steps, without the proximal term; nothing where training is private.

    Raises:
        Cancelled: ``cancelled()`` came true.
        ConfigError: Training shall be private, and the loss has no gradient per example.
        EdgeClientError: The loss became NaN or infinite; private training leaves out what is not finite.
    """
    local = assignment.local
    steps = local.steps(len(examples))
    peak = local.learning_rate * local.learning_rate_scale
    # One kernel for all factors: on a CPU a seventh of the time of one factor after the other.
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=local.weight_decay, fused=True)
    proximal = ProximalTerm(parameters, local.proximal_mu)
    # A seed that the aggregator knows would tie an example's dropout to who else is in the batch.
    seed = int(secret.integers(1 << 63)) if local.private else assignment.seed
    if local.private:
        gradients = private_gradients(context, objective, examples, parameters, local, secret)
    else:
        gradients = _gradients(context, objective, examples, local.batch_size, steps, seed, micro_batch_size)
    total = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            if cancelled():
                raise Cancelled
            for group in optimizer.param_groups:
                group["lr"] = peak * warmup_then_linear(step, steps, local.warmup_ratio)
            loss = next(gradients)
            if not local.private and not math.isfinite(loss):
                raise EdgeClientError(f"the loss became {loss} at step {step + 1}: training diverged on this device")
            proximal.add_gradient()
            if local.max_grad_norm > 0 and not local.private:
                torch.nn.utils.clip_grad_norm_(parameters, local.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss
            progress(Progress(step=step + 1, steps=steps, loss=loss, round=assignment.round))
    return {"train_loss": total / steps} if steps and not local.private else {}


def _gradients(
    context: Context,
    objective: Objective,
    examples: Sequence[Example],
    batch_size: int,
    steps: int,
    seed: int,
    micro_batch_size: int | None,
) -> Iterator[float]:
    """Adds one batch's gradients after another, and gives the mean loss of each."""
    for batch in training_batches([example.length for example in examples], batch_size, steps, seed):
        yield _accumulate(context, objective, [examples[index] for index in batch], micro_batch_size)


def _accumulate(context: Context, objective: Objective, examples: list[Example], micro_batch_size: int | None) -> float:
    """Adds one batch's gradients, micro-batch by micro-batch, and returns its mean loss."""
    size = micro_batch_size if micro_batch_size is not None and objective.splittable else len(examples)
    units = objective.units(examples)
    total = 0.0
    for start in range(0, len(examples), size):
        loss = objective.loss_sum(context, examples[start : start + size]) / units
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
