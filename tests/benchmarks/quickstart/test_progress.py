import io

from benchmarks.quickstart.progress import FederationProgress
from benchmarks.stages import Stages


def step(number: int, loss: float = 0.5) -> dict[str, object]:
    return {"kind": "step", "step": number, "steps": 8, "loss": loss, "round": 1}


def delivered(accepted: bool = True) -> dict[str, object]:
    return {"kind": "round", "round": 1, "accepted": accepted, "reason": "" if accepted else "too large"}


def test_a_line_carries_the_seconds_since_the_start() -> None:
    out, now = io.StringIO(), iter([100.0, 103.4])
    Stages(lambda: next(now), out).say("hello")
    assert out.getvalue() == "[    3 s] hello\n"


def test_a_delivery_is_one_line_with_the_last_loss() -> None:
    out = io.StringIO()
    progress = FederationProgress(Stages(lambda: 0.0, out), 4, {"scipy": 8}, None)
    for event in (step(1), step(2, 0.25), delivered()):
        progress.show("scipy", event)
    assert out.getvalue() == "[    0 s] round 1/4  scipy      rank  8  loss 0.250  delivered\n"


def test_a_refusal_says_why() -> None:
    out = io.StringIO()
    FederationProgress(Stages(lambda: 0.0, out), 4, {"scipy": 8}, None).show("scipy", delivered(accepted=False))
    assert "refused: too large" in out.getvalue()


def test_a_terminal_shows_the_steps_of_all_devices_in_place() -> None:
    terminal = io.StringIO()
    progress = FederationProgress(Stages(lambda: 0.0, io.StringIO()), 4, {"a": 2, "b": 4}, terminal)
    progress.show("a", step(1))
    progress.show("b", step(3))
    last = terminal.getvalue().split("\r")[-1]
    assert "round 1/4: a 1/8  b 3/8" in last
    assert "\n" not in terminal.getvalue()
