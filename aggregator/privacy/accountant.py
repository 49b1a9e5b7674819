"""What the noise on the merges costs every device: ``ε`` of all rounds together."""

from __future__ import annotations

import math

from aggregator.errors import ConfigError

__all__ = ["epsilon"]


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """``ε`` at ``δ`` of a device whose change counted in every one of so many merges: exact.

    Gaussian noises of ``σ`` on ``T`` sums are together one of ``σ/√T``. Nothing is taken off for devices that are not
    drawn: a place that falls free goes to whoever asks first, so a cohort is no uniform sample, and amplification by
    sampling would claim more than is true.

    Args:
        noise_multiplier: ``σ``: deviation of the noise on the sum over the clipping norm.
        rounds: ``T``, merges so far.
        delta: ``δ``.

    Raises:
        ConfigError: The library is not installed.

    Reference: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018, arXiv:1805.06530,
    theorem 8; Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv:1905.02383, corollary 2 (composition).
    """
    if rounds == 0:
        return 0.0
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError as error:
        raise ConfigError(
            f"server_noise_multiplier needs dp-accounting ({error}): pip install 'tributary-fl[privacy]'"
        ) from error
    return float(get_epsilon_gaussian(noise_multiplier / math.sqrt(rounds), delta))
