"""What a device finds out for the aggregator without training: which layers are worth it, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edge_client.errors import AggregatorError, DataError
from edge_client.training.layer_scores import layer_scores
from edge_client.training.spectrum import hessian_product, kept_share, lanczos
from protocol.assignment import Assignment
from protocol.probes import LayerReport, Probe

if TYPE_CHECKING:
    from edge_client.data.tasks import Example
    from edge_client.training.objectives import Context, Objective

__all__ = ["measure"]

_LANCZOS_STEPS = 50
"""Hessian products of one probe, as in the code released with FedPepTAO."""


def measure(
    context: Context,
    objective: Objective,
    examples: Sequence[Example],
    parameters: Sequence[nn.Parameter],
    assignment: Assignment,
) -> LayerReport:
    """Answers a probe from one batch, which ``assignment.seed`` draws; a pure function of weights, data and seed.

    Args:
        context: The model with the hand-out on it.
        objective: Whose Hessian is looked at.
        examples: Local data, at least one.
        parameters: The active trainables, which require gradients; their gradients are left as they are.
        assignment: Which probe, and the size of a batch.

    Raises:
        AggregatorError: There is no such probe here.
        DataError: There is no example.
    """
    if assignment.probe not in list(Probe):
        raise AggregatorError(f"asked for the probe {assignment.probe!r}, which this version does not know")
    if not examples:
        raise DataError("asked for a probe, but this device was given no data")
    rng = np.random.default_rng(assignment.seed)
    batch = [examples[index] for index in rng.permutation(len(examples))[: assignment.local.batch_size]]
    context.model.eval()
    scores = layer_scores(context, batch)
    asked = assignment.probe == Probe.KEPT_LAYERS
    share = _kept_share(context, objective, batch, parameters, rng) if asked else None
    return LayerReport(scores=tuple(scores), kept_share=share)


def _kept_share(
    context: Context,
    objective: Objective,
    batch: Sequence[Example],
    parameters: Sequence[nn.Parameter],
    rng: np.random.Generator,
) -> float:
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        loss = objective.loss_sum(context, batch) / objective.units(batch)
        product = hessian_product(loss, parameters)
        start = rng.choice([-1.0, 1.0], sum(parameter.numel() for parameter in parameters))
        return kept_share(lanczos(product, start, _LANCZOS_STEPS))
