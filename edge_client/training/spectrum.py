"""The spectrum of a loss's Hessian over the trainables, by Lanczos, and the share of it that FedPepTAO keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Spectrum", "hessian_product", "kept_share", "lanczos"]

Product = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]
"""``v ↦ Hv`` of a symmetric ``H``."""

_FIRST_STEP = 0.1
_STEP_MIN = 1e-12
_QUIET = 0.005
_QUIET_STEPS = 3


@dataclass(frozen=True)
class Spectrum:
    """Point masses: the quadrature of a symmetric matrix's spectral density as one start vector sees it."""

    nodes: NDArray[np.float64]
    """Ritz values, ascending."""
    weights: NDArray[np.float64]
    """Their masses; the sum is 1."""

    def above(self, threshold: float) -> float:
        """Mass of what is larger."""
        return float(self.weights[self.nodes > threshold].sum())


def hessian_product(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Product:
    """``v ↦ ∇²loss·v`` by double backward, over all parameters as one vector.

    Args:
        loss: A scalar with its graph, which must be twice differentiable: attention by PyTorch's ``MATH`` kernel.
        parameters: At least one; those that the loss does not depend on have zero curvature.

    Reference: Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994, Neural Computation 6(1).
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    slope = torch.cat([gradient.flatten() for gradient in gradients])
    curved = slope.requires_grad

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        if not curved:
            return np.zeros_like(v)
        direction = torch.from_numpy(v).to(slope)
        found = torch.autograd.grad(slope @ direction, parameters, retain_graph=True, materialize_grads=True)
        flat: NDArray[np.float64] = torch.cat([part.flatten() for part in found]).double().cpu().numpy()
        return flat

    return product


def lanczos(product: Product, start: NDArray[np.float64], steps: int) -> Spectrum:
    """Gauss quadrature of the spectral density: exact for polynomials of degree below ``2·steps``.

    Averaged over random starts this is stochastic Lanczos quadrature; all earlier directions are taken out of each new
    one, or eigenvalues found once would come again.

    Args:
        product: ``v ↦ Hv``.
        start: ``[n]``, not zero.
        steps: Products at most; fewer where the start's directions are used up. Memory is ``8·n·steps`` bytes.

    Reference: Ghorbani, Krishnan, Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
    2019, arXiv:1901.10159, section 2.
    """
    basis = np.empty((min(steps, len(start)), len(start)))
    basis[0] = start / np.linalg.norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        span = basis[: len(diagonal) + 1]
        image = product(span[-1])
        diagonal.append(float(span[-1] @ image))
        for _ in range(2):  # once leaves what rounding leaves
            image = image - span.T @ (span @ image)
        length = float(np.linalg.norm(image))
        if len(diagonal) == len(basis) or length <= 1e-10 * max(1e-300, *map(abs, diagonal), *beside):
            break
        beside.append(length)
        basis[len(diagonal)] = image / length
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return Spectrum(nodes, vectors[0] ** 2)


def kept_share(spectrum: Spectrum) -> float:
    """The share of the spectrum above the threshold at which raising it further changes little.

    The threshold goes up from 0 in steps of 0.1 until the share has changed by less than 0.005 three times running.
    Where the first step alone takes more than half of it, the step is halved, as often as needed.

    The paper's own rule, the first gap of the eigenvalues above four times a Lipschitz constant, asks for a constant
    that has to be found first; this is the rule of the code released with it, on the point masses as they are.

    Reference: Che et al. (FedPepTAO), 2023, arXiv:2310.15080, section 3.3, and ``llm-eff/FedPepTAO``.

    Example:
        >>> kept_share(Spectrum(np.array([-1.0, 0.05, 0.25, 3.0]), np.array([0.25, 0.15, 0.25, 0.35])))
        0.35
    """
    step = _FIRST_STEP
    while spectrum.above(step) < spectrum.above(0.0) / 2 and step > _STEP_MIN:
        step /= 2
    threshold, quiet = 0.0, 0
    while quiet < _QUIET_STEPS:
        change = spectrum.above(threshold) - spectrum.above(threshold + step)
        threshold, quiet = threshold + step, quiet + 1 if change < _QUIET else 0
    return spectrum.above(threshold)
