"""FedPepTAO: prefixes of the layers that devices find worth training, with momentum and control variates at the server.

Reference: Che et al., "Federated Learning of Large Language Models with Parameter-Efficient Prompt Tuning and Adaptive
Optimization", EMNLP 2023, arXiv:2310.15080; settings as in the authors' released code. Here: momentum that does not
depend on the order of arrival, one global test for every arm instead of each device's own, and layers that are chosen
by the devices within the run.
"""

from __future__ import annotations

from dataclasses import replace

from aggregator.optimizers import OptimizerName
from benchmarks.simulation.devices import Fleet
from benchmarks.studies.amounts import FULL, QUICK
from benchmarks.studies.claims import Claim
from benchmarks.studies.cli import study_command
from benchmarks.studies.design import Arm, Condition, Preset, Study

__all__ = ["STUDY", "plan"]

_PREFIX = {"length": 10}
_RATES = (3e-3, 1e-2)
_CONTROLLED = {"server_optimizer": OptimizerName.CONTROLLED_MOMENTUM}
_ARMS = {
    "fedpeptao": Arm(method="prefix", options=_PREFIX, learning_rates=_RATES, server={**_CONTROLLED, "probe_round": 2}),
    "all layers, controlled": Arm(method="prefix", options=_PREFIX, learning_rates=_RATES, server=_CONTROLLED),
    "momentum": Arm(
        method="prefix",
        options=_PREFIX,
        learning_rates=_RATES,
        server={"server_optimizer": OptimizerName.MOMENTUM, "server_learning_rate": 0.1},
    ),
    "p-tuning v2": Arm(method="prefix", options=_PREFIX, learning_rates=_RATES),
    "prompt": Arm(method="prompt", options=_PREFIX, learning_rates=(1e-2, 3e-2)),
    "adapter": Arm(method="adapter", options={"widths": (16,)}, rank=16, learning_rates=(1e-3, 5e-3)),
}


def _ahead(of: str) -> Claim:
    return Claim(what=f"fedpeptao is ahead of {of}", ahead=[("fedpeptao", "alpha 1")], behind=[(of, "alpha 1")])


_PHONES = Condition(
    clients=100,
    participation=0.1,
    server={"over_selection": 1.3, "quorum": 8, "deadline_s": 600.0},
    fleet=Fleet(step_s=2.0, up_bytes_per_s=2.5e5, down_bytes_per_s=1e6, there_s=1800.0, away_s=600.0),
)
"""A quarter of a hundred devices is away at a time; rounds close without the slowest ones."""

STUDY = Study(
    name="fedpeptao",
    question="Do fewer layers' prefixes, chosen by the devices, learn as well as all, and faster?",
    arms=_ARMS,
    conditions={"alpha 1": Condition(), "alpha 0.1": Condition(alpha=0.1), "phones": _PHONES},
    presets={
        "quick": QUICK,
        "full": replace(FULL, rounds=20, score_every=2),
        "paper": Preset(
            tasks=("rte", "mrpc", "sst2", "qnli", "cola"),
            seeds=3,
            rounds=100,
            batch_size=8,
            train_rows=None,
            validation_rows=1000,
            test_rows=None,
        ),
    },
    claims=tuple(_ahead(arm) for arm in _ARMS if arm != "fedpeptao"),
)

plan = study_command(STUDY)
