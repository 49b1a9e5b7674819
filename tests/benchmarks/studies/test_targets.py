"""What runs take to a target, from curves that were written down."""

from collections.abc import Sequence

from benchmarks.studies.targets import Effort, effort, target_of, target_table


def record(arm: str, scores: Sequence[float], *, seed: int = 0, slow: int = 1) -> dict[str, object]:
    curve = [
        {"round": n, "accuracy": score, "bytes_up": 100 * n, "bytes_down": 900 * n, "virtual_s": 60.0 * n * slow}
        for n, score in enumerate(scores)
    ]
    return {"task": "sst2", "arm": arm, "condition": "phones", "seed": seed, "curve": curve}


def test_a_target_is_a_share_of_the_best_gain_over_the_untrained_model() -> None:
    assert target_of(record("a", [0.5, 0.6, 0.9, 0.7])) == 0.5 + 0.8 * 0.4
    assert target_of(record("a", [0.5, 0.5, 0.4])) is None


def test_effort_is_counted_to_the_first_point_that_is_good_enough() -> None:
    run = record("a", [0.5, 0.6, 0.9, 0.8, 0.9])
    assert effort(run, 0.8) == Effort(rounds=2, total_bytes=2000, virtual_s=120.0)
    assert effort(run, 0.95) is None


def test_all_arms_of_a_condition_have_the_target_of_the_first_one_with_the_same_seed() -> None:
    runs = [
        record("first", [0.5, 0.6, 0.9]),
        record("first", [0.5, 0.7, 0.7], seed=1),
        record("second", [0.5, 0.7, 0.75], slow=9),
        record("second", [0.5, 0.7, 0.7], seed=1, slow=9),
        {**record("second", [0.5, 0.99], seed=2), "condition": "other"},
    ]
    title, *lines = target_table(["first", "second"], runs, "phones").splitlines()
    assert title.startswith("phones: to 80% of the gain of first")
    cells = [line.split() for line in lines]
    assert [row[:5] for row in cells] == [["first", "sst2", "2", "of", "2"], ["second", "sst2", "1", "of", "2"]]
    assert [row[-1] for row in cells] == ["90", "540"]


def test_where_the_reference_gained_nothing_there_is_no_table() -> None:
    assert (
        target_table(["first", "second"], [record("first", [0.5, 0.4]), record("second", [0.5, 0.9])], "phones") == ""
    )
