"""The loop: optimizer steps from batches, with a fresh AdamW, a way to stop, and word of how it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from edge_client.data.batching import training_batches
from edge_client.data.tasks import Example
from edge_client.errors import EdgeClientError
from edge_client.trainer import Cancelled, Progress
from edge_client.training.objectives import Context, Objective
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
) -> dict[str, float]:
    """Trains as an assignment says; a pure function of weights, data and ``assignment.seed`` on one machine.

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

    Returns:
        ``train_loss``, the mean over all steps; without the proximal term.

    Raises:
        Cancelled: ``cancelled()`` came true.
        EdgeClientError: The loss became NaN or infinite.
    """
    local = assignment.local
    steps = local.steps(len(examples))
    peak = local.learning_rate * local.learning_rate_scale
    # One kernel for all factors: on a CPU a seventh of the time of one factor after the other.
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=local.weight_decay, fused=True)
    proximal = ProximalTerm(parameters, local.proximal_mu)
    batches = training_batches([e.length for e in examples], local.batch_size, steps, assignment.seed)
    total = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(assignment.seed)
        for step, batch in enumerate(batches):
            if cancelled():
                raise Cancelled
            for group in optimizer.param_groups:
                group["lr"] = peak * warmup_then_linear(step, steps, local.warmup_ratio)
            loss = _accumulate(context, objective, [examples[index] for index in batch], micro_batch_size)
            if not torch.isfinite(torch.tensor(loss)):
                raise EdgeClientError(f"the loss became {loss} at step {step + 1}: training diverged on this device")
            proximal.add_gradient()
            if local.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(parameters, local.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss
            progress(Progress(step=step + 1, steps=steps, loss=loss, round=assignment.round))
    return {"train_loss": total / steps} if steps else {}


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
