"""Control variates over dense tensors, kept on the server: each device's last mean gradient, against that of all.

Devices know nothing of them: they train and send as ever. What SCAFFOLD adds to every local step, ``c − c_k``, is added
here to the change as it arrives, which is the same to first order in the learning rate, and costs the wire nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

import numpy as np

from aggregator.merge import GlobalState, MergeError
from aggregator.merge.tensor_file import Stored, Tensors, prefixed, under, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import ClientUpdate, Round
    from protocol.manifest import Manifest

__all__ = ["Control", "ControlVariates", "Controls"]


@dataclass(frozen=True, kw_only=True)
class Control:
    """What is remembered of one device."""

    weight: float
    """``n_k``, its weight when it last came."""
    gradients: Mapping[str, NDArray[np.float64]]
    """``c_k`` by dense tensor: of those that it ever trained."""


@dataclass(frozen=True)
class Controls:
    """A value, stored with the version: 8 bytes for every value that a device trains, and every device that ever came.

    ``c`` is not kept: it is the mean of what is.
    """

    devices: Mapping[str, Control]
    """By SHA-256 of the device's key, hex, in the order of these: sums go in it."""

    def tensors(self) -> Tensors:
        """What is stored, by name."""
        stored = {f"{device}/weight": np.array([control.weight]) for device, control in self.devices.items()}
        for device, control in self.devices.items():
            stored |= prefixed(f"{device}/gradient", control.gradients)
        return stored

    @classmethod
    def of_tensors(cls, tensors: Stored, manifest: Manifest) -> Self:
        """What :meth:`tensors` told.

        Raises:
            MergeError: They are no controls, or not those of this manifest.
        """
        return cls({device: _control(device, tensors, manifest) for device in sorted({n[:64] for n in tensors})})


@final
@dataclass(frozen=True, kw_only=True)
class ControlVariates:
    """``d'_k = d_k − a_k·(c − c_k)``, then ``c'_k = −d_k/a_k``; ``c = Σ n_k·c_k / Σ n_k`` over all devices.

    ``d_k`` is what device ``k`` changed and ``a_k = K_k·η_k`` its steps times their learning rate, so that ``−d_k/a_k``
    is its mean gradient. ``c'_k`` is option II of SCAFFOLD, ``c_k − c − d'_k/a_k``, for the change as corrected: put in
    the uncorrected one, as the code released with FedPepTAO does, and ``c_k − c`` piles up from round to round. A
    device that never came has ``c_k = 0``. Over draws of the cohort the correction is zero on average, so the merged
    change stays unbiased, and its variance from who happens to be drawn goes away; with all devices in the cohort at
    one ``a_k`` it is nothing at all.

    From the second round on the model no longer changes by the weighted mean of what the cohort changed. Splitting a
    device in two changes nothing if both halves come together, and at one ``a_k``.

    Not for low-rank modules: a module's change is against the factors that one version handed out, so what is
    remembered of it would have to be its product, a whole matrix for every device.

    Reference: Karimireddy et al., "SCAFFOLD", 2020, arXiv:1910.06378, algorithm 1; Che et al., "Federated Learning of
    Large Language Models with Parameter-Efficient Prompt Tuning and Adaptive Optimization" (FedPepTAO), 2023,
    arXiv:2310.15080 (controls on the server).
    """

    population: int | None = None
    """Devices that cohorts are drawn from: those that never came count in ``c`` as zeros of mean weight. None, or fewer
    than those: all that ever came."""

    def __post_init__(self) -> None:
        if self.population is not None and self.population < 1:
            raise MergeError(f"population must be at least 1, or None for all that ever came, got {self.population}")

    def init(self, manifest: Manifest) -> Controls:
        """Nobody came yet.

        Raises:
            MergeError: There is a low-rank module.
        """
        if manifest.low_rank:
            raise MergeError(
                f"{manifest.low_rank[0].name!r} is a low-rank module, and control variates need dense tensors: a "
                "module's product would be a whole matrix for every device; use Momentum"
            )
        return Controls({})

    def correct(self, change: GlobalState, round: Round, controls: Controls) -> tuple[GlobalState, Controls]:
        """The merged change of corrected updates, of the tensors alone that were trained, and what to remember.

        Args:
            change: ``Σ p_k d_k`` of a round of dense tensors.
            round: What it was merged from, all against the live version.
            controls: Of the version that was handed out.
        """
        members = {_device(member.update): member for member in round.cohort.members}
        weights = {device: control.weight for device, control in controls.devices.items()}
        weights |= {device: float(member.update.num_examples) for device, member in members.items()}
        gradients = {device: dict(control.gradients) for device, control in controls.devices.items()}
        corrected = {}
        for tensor in round.manifest.dense:
            name = tensor.name
            trained = {device for device, member in members.items() if name in member.names}
            if not trained:
                continue
            known = {device: found[name] for device, found in gradients.items() if name in found}
            mean = self._mean(known, weights, known.keys() | trained)
            total = np.zeros(tensor.shape)
            for update, value in round.cohort.changes(tensor):
                device, length = _device(update), update.step_length
                total += round.cohort.weight(update) * length * (mean - known.get(device, 0.0))
                if length > 0:
                    gradients.setdefault(device, {})[name] = value / -length
            corrected[name] = change.dense[name] - round.server_learning_rate * total
        after = {d: Control(weight=weights[d], gradients=found) for d, found in sorted(gradients.items())}
        return GlobalState(low_rank={}, dense=corrected), Controls(after)

    def _mean(
        self, known: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float], devices: Set[str]
    ) -> NDArray[np.float64] | float:
        """``c`` of one tensor, the devices that have no control of it yet being zeros."""
        total = sum((weights[device] * gradient for device, gradient in known.items()), start=0.0)
        absent = max(len(devices), self.population or 0) / len(devices)
        return total / (absent * sum(sorted(weights[device] for device in devices)))


def _device(update: ClientUpdate) -> str:
    return hashlib.sha256(update.client.encode()).hexdigest()


def _control(device: str, tensors: Stored, manifest: Manifest) -> Control:
    shapes = {tensor.name: tensor.shape for tensor in manifest.dense}
    found = {name: whole(value) for name, value in under(device, tensors).items()}
    weight, gradients = found.pop("weight", np.zeros(0)), under("gradient", found)
    if weight.shape != (1,) or len(gradients) != len(found):
        raise MergeError(f"stored controls: {device!r} is no device with a weight and gradients; is it of another run?")
    wrong = [name for name, value in gradients.items() if shapes.get(name) != value.shape]
    if wrong:
        raise MergeError(f"stored controls: {min(wrong)!r} is no dense tensor of this run of that shape")
    return Control(weight=float(weight[0]), gradients=gradients)
