"""Which settings cannot be run, alone, together, or with a manifest: all that is wrong with them, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aggregator.config import Mode, RunConfig
from aggregator.errors import ConfigError
from aggregator.merge.strategies import Requirement, StrategyName, make_strategy
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import OptimizerName
from aggregator.privacy.accountant import epsilon
from protocol import limits
from protocol.assignment import LocalTraining
from protocol.manifest import TaskKind
from protocol.probes import LAYERS_MAX

if TYPE_CHECKING:
    from protocol.manifest import Manifest

__all__ = ["check_feasible", "faults_of"]

_WITH_OPTIMIZER = (StrategyName.DELTA, StrategyName.DELTA_ROTATE, StrategyName.DELTA_FRESH)
"""Strategies whose merged update a server optimizer can take: the others have none, but a next model."""
_ADAPTIVE = frozenset(name for name in OptimizerName if name.adaptive)
_USED_BY = {
    "server_beta1": _ADAPTIVE | {OptimizerName.MOMENTUM, OptimizerName.CONTROLLED_MOMENTUM},
    "server_beta2": frozenset({OptimizerName.ADAM, OptimizerName.YOGI}),
    "server_tau": _ADAPTIVE,
    "server_dense_learning_rate": _ADAPTIVE,
    "server_momentum_rank": frozenset({OptimizerName.MOMENTUM}),
    "server_population": frozenset({OptimizerName.CONTROLLED_MOMENTUM}),
}
"""Which optimizers a number is for."""

_NOISE = f"{limits.NOISE_MULTIPLIER_MIN:g}..{limits.NOISE_MULTIPLIER_MAX:g}, or 0 for none"
_Faults = Iterator[tuple[bool, str]]


def check_feasible(config: RunConfig, manifest: Manifest) -> None:
    """Raises unless these settings can be run with this manifest.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    faults = faults_of(config, manifest)
    if faults:
        raise ConfigError("this run cannot be set up: " + "; ".join(faults))


def faults_of(config: RunConfig, manifest: Manifest) -> list[str]:
    """What keeps these settings from being run with this manifest; nothing, if they can be."""
    parts = (
        *(_round(config), _mode(config), _devices(config, manifest), _privacy(config.local, manifest)),
        _central_privacy(config),
        *(_merge(config), _combined(config, manifest), _probe(config, manifest), _upkeep(config)),
    )
    return [text for part in parts for wrong, text in part if wrong]


def _round(config: RunConfig) -> _Faults:
    plain = bool(config.run) and all(c.isascii() and (c.isalnum() or c in "-_.") for c in config.run)
    yield not plain or len(config.run) > 64, f"run id {config.run!r}: 1..64 letters, digits, '-', '_' or '.'"
    yield config.rounds < 1, f"rounds is {config.rounds}, at least 1 is needed"
    yield config.cohort_size < 1, f"cohort_size is {config.cohort_size}, at least 1 is needed"
    yield not 1.0 <= config.over_selection <= 100.0, f"over_selection is {config.over_selection}, expected 1..100"
    yield not 1 <= config.least_updates <= config.cohort_size, f"quorum is {config.quorum}, expected 1..cohort_size"
    wrong = config.deadline_s is not None and not 0 < config.deadline_s < math.inf
    yield wrong, f"deadline_s is {config.deadline_s}, expected > 0"
    yield not 0.01 <= config.poll_s <= 86_400, f"poll_s is {config.poll_s}, expected 0.01..86400"


def _mode(config: RunConfig) -> _Faults:
    if config.mode is Mode.SYNC:
        yield config.concurrency is not None, "concurrency is for mode async; a round is bounded by over_selection"
        changed = config.staleness_max != RunConfig.staleness_max
        yield changed, "staleness_max is for mode async; in a round all train from one version"
        return
    concurrency, averages = config.concurrency, Requirement.ONE_VERSION in make_strategy(config.strategy).requires
    yield concurrency is not None and concurrency < 1, f"concurrency is {concurrency}, at least 1 is needed"
    yield config.staleness_max < 0, f"staleness_max is {config.staleness_max}, expected >= 0"
    yield config.over_selection != 1.0, "over_selection is for mode sync; what bounds a buffer is its concurrency"
    yield config.quorum is not None, "quorum is for mode sync; a buffer has no deadline to be short of updates at"
    yield averages, f"strategy {config.strategy} averages models of one version; mode async adds up changes to many"
    yield config.retention < 1, "retention is for mode sync: what a buffer of many versions did not see is no one tail"
    yield (
        config.weights is Weighting.HORVITZ_THOMPSON,
        "weights horvitz-thompson is for mode sync: who fills a buffer is not drawn, and has no probability",
    )
    yield (
        config.server_optimizer is OptimizerName.CONTROLLED_MOMENTUM,
        "server_optimizer controlled-momentum is for mode sync: gradients at many versions are not comparable",
    )


def _devices(config: RunConfig, manifest: Manifest) -> _Faults:
    wrong = not 1 <= config.default_rank <= manifest.rank_max
    yield wrong, f"default_rank is {config.default_rank}, the manifest allows 1..{manifest.rank_max}"
    wrong = config.residual_slots is not None and not 1 <= config.residual_slots <= limits.RANK_MAX
    yield wrong, f"residual_slots is {config.residual_slots}, expected 1..{limits.RANK_MAX}"
    decay = config.learning_rate_decay
    yield not 0 <= decay < math.inf, f"learning_rate_decay is {decay}, expected >= 0"
    yield config.num_examples_max < 1, f"num_examples_max is {config.num_examples_max}, expected >= 1"
    yield not 0 < config.update_norm_max <= 1e6, f"update_norm_max is {config.update_norm_max}, expected 0..1e6"


def _privacy(local: LocalTraining, manifest: Manifest) -> _Faults:
    """Of devices that train by DP-SGD."""
    sigma, budget = local.noise_multiplier, local.epsilon_max
    yield not _is_noise(sigma), f"noise_multiplier is {sigma}, expected {_NOISE}"
    yield not 0 < local.clip_norm <= 1e9, f"clip_norm is {local.clip_norm}, expected above 0, up to 1e9"
    yield not 0 < local.delta < 1, f"delta is {local.delta}, expected 0 < delta < 1"
    yield budget is not None and budget <= 0, f"epsilon_max is {budget}, expected above 0: any training costs something"
    if not sigma > 0:
        for name in ("clip_norm", "delta", "epsilon_max"):
            changed = getattr(local, name) != getattr(LocalTraining, name)
            yield (
                changed,
                f"{name} with noise_multiplier {sigma}: nothing is private without noise; set noise_multiplier",
            )
        return
    yield (
        manifest.task.kind is TaskKind.EMBEDDING,
        f"noise_multiplier {sigma} with a task of kind {manifest.task.kind}: its loss contrasts the examples of a "
        "batch with each other, so no example has a gradient of its own to clip",
    )


def _central_privacy(config: RunConfig) -> _Faults:
    """Of merges with noise."""
    sigma, delta, budget = config.server_noise_multiplier, config.server_delta, config.server_epsilon_max
    ranges = (
        (not _is_noise(sigma), f"server_noise_multiplier is {sigma}, expected {_NOISE}"),
        (not 0 < config.server_clip_norm <= 1e6, f"server_clip_norm is {config.server_clip_norm}, expected 0..1e6"),
        (not 0 < delta < 1, f"server_delta is {delta}, expected 0 < server_delta < 1"),
        (budget is not None and budget <= 0, f"server_epsilon_max is {budget}, expected above 0"),
    )
    yield from ranges
    if sigma == 0:
        for name in ("server_clip_norm", "server_delta", "server_epsilon_max"):
            changed = getattr(config, name) != getattr(RunConfig, name)
            yield changed, f"{name} is for central privacy: set server_noise_multiplier"
        return
    given = f"server_noise_multiplier {sigma} with"
    yield config.strategy is not StrategyName.DELTA, f"{given} strategy {config.strategy}: noise goes onto deltas alone"
    yield config.retention < 1, f"{given} retention {config.retention}: it depends on who was there, without noise"
    optimizer = config.server_optimizer
    wrong = optimizer is not OptimizerName.SGD
    yield wrong, f"{given} server_optimizer {optimizer}: it would see the sum before the noise"
    wrong = config.probe_round is not None
    yield wrong, f"{given} probe_round: which layers are chosen would tell of the devices' data without noise"
    yield config.mode is Mode.ASYNC, f"{given} mode async: a change is clipped against the version that all were handed"
    yield (
        config.weights is not Weighting.UNIFORM,
        f"{given} weights {config.weights}: each device would change what all others count; set weights to uniform",
    )
    if not any(wrong for wrong, _ in ranges):
        spent = epsilon(sigma, config.rounds, delta)  # also without a bound: `status` will want the library
        told = f"{config.rounds} rounds at server_noise_multiplier {sigma} cost ε = {spent:.4g} at δ = {delta:g}"
        wrong = budget is not None and spent > budget
        yield wrong, f"{told}, above server_epsilon_max {budget}: fewer rounds, or more noise"


def _is_noise(sigma: float) -> bool:
    return sigma == 0 or limits.NOISE_MULTIPLIER_MIN <= sigma <= limits.NOISE_MULTIPLIER_MAX


def _merge(config: RunConfig) -> _Faults:
    yield not 0 <= config.retention <= 1, f"retention is {config.retention}, expected 0..1"
    rate, decay = config.server_learning_rate, config.server_learning_rate_decay
    yield not 0 < rate <= 100, f"server_learning_rate is {rate}, expected 0..100"
    yield not 0 <= decay < math.inf, f"server_learning_rate_decay is {decay}, expected >= 0"
    for name in ("server_beta1", "server_beta2"):
        yield not 0 <= getattr(config, name) < 1, f"{name} is {getattr(config, name)}, expected 0 <= {name} < 1"
    for name in ("server_tau", "server_dense_learning_rate"):
        yield not 0 < getattr(config, name) < math.inf, f"{name} is {getattr(config, name)}, expected > 0"
    for name in ("server_momentum_rank", "server_population"):
        number = getattr(config, name)
        yield number is not None and number < 1, f"{name} is {number}, expected >= 1"


def _combined(config: RunConfig, manifest: Manifest) -> _Faults:
    """Settings that are well by themselves and have no meaning together."""
    name, optimizer = config.strategy, config.server_optimizer
    yield (
        config.retention < 1 and name is not StrategyName.DELTA,
        f"retention {config.retention} with strategy {name}: only delta's hand-outs say what devices did not see",
    )
    yield (
        optimizer.stateful and name not in _WITH_OPTIMIZER,
        f"server_optimizer {optimizer} with strategy {name}: it takes a merged update, which only "
        f"{', '.join(_WITH_OPTIMIZER)} have",
    )
    for setting, users in _USED_BY.items():
        changed = getattr(config, setting) != getattr(type(config), setting)
        yield (
            changed and optimizer not in users,
            f"{setting} with server_optimizer {optimizer}: it is for {', '.join(sorted(users))}",
        )
    yield (
        optimizer.adaptive and not manifest.dense,
        f"server_optimizer {optimizer}: it is for dense tensors, and the manifest has none; use sgd or momentum",
    )
    controlled = optimizer is OptimizerName.CONTROLLED_MOMENTUM
    yield (
        controlled and bool(manifest.low_rank),
        f"server_optimizer {optimizer}: its controls are for dense tensors, and the manifest has low-rank modules, "
        "whose products would be a whole matrix for every device; use momentum",
    )
    yield (
        controlled and config.weights is Weighting.HORVITZ_THOMPSON,
        f"server_optimizer {optimizer} with weights {config.weights}: both correct for who is drawn; use one of them",
    )
    yield (
        Requirement.RESIDUAL in make_strategy(name).requires
        and bool(manifest.low_rank)
        and config.slots(manifest) <= manifest.rank_max,
        f"strategy {name} hands out {manifest.rank_max} fresh slots, the model behind them: set residual_slots to "
        f"more, such as {2 * manifest.rank_max}",
    )


def _probe(config: RunConfig, manifest: Manifest) -> _Faults:
    """Of the round in which layers are selected."""
    number, kept = config.probe_round, config.kept_layers
    yield kept is not None and not 0 < kept <= 1, f"kept_layers is {kept}, expected above 0, up to 1"
    yield number is None and kept is not None, "kept_layers goes with probe_round: say in which round layers are scored"
    if number is None:
        return
    yield not 1 <= number < config.rounds, f"probe_round is {number}, expected 1..{config.rounds - 1}: training follows"
    yield config.mode is Mode.ASYNC, "probe_round is for mode sync: devices of one round answer for one version"
    yield len(manifest.layers) < 2, f"probe_round: the manifest's trainables belong to {len(manifest.layers)} layer(s)"
    depth = max(manifest.layers, default=0) + 1
    yield depth > LAYERS_MAX, f"probe_round: the manifest has {depth} layers, a report holds {LAYERS_MAX}"
    yield config.local.private, "probe_round with noise_multiplier: what a probe tells of a device's data has no noise"
    noisy = config.server_noise_multiplier > 0
    yield noisy, "probe_round with server_noise_multiplier: the selection would tell of devices without noise"


def _upkeep(config: RunConfig) -> _Faults:
    kept = config.keep_versions
    yield kept is not None and kept < 0, f"keep_versions is {kept}, expected >= 0"
    yield config.seed < 0, f"seed is {config.seed}, expected >= 0"
