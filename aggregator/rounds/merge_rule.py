"""What a run's settings make of one round's merge: the strategy with its optimizer, the step, and the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from aggregator.config import RunConfig
from aggregator.merge.strategies import Delta, Strategy, make_strategy
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import ControlVariates, OptimizerName, make_optimizer
from aggregator.optimizers.interface import Optimizer
from aggregator.privacy.clipping import Clipping
from aggregator.privacy.noise import GaussianNoise

__all__ = ["MergeRule", "merge_rule", "private_rule"]


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """How a cohort is merged. A small picklable value; all of it is settled before the cohort is."""

    strategy: Strategy[Any] = field(default_factory=Delta)
    """What updates are merged by."""
    step: float = 1.0
    """Step on the weighted sum of what changed; 1 where an optimizer takes the step."""
    weighting: Weighting = Weighting.NUM_EXAMPLES
    """By what an update counts."""
    clipping: Clipping | None = None
    """What bounds each update's part, and weighs it in place of ``weighting``; None: nothing."""


def merge_rule(config: RunConfig, round_number: int = 1) -> MergeRule:
    """The rule of a round.

    Args:
        config: The operator's settings, checked.
        round_number: From 1. Rules of one run differ in their steps alone, so any can read what another wrote.
    """
    strategy, step = make_strategy(config.strategy), config.server_learning_rate
    step *= config.server_learning_rate_scale(round_number)
    if not isinstance(strategy, Delta):
        return MergeRule(strategy=strategy, step=step, weighting=config.weights)
    optimizer, controls = None, None
    if config.server_optimizer is not OptimizerName.SGD:
        optimizer, step = _optimizer(config, round_number), 1.0
    if config.server_optimizer is OptimizerName.CONTROLLED_MOMENTUM:
        controls = ControlVariates(population=config.server_population)
    delta = replace(strategy, retention=config.retention, optimizer=optimizer, controls=controls)
    return MergeRule(strategy=delta, step=step, weighting=config.weights)


def private_rule(
    rule: MergeRule, config: RunConfig, round_number: int, secret: bytes, updates: Iterable[str]
) -> MergeRule:
    """A rule with the clipping and the noise of central differential privacy.

    Args:
        rule: The round's, without.
        config: The operator's settings, checked, with noise on the merges.
        round_number: From 1.
        secret: The run's secret.
        updates: Digests of the cohort's updates, in canonical order.
    """
    assert isinstance(rule.strategy, Delta)  # the settings are feasible
    clipping = Clipping(clip_norm=config.server_clip_norm, cohort_size=config.cohort_size)
    deviation = rule.step * config.server_noise_multiplier * clipping.clip_norm / clipping.cohort_size
    noise = GaussianNoise.of_cohort(deviation, secret, round_number, updates)
    return replace(rule, strategy=replace(rule.strategy, noise=noise), clipping=clipping)


def _optimizer(config: RunConfig, round_number: int) -> Optimizer:
    scale = config.server_learning_rate_scale(round_number)
    return make_optimizer(
        config.server_optimizer,
        learning_rate=scale * config.server_learning_rate,
        dense_learning_rate=scale * config.server_dense_learning_rate,
        beta1=config.server_beta1,
        beta2=config.server_beta2,
        tau=config.server_tau,
        rank_max=config.server_momentum_rank,
    )
