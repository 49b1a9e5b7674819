"""What private training costs a device: the ε of all that its data went into, and whether there is budget for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from edge_client.errors import BudgetSpentError, ConfigError, PrivacyError
from edge_client.storage.ledger import Charge, Ledger, booked
from protocol import limits
from protocol.assignment import Assignment, AssignmentKind, LocalTraining

__all__ = ["Accountant", "Spent", "epsilon"]

_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)
"""Orders ``α`` of the Rényi divergence: whole ones, at which its formula for sampled noise is a finite sum."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a device's training has cost so far: ``(ε, δ)``, each example being there or not."""

    epsilon: float
    """``ε``."""
    delta: float
    """``δ`` that it is at."""


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """``ε`` at ``δ`` of all these steps together, by Rényi differential privacy.

    Args:
        charges: Steps whose noise is independent.
        delta: In (0, 1).

    Example:
        >>> round(epsilon([Charge(sampling_rate=0.01, noise_multiplier=4.0, steps=10_000)], 1e-5), 2)
        1.04

    Reference: Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019,
    arXiv:1908.10530, section 3.3.
    """
    return _epsilon(tuple(charges), delta)


@lru_cache(maxsize=4096)  # the simulated devices of one process have few histories between them
def _epsilon(charges: tuple[Charge, ...], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent  # with SciPy: seconds, and for private runs alone
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS)
    for charge in (each for each in charges if each.steps):  # the library takes no event that happens no time
        step = PoissonSampledDpEvent(charge.sampling_rate, GaussianDpEvent(charge.noise_multiplier))
        accountant.compose(step, charge.steps)
    return float(accountant.get_epsilon(delta))


class Accountant:
    """Admits what keeps to the privacy that the run, or the device, asks for, and keeps the books.

    Used from the thread that trains; :attr:`spent` may be read from any.

    Args:
        ledger: What earlier rounds cost, and other processes of this device before this one.
        epsilon_max: This device's own budget. It then trains privately or not at all, whatever the run asks.
            None: the run decides alone.

    Attributes:
        spent: The cost so far; None while nothing was trained privately.
    """

    def __init__(self, ledger: Ledger, epsilon_max: float | None = None) -> None:
        self._ledger, self._epsilon_max = ledger, epsilon_max
        self.spent = self._spent()

    def admit(self, assignment: Assignment, num_examples: int, *, capable: bool) -> Charge | None:
        """What an assignment will cost once its result is released; None where nobody asks for privacy.

        Args:
            assignment: What is asked for.
            num_examples: Local training examples.
            capable: Whether the trainer trains privately if asked to.

        Raises:
            BudgetSpentError: It would cost more than there is left.
            PrivacyError: Its result would tell of the data without noise, where noise was asked for.
            ConfigError: The settings are not those of DP-SGD with these examples.
        """
        local = assignment.local
        if not local.private and self._epsilon_max is None and not self._ledger.charges:
            return None
        if assignment.kind is not AssignmentKind.TRAIN:
            raise PrivacyError(
                f"asked to {assignment.kind}: metrics of this device's data would leave it without noise; training "
                "alone is private"
            )
        if not local.private:
            raise PrivacyError(
                "asked to train without noise, but this device trains privately: the operator has to set a "
                "noise_multiplier when the run is made"
            )
        if not capable:
            raise PrivacyError("the run asks for DP-SGD, which this trainer does not do: use EdgeClient's built-in one")
        charge = _charge(local, num_examples)
        after = epsilon(booked(self._ledger.charges, charge), local.delta)
        budget = min(each for each in (local.epsilon_max, self._epsilon_max, math.inf) if each is not None)
        if after > budget:
            before = 0.0 if self.spent is None else self.spent.epsilon
            raise BudgetSpentError(
                f"round {assignment.round} would bring this device from ε = {before:.4g} to {after:.4g} at "
                f"δ = {local.delta:g}, and its budget is ε = {budget:g}: it trains no more"
            )
        return charge

    def charge(self, charge: Charge, delta: float) -> Spent:
        """Books a charge, durably; only then may what it paid for be kept or sent."""
        self._ledger.add(charge, delta)
        self.spent = spent = Spent(epsilon=epsilon(self._ledger.charges, delta), delta=delta)
        return spent

    def _spent(self) -> Spent | None:
        if not self._ledger.charges:
            return None
        return Spent(epsilon=epsilon(self._ledger.charges, self._ledger.delta), delta=self._ledger.delta)


def _charge(local: LocalTraining, num_examples: int) -> Charge:
    faults = []
    if local.noise_multiplier < limits.NOISE_MULTIPLIER_MIN:
        faults.append(
            f"noise_multiplier is {local.noise_multiplier:g}, which is next to no noise: at least "
            f"{limits.NOISE_MULTIPLIER_MIN:g}"
        )
    if local.clip_norm <= 0:
        faults.append(f"clip_norm is {local.clip_norm:g}: noise hides nothing unless every example is clipped")
    if local.batch_size > num_examples:
        faults.append(
            f"batch_size is {local.batch_size}, and this device has {num_examples} examples: each would be sampled "
            "with a probability above 1; it needs more data, or the run a smaller batch"
        )
    if not 0 < local.delta * num_examples < 1:
        faults.append(f"delta is {local.delta:g}: expected above 0 and below 1/{num_examples}, one over its examples")
    if faults:
        raise ConfigError("the run's private training cannot be done here: " + "; ".join(faults))
    return Charge(
        sampling_rate=local.batch_size / num_examples,
        noise_multiplier=local.noise_multiplier,
        steps=local.steps(num_examples),
    )
