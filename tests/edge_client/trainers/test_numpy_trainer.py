from dataclasses import replace

import numpy as np
import pytest

from edge_client.errors import AggregatorError, ConfigError
from edge_client.trainer import Cancelled
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import AssignmentKind
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Factor, Layout
from protocol.probes import LayerReport, Probe


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        base=BaseModel(name="none", fingerprint="1" * 64, architecture="None", tokenizer_digest="2" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=8,
        low_rank=(
            LowRankModule(name="q", out_features=12, in_features=8),
            LowRankModule(name="v", out_features=5, in_features=9),
        ),
        dense=(DenseTensor(name="head", shape=(2, 3), initializer=Initializer(distribution=Distribution.ZEROS)),),
    )


def run(trainer, assignment, handout, progress=lambda _: None, cancelled=lambda: False):
    return trainer.run(assignment, handout, cancelled=cancelled, progress=progress)


def ready(manifest, **settings) -> NumpyTrainer:
    trainer = NumpyTrainer(**{"seed": 1, **settings})
    trainer.info(manifest)
    return trainer


def test_one_seed_does_exactly_the_same_twice(manifest, assign, handout):
    first, second = (run(ready(manifest), assign(4), handout(manifest, 4)).update for _ in range(2))
    assert np.array_equal(first.slots, second.slots)
    assert np.array_equal(first.dense["head"], second.dense["head"])


def test_two_seeds_pull_to_different_targets(manifest, assign, handout):
    first, second = (run(ready(manifest, seed=s), assign(4), handout(manifest, 4)).update for s in (1, 2))
    assert not np.allclose(first.slots, second.slots)


def test_rate_zero_changes_nothing(manifest, assign, handout):
    update = run(ready(manifest, rate=0.0), assign(4), handout(manifest, 4, size=0.1)).update
    assert not update.slots.any()
    assert not update.dense["head"].any()


def test_the_hand_out_is_left_as_it_was(manifest, assign, handout):
    given, same = handout(manifest, 4, size=0.1), handout(manifest, 4, size=0.1)
    run(ready(manifest), assign(4), given)
    assert np.array_equal(given.slots, same.slots)
    assert np.array_equal(given.dense["head"], same.dense["head"])


def test_enough_steps_at_enough_rank_reach_the_target(manifest, assign, handout):
    trainer, start, layout = ready(manifest), handout(manifest, 4), Layout.of(manifest)
    result = run(trainer, assign(4, max_steps=60), start)
    assert result.metrics["loss"] < 1e-8
    for module in manifest.low_rank:
        b, a = layout.factors(start.slots + result.update.slots, module.name)
        left, right = trainer.target(module)
        np.testing.assert_allclose(b @ a, left @ right, atol=1e-4)


def test_the_loss_is_the_dense_one_with_the_residual_counted(manifest, assign, handout):
    trainer, start, layout = ready(manifest), handout(manifest, 6, size=0.3), Layout.of(manifest)
    losses = []
    run(trainer, assign(2, slots=6, max_steps=1), start, progress=lambda p: losses.append(p.loss))
    expected = 0.0
    for module in manifest.low_rank:
        b, a = (factor.astype(np.float64) for factor in layout.factors(start.slots, module.name))
        left, right = trainer.target(module)
        expected += 0.5 * np.sum((b @ a - left @ right) ** 2)
    dense = ready(manifest, rate=1.0)
    to_target = run(dense, assign(2, slots=6, max_steps=1), start).update.dense["head"]
    expected += 0.5 * np.sum(to_target.astype(np.float64) ** 2)
    assert losses == [pytest.approx(expected, rel=1e-5)]


def test_only_active_trainables_are_in_the_update(manifest, assign, handout):
    update = run(ready(manifest), assign(4, active=("q",)), handout(manifest, 4)).update
    assert update.slots.shape == (4, 20)
    assert not update.dense


@pytest.mark.parametrize("frozen", list(Factor))
def test_a_frozen_factor_stays_and_is_not_in_the_update(manifest, assign, handout, frozen):
    trainer, start = ready(manifest), handout(manifest, 4, size=0.1)
    whole, half = (run(trainer, assign(4, frozen_factors=f, max_steps=1), start).update for f in ((), (frozen,)))
    layout = Layout.of(manifest, frozen=(frozen,))
    for module in manifest.low_rank:  # one step: each factor moves as if it were alone
        both = dict(zip("BA", Layout.of(manifest).factors(whole.slots, module.name), strict=True))
        alone = dict(zip("BA", layout.factors(half.slots, module.name), strict=True))
        assert not alone.pop(frozen).any()
        ((name, values),) = alone.items()
        assert values.any()
        assert np.array_equal(values, both[name])


@pytest.mark.parametrize("mu", [0.5, 3.0, 1e6])
def test_the_proximal_minimum_of_a_quadratic_lies_between_its_own_and_the_start(manifest, assign, handout, mu):
    """``½‖w − t‖² + μ/2·‖w − w₀‖²`` is least at ``(t + μ·w₀)/(1 + μ)``."""
    trainer, start = ready(manifest), handout(manifest, 2, size=0.4)
    target = start.dense["head"] + run(ready(manifest, rate=1.0), assign(2, max_steps=1), start).update.dense["head"]
    found = start.dense["head"] + run(trainer, assign(2, max_steps=80, proximal_mu=mu), start).update.dense["head"]
    np.testing.assert_allclose(found, (target + mu * start.dense["head"]) / (1.0 + mu), atol=1e-6)


def test_a_proximal_term_holds_the_factors_back_and_an_infinite_one_keeps_them(manifest, assign, handout):
    trainer, start = ready(manifest), handout(manifest, 2, size=0.4)
    norms = [
        np.linalg.norm(run(trainer, assign(2, max_steps=40, proximal_mu=mu), start).update.slots) for mu in (0, 1, 1e9)
    ]
    assert norms[0] > 1.2 * norms[1] > 0
    assert norms[2] < 1e-6


def test_evaluation_reports_a_loss_and_no_update(manifest, assign, handout):
    result = run(ready(manifest), assign(4, kind=AssignmentKind.EVALUATE), handout(manifest, 4))
    assert result.update is None
    assert result.metrics["loss"] > 0


def test_cancelling_stops_between_two_steps(manifest, assign, handout):
    seen = []
    with pytest.raises(Cancelled):
        run(ready(manifest), assign(4, max_steps=9), handout(manifest, 4), seen.append, lambda: len(seen) == 3)
    assert [p.step for p in seen] == [1, 2, 3]


def test_an_unknown_probe_is_refused(manifest, assign, handout):
    with pytest.raises(AggregatorError, match="probe"):
        run(ready(manifest), assign(4, kind=AssignmentKind.PROBE), handout(manifest, 4))


def test_a_layer_scores_by_what_is_left_to_learn_in_it(manifest, assign, handout):
    prefixes = tuple(DenseTensor(name=f"prefix.{layer}", shape=(2, 3)) for layer in (0, 2))
    deep = replace(manifest, low_rank=(), dense=prefixes)
    given = replace(assign(4, kind=AssignmentKind.PROBE), probe=Probe.KEPT_LAYERS)
    adapter = handout(deep, 4, size=5.0)
    adapter.dense["prefix.2"][:] = 0.0
    found = LayerReport.of_metrics(Probe.KEPT_LAYERS, 3, run(ready(deep), given, adapter).metrics)
    assert found.scores[0] > found.scores[2] > found.scores[1] == 0.0
    assert found.kept_share == pytest.approx(1 / 3)


def test_install_keeps_what_was_installed(manifest, handout):
    trainer, adapter = ready(manifest), handout(manifest, 4)
    trainer.install(adapter, 4)
    assert trainer.installed == (adapter, 4)
    assert isinstance(trainer.installed[0], AdapterTensors)


def test_seed_zero_belongs_to_what_all_share():
    with pytest.raises(ConfigError, match="seed"):
        NumpyTrainer(seed=0)
