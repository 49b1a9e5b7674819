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
from protocol.assignment import Assignment, LocalTraining

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
    steps, stepper = local.steps(len(examples)), _Stepper(parameters, local)
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
            loss = next(gradients)
            if not local.private and not math.isfinite(loss):
                raise EdgeClientError(f"the loss became {loss} at step {step + 1}: training diverged on this device")
            stepper.step(warmup_then_linear(step, steps, local.warmup_ratio))
            total += loss
            progress(Progress(step=step + 1, steps=steps, loss=loss, round=assignment.round))
    return {"train_loss": total / steps} if steps and not local.private else {}


class _Stepper:
    """Changes parameters by AdamW, as the run asks: at its rate, clipped, and pulled back where FedProx does."""

    def __init__(self, parameters: Sequence[nn.Parameter], local: LocalTraining) -> None:
        self._parameters = parameters
        self._peak = local.learning_rate * local.learning_rate_scale
        self._norm_max = 0.0 if local.private else local.max_grad_norm
        self._proximal = ProximalTerm(parameters, local.proximal_mu)
        # One kernel for all factors: on a CPU a seventh of the time of one factor after the other.
        self._optimizer = torch.optim.AdamW(parameters, lr=self._peak, weight_decay=local.weight_decay, fused=True)

    def step(self, scale: float) -> None:
        """Takes a step at this part of the peak rate, and forgets the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = scale * self._peak
        self._proximal.add_gradient()
        if self._norm_max > 0:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._norm_max)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


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
