"""How much of a study on texts is run: in minutes to see that it works, and in hours to see what comes out."""

from benchmarks.studies.design import Preset

__all__ = ["FULL", "QUICK"]

QUICK = Preset(
    tasks=("sst2",),
    conditions=("alpha 1",),
    seeds=1,
    rounds=4,
    batch_size=8,
    train_rows=400,
    validation_rows=100,
    test_rows=200,
)
"""One column of the study."""
FULL = Preset(
    tasks=("sst2", "qqp"),
    seeds=3,
    rounds=15,
    batch_size=8,
    train_rows=2000,
    validation_rows=300,
    test_rows=600,
    score_every=3,
)
"""All of it; a study may take other rounds."""
