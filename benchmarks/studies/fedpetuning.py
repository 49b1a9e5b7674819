"""FedPETuning: full fine-tuning beside adapters, LoRA, prefixes and biases, by labels, epochs and devices.

Reference: Zhang et al., "FedPETuning: When Federated Learning Meets the Parameter-Efficient Tuning Methods of
Pre-trained Language Models", Findings of ACL 2023; its settings and figures are those of the authors' released code.
Here: all-MiniLM-L6-v2 instead of RoBERTa-base unless ``--model`` names another, a linear head on the mean of its last
states, a materialised prefix on the wire instead of the network that makes it, and fewer devices, rows and rounds.
"""

from __future__ import annotations

from benchmarks.studies.amounts import FULL, QUICK
from benchmarks.studies.claims import Claim
from benchmarks.studies.cli import study_command
from benchmarks.studies.design import Arm, Condition, Preset, Regime, Study

__all__ = ["STUDY", "plan"]

_ARMS = {
    "full": Arm(method="full", learning_rates=(1e-4, 5e-4)),
    "adapter": Arm(method="adapter", options={"widths": (16,)}, rank=16, learning_rates=(1e-3, 5e-3)),
    "lora": Arm(method="lora", options={"target_modules": ("query", "value")}, rank=8, learning_rates=(1e-3, 5e-3)),
    "prefix": Arm(method="prefix", options={"length": 8, "reparametrised": True}, learning_rates=(1e-3, 5e-3)),
    "bitfit": Arm(method="bitfit", learning_rates=(1e-3, 5e-3)),
}
_CONDITIONS = {
    "alpha 1": Condition(),
    "alpha 0.1": Condition(alpha=0.1),
    "alpha 10": Condition(alpha=10.0),
    "2 epochs": Condition(epochs=2.0),
    "3 epochs": Condition(epochs=3.0),
    "cross-silo": Condition(clients=10, participation=1.0),
    "cross-device": Condition(clients=100, participation=0.1),
    "1,000 devices": Condition(clients=1000, participation=0.01),
    "centralised": Condition(regime=Regime.CENTRALISED),
    "alone": Condition(regime=Regime.ALONE),
}
_COLLAPSE = 0.1
"""A fall of ten points is a collapse; FedPETuning's are of 25 to 40."""


def _ordered(above: str, below: str) -> Claim:
    return Claim(what=f"{above} is ahead of {below}", ahead=[(above, "alpha 1")], behind=[(below, "alpha 1")])


def _collapses(arm: str) -> Claim:
    what = f"{arm} collapses at alpha 0.1"
    return Claim(what=what, ahead=[(arm, "alpha 1")], behind=[(arm, "alpha 0.1")], margin=_COLLAPSE)


def _keeps(arm: str) -> Claim:
    what = f"{arm} does not collapse at alpha 0.1"
    return Claim(what=what, ahead=[(arm, "alpha 0.1")], behind=[(arm, "alpha 1")], margin=-_COLLAPSE)


def _longer(arm: str, epochs: int) -> Claim:
    more, fewer = f"{epochs} epochs", "alpha 1" if epochs == 2 else f"{epochs - 1} epochs"
    what = f"{arm}: {epochs} local epochs help over {epochs - 1}"
    return Claim(what=what, ahead=[(arm, more)], behind=[(arm, fewer)])


STUDY = Study(
    name="fedpetuning",
    question="Full fine-tuning or a part of the model: what is lost, and what is saved on the wire?",
    arms=_ARMS,
    conditions=_CONDITIONS,
    presets={
        "tiny": Preset(
            tasks=("sst2",),
            arms=("lora", "prefix"),
            conditions=("alpha 1", "centralised", "alone"),
            seeds=2,
            rounds=1,
            batch_size=8,
            train_rows=80,
            validation_rows=16,
            test_rows=32,
        ),
        "quick": QUICK,
        "full": FULL,
        "paper": Preset(
            tasks=("rte", "mrpc", "sst2", "qnli", "qqp"),
            seeds=5,
            rounds=100,
            batch_size=32,
            train_rows=None,
            validation_rows=1000,
            test_rows=None,
        ),
    },
    claims=(
        _ordered("full", "adapter"),
        _ordered("adapter", "lora"),
        _ordered("lora", "prefix"),
        _ordered("prefix", "bitfit"),
        *(_collapses(arm) for arm in ("adapter", "prefix")),
        *(_keeps(arm) for arm in ("lora", "bitfit")),
        *(_longer(arm, epochs) for arm in _ARMS for epochs in (2, 3)),
    ),
)


plan = study_command(STUDY)
