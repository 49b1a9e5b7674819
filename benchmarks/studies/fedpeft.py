"""FedPEFT: parts of a vision transformer tuned by more or fewer devices, at equal budgets, and under noise.

Reference: Sun et al., "Exploring Parameter-Efficient Fine-Tuning for Improving Communication Efficiency in Federated
Learning", 2022, arXiv:2210.01708; settings as in the authors' research code. Here: a ViT of about 1.3 M parameters,
pretrained on five of CIFAR-10's classes, instead of ViT-B; the other five instead of CIFAR-100; an adapter that learns,
where the released one starts dead; differential privacy with clipped examples and one account over all rounds, where
the released code adds noise to gradients that nothing bounds. AdamW instead of SGD, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.data.partitions import Scheme
from benchmarks.studies.claims import Claim
from benchmarks.studies.cli import study_command
from benchmarks.studies.design import Arm, Condition, Preset, Study

__all__ = ["STUDY", "plan"]

_ARMS = {
    "full": Arm(method="full", learning_rates=(3e-4, 1e-3)),
    "bias": Arm(method="bitfit", learning_rates=(3e-3, 1e-2)),
    "adapter": Arm(
        method="adapter", options={"placement": "pfeiffer", "widths": (16,)}, rank=16, learning_rates=(3e-3, 1e-2)
    ),
    "prompt": Arm(method="vpt", options={"length": 10}, learning_rates=(1e-2, 3e-2)),
    "head": Arm(method="head", learning_rates=(3e-3, 1e-2)),
}
_GRID = {(16, 1.0): "16 devices, all", (16, 0.125): "16, 1/8", (64, 1.0): "64, all", (64, 0.125): "64, 1/8"}
"""Clients and participation, FedPEFT's "client stability"."""
_NOISE = {"noise_multiplier": 0.6, "clip_norm": 1.0, "delta": 1e-3}


def _skewed(
    clients: int,
    participation: float,
    *,
    alpha: float = 0.1,
    train_rows: int | None = None,
    private: bool = False,
    arms: Sequence[str] | None = None,
) -> Condition:
    return Condition(
        clients=clients,
        participation=participation,
        scheme=Scheme.CLASS_DIRICHLET,
        alpha=alpha,
        train_rows=train_rows,
        local=_NOISE if private else {},
        arms=arms,
        own_rates=private,
    )


_FEWER = {"64, 1/16": 1 / 16, "64, 1/32": 1 / 32, "64, 1/64": 1 / 64}
"""Participation at which full fine-tuning sends fewer bytes, down to one device a round."""
_CONDITIONS = {
    **{name: _skewed(clients, share) for (clients, share), name in _GRID.items()},
    **{name: _skewed(64, share, arms=("full",)) for name, share in _FEWER.items()},
    "300 rows": _skewed(16, 1.0, train_rows=300),
    "1000 rows": _skewed(16, 1.0, train_rows=1000),
    "alpha 0.5": _skewed(16, 1.0, alpha=0.5),
    "private": _skewed(16, 1.0, alpha=0.5, private=True),
}


def _ordered(what: str, above: str, below: str, margin: float = 0.0) -> Claim:
    first = _GRID[16, 1.0]
    return Claim(what=what, ahead=[(above, first)], behind=[(below, first)], margin=margin)


STUDY = Study(
    name="fedpeft",
    question="Which part of a vision transformer should devices tune, when many, few or noisy ones take part?",
    arms=_ARMS,
    conditions=_CONDITIONS,
    presets={
        "tiny": Preset(
            tasks=("cifar10",),
            arms=("prompt", "head"),
            conditions=(_GRID[16, 1.0],),
            seeds=1,
            rounds=1,
            batch_size=8,
            train_rows=60,
            validation_rows=20,
            test_rows=20,
        ),
        "quick": Preset(
            tasks=("cifar10",),
            conditions=(_GRID[16, 1.0],),
            seeds=1,
            rounds=5,
            batch_size=16,
            train_rows=1000,
            validation_rows=250,
            test_rows=500,
        ),
        "full": Preset(
            tasks=("cifar10",),
            seeds=3,
            rounds=25,
            batch_size=16,
            train_rows=2500,
            validation_rows=500,
            test_rows=None,
            score_every=5,
        ),
        "paper": Preset(
            tasks=("cifar10",),
            seeds=3,
            rounds=50,
            batch_size=64,
            train_rows=None,
            validation_rows=500,
            test_rows=None,
            score_every=5,
        ),
    },
    claims=(
        _ordered("prompt is ahead of head", "prompt", "head"),
        _ordered("adapter is no more than 1 point behind prompt", "adapter", "prompt", -0.01),
        _ordered("bias is no more than 1 point behind adapter", "bias", "adapter", -0.01),
        _ordered("bias is no more than 2 points behind full", "bias", "full", -0.02),
        *(
            Claim(
                what=f"bias with all of 64 devices is ahead of full with {share}",
                ahead=[("bias", _GRID[64, 1.0])],
                behind=[("full", share)],
            )
            for share in (_GRID[64, 0.125], *_FEWER)
        ),
        *(
            Claim(
                what=f"under noise full loses more than {arm}",
                ahead=[("full", "alpha 0.5"), (arm, "private")],
                behind=[("full", "private"), (arm, "alpha 0.5")],
            )
            for arm in ("bias", "prompt")
        ),
    ),
    vision=True,
)

plan = study_command(STUDY)
