"""DP-SGD's gradients: how far one example moves them, how the noise is spread, and who is in a batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_client.data.tasks import Encoded, Example
from edge_client.errors import ConfigError
from edge_client.training.loop import train
from edge_client.training.private import poisson_sample, private_gradients
from protocol.assignment import LocalTraining

SHAPES = ((3, 4), (5,))
WIDTH = 17
VALUE = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, math.inf, math.nan, 1e30])


class Linear:
    """An objective whose gradient for example ``i`` is row ``i`` of a table, spread over the parameters."""

    splittable = True

    def __init__(self, parameters: list[nn.Parameter], rows: np.ndarray) -> None:
        self._parameters, self._rows = parameters, torch.from_numpy(np.asarray(rows, np.float32))

    def units(self, examples: list[Example]) -> int:
        return len(examples)

    def loss_sum(self, context: object, examples: list[Example]) -> Tensor:
        flat = torch.cat([parameter.flatten() for parameter in self._parameters])
        return sum((self._rows[int(example.label)] * flat).sum() for example in examples)


def examples(count: int) -> list[Example]:
    return [Example(inputs=(Encoded(ids=(1,)),), label=index) for index in range(count)]


def parameters(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


def gradients(rows: np.ndarray, steps: int = 1, shapes=SHAPES, seed: int = 0, **local) -> np.ndarray:
    """The gradients of ``steps`` steps, flat: ``[steps, width]``."""
    held = parameters(shapes)
    quiet = 1e-9 / local.get("clip_norm", 1.0)
    asked = LocalTraining(**{"noise_multiplier": quiet, "batch_size": len(rows)} | local)
    found = private_gradients(
        None, Linear(held, rows), examples(len(rows)), held, asked, np.random.default_rng(seed)
    )  # fmt: skip
    taken = []
    for _ in range(steps):
        next(found)
        taken.append(np.concatenate([parameter.grad.flatten().numpy().copy() for parameter in held]))
    return np.array(taken, np.float64)


def clipped_mean(rows: np.ndarray, clip_norm: float) -> np.ndarray:
    """The definition, one example after another."""
    shares = [min(1.0, clip_norm / np.linalg.norm(row)) if row.any() else 0.0 for row in rows]
    return sum(share * row for share, row in zip(shares, rows, strict=True)) / len(rows)


@pytest.mark.parametrize("clip_norm", [0.1, 3.0, 4.0, 1e6])
def test_every_example_is_clipped_by_itself_over_all_tensors_together(clip_norm):
    rows = np.random.default_rng(1).standard_normal((20, WIDTH)) * np.geomspace(0.01, 100, 20)[:, None]
    (found,) = gradients(rows, clip_norm=clip_norm)
    np.testing.assert_allclose(found, clipped_mean(rows, clip_norm), rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(
    st.lists(st.lists(VALUE, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.data(),
)
def test_no_example_moves_the_sum_by_more_than_the_clipping_norm(rows, clip_norm, data):
    table = np.array(rows, np.float32)
    without = table.copy()
    without[data.draw(st.integers(0, len(rows) - 1))] = 0.0
    moved = len(rows) * (gradients(table, clip_norm=clip_norm) - gradients(without, clip_norm=clip_norm))
    assert np.linalg.norm(moved) <= clip_norm * (1 + 1e-5 * len(rows))


def test_an_example_without_a_finite_gradient_moves_nothing():
    rows = np.ones((3, WIDTH))
    rows[1, 4], rows[2, 0] = math.nan, math.inf
    np.testing.assert_allclose(gradients(rows, clip_norm=1.0), [clipped_mean(rows[:1], 1.0) / 3], rtol=1e-5)


@pytest.mark.parametrize(
    ("noise_multiplier", "clip_norm", "batch_size"), [(1.0, 1.0, 1), (0.7, 3.0, 4), (4.0, 0.05, 8)]
)
def test_the_noise_is_gaussian_of_the_deviation_that_is_accounted_for(noise_multiplier, clip_norm, batch_size):
    shapes = ((200, 150), (10_000,))
    rows = np.zeros((8, 40_000))
    found = gradients(
        rows, steps=3, shapes=shapes, noise_multiplier=noise_multiplier, clip_norm=clip_norm, batch_size=batch_size
    )
    unit = found * batch_size / (noise_multiplier * clip_norm)
    for part in (unit[:, :30_000], unit[:, 30_000:]):  # one σ for every tensor; 30 000 draws tell 5 % by 12 deviations
        assert np.std(part) == pytest.approx(1.0, abs=0.02)
        assert np.mean(part) == pytest.approx(0.0, abs=0.03)
        assert np.mean(np.abs(part) > 1.96) == pytest.approx(0.05, abs=0.01)
        assert np.mean(np.abs(part) > 3.0) == pytest.approx(0.0027, abs=0.0015)
    for one, other in itertools.combinations(unit, 2):  # fresh in every step
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_a_batch_takes_each_example_by_itself():
    count, rate, secret = 50, 0.1, np.random.default_rng(2)
    taken = np.zeros((4000, count), bool)
    for row in taken:
        row[poisson_sample(count, rate, secret)] = True
    sizes = taken.sum(1)
    assert taken.mean(0) == pytest.approx(rate, abs=0.025)
    assert sizes.mean() == pytest.approx(count * rate, rel=0.02)
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.1)  # 0, if batches had one size
    assert np.mean(sizes == 0) == pytest.approx((1 - rate) ** count, abs=0.004)


def test_an_empty_batch_is_a_step_of_noise_and_the_divisor_is_the_expected_size():
    rows = np.full((2, WIDTH), 1.0)
    found = gradients(rows, steps=60, batch_size=1, clip_norm=1.0)
    sizes = np.linalg.norm(found, axis=1)
    assert {round(size) for size in sizes} == {0, 1, 2}
    assert np.abs(found[sizes < 0.5]).max() > 0  # noise alone


def test_the_mean_loss_counts_what_was_sampled_over_the_expected_size():
    held = parameters()
    rows = np.ones((4, WIDTH))
    held[0].data += 1.0
    local = LocalTraining(noise_multiplier=1.0, batch_size=4)
    found = private_gradients(None, Linear(held, rows), examples(4), held, local, np.random.default_rng(0))
    assert next(found) == pytest.approx(12.0)


def test_a_parameter_that_no_example_uses_still_gets_noise():
    used, idle = parameters()
    local = LocalTraining(noise_multiplier=1.0, batch_size=2)
    objective = Linear([used], np.ones((2, 12)))
    next(private_gradients(None, objective, examples(2), [used, idle], local, np.random.default_rng(0)))
    assert idle.grad.abs().min() > 0


def test_a_loss_over_the_whole_batch_is_refused():
    objective = Linear([], np.ones((1, 1)))
    objective.splittable = False
    with pytest.raises(ConfigError, match="contrasts the examples"):
        next(private_gradients(None, objective, examples(1), [], LocalTraining(), np.random.default_rng(0)))


def test_the_loop_tells_no_loss_and_keeps_the_schedule_and_the_proximal_pull(assign):
    ends = []
    for mu in (0.0, 1e3):
        held = parameters()
        given_ = assign(2, noise_multiplier=0.1, batch_size=4, epochs=20, learning_rate=0.2, proximal_mu=mu)
        told = []
        metrics = train(
            None, Linear(held, np.ones((4, WIDTH))), examples(4), held, given_, micro_batch_size=None,
            cancelled=lambda: False, progress=told.append, secret=np.random.default_rng(0),
        )  # fmt: skip
        assert metrics == {}
        assert [one.step for one in told] == list(range(1, 21))
        ends.append(max(float(parameter.detach().abs().max()) for parameter in held))
    free, pulled = ends
    assert free > 0.5 > 0.1 > pulled > 0
