"""Hessian products against the Hessian itself, quadrature against moments, and the rule for what is kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.training.spectrum import Spectrum, hessian_product, kept_share, lanczos

seeds = st.integers(0, 2**32 - 1)


def symmetric(seed: int, size: int) -> NDArray[np.float64]:
    half = np.random.default_rng(seed).standard_normal((size, size))
    return half + half.T


def loss_of(flat: Tensor) -> Tensor:
    """Of a net of two layers whose weights are one vector of 17."""
    inputs = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
    hidden = torch.tanh(inputs @ flat[:12].reshape(3, 4))
    return ((hidden @ flat[12:16] + flat[16]) ** 2).mean()


def test_products_are_those_of_the_hessian() -> None:
    flat = torch.randn(17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.functional.hessian(loss_of, flat).numpy()
    parts = [nn.Parameter(part.clone()) for part in flat.split([5, 12])]
    idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    product = hessian_product(loss_of(torch.cat(parts)), [*parts, idle])
    for column in np.eye(19)[:17]:
        found = product(column)
        np.testing.assert_allclose(found[:17], expected @ column[:17], atol=1e-12)
        assert not found[17:].any()
    assert all(part.grad is None for part in parts)


def test_a_loss_that_nothing_bends_has_no_curvature() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    assert not hessian_product((2.0 * w).sum(), [w])(np.ones(3)).any()


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 12))
def test_as_many_steps_as_dimensions_find_every_eigenvalue(seed: int, size: int) -> None:
    H = symmetric(seed, size)
    found = lanczos(lambda v: H @ v, np.random.default_rng(seed).standard_normal(size), 50)
    np.testing.assert_allclose(found.nodes, np.linalg.eigvalsh(H), atol=1e-8)
    assert found.weights.sum() == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6))
def test_the_quadrature_is_exact_for_moments_below_twice_its_steps(seed: int, steps: int) -> None:
    """Gauss: ``Σ w_j θ_j^k = vᵀHᵏv`` for ``k < 2·steps``."""
    H, v = symmetric(seed, 20) / 10, np.random.default_rng(seed + 1).standard_normal(20)
    v /= np.linalg.norm(v)
    found = lanczos(lambda x: H @ x, v, steps)
    assert len(found.nodes) == steps
    for k in range(2 * steps):
        moment = v @ np.linalg.matrix_power(H, k) @ v
        np.testing.assert_allclose(found.weights @ found.nodes**k, moment, rtol=1e-7, atol=1e-9)


def test_no_eigenvalue_comes_twice_however_many_steps() -> None:
    """Without the earlier directions taken out, a spectrum like this one brings copies of its largest."""
    values = np.concatenate([np.linspace(0, 1, 60), [50.0, 100.0]])
    found = lanczos(lambda v: values * v, np.ones(62), 60)
    assert (found.nodes > 10).sum() == 2


def test_few_distinct_eigenvalues_end_it_early() -> None:
    found = lanczos(lambda v: np.array([2.0, 2.0, 5.0, 5.0]) * v, np.ones(4), 4)
    np.testing.assert_allclose(found.nodes, [2.0, 5.0])
    np.testing.assert_allclose(found.weights, [0.5, 0.5])
    assert lanczos(np.zeros_like, np.ones(3), 5).nodes.tolist() == [0.0]


@pytest.mark.parametrize(
    ("nodes", "weights", "expected"),
    [
        ([-1.0, 2.0], [0.4, 0.6], 0.6),  # nothing between 0 and 0.3: three quiet steps
        ([0.05, 0.15, 0.25, 2.0], [0.1, 0.1, 0.1, 0.7], 0.7),  # three steps that tell, then three quiet ones
        ([0.05, 0.15, 0.55, 2.0], [0.004, 0.1, 0.196, 0.7], 0.896),  # stops before the step at 0.5
        ([0.11, 0.17, 2.0], [0.3, 0.4, 0.3], 0.3),  # no half gone at 0.1; at 0.2 it is, and then nothing goes
        ([0.01, 0.11, 2.0], [0.6, 0.1, 0.3], 0.4),  # half gone at 0.1, 0.05, …: steps of 0.00625 end before 0.11
        ([0.25, 2.0], [0.2, 0.8], 0.8),  # two quiet steps are not three
        ([-3.0, -1.0], [0.5, 0.5], 0.0),
    ],
)
def test_the_threshold_rises_until_three_steps_tell_nothing(
    nodes: list[float], weights: list[float], expected: float
) -> None:
    assert kept_share(Spectrum(np.array(nodes), np.array(weights))) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(1e-6, 1e6))
def test_the_share_is_one_and_it_ends(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.random(20)
    share = kept_share(Spectrum(np.sort(rng.standard_normal(20)) * scale, weights / weights.sum()))
    assert 0.0 <= share <= 1.0
