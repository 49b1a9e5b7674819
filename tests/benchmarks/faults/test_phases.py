import pytest

from benchmarks.faults.phases import Doing, Watched, serving
from benchmarks.faults.records import Record

A_ROUND = [
    ("started", {"outbox": []}, Doing.STARTING),
    ("dialled", {}, Doing.CONNECTING),
    ("welcome", {}, Doing.WAITING),
    ("wait", {}, Doing.WAITING),
    ("task", {}, Doing.DOWNLOADING),
    ("training", {}, Doing.TRAINING),
    ("dialled", {}, Doing.TRAINING),  # the link came back: it trains all the same
    ("welcome", {}, Doing.TRAINING),
    ("trained", {}, Doing.STORING),
    ("offer", {"size": 30}, Doing.UPLOADING),
    ("credit", {"have": 0}, Doing.UPLOADING),
    ("chunk", {"end": 20}, Doing.UPLOADING),
    ("chunk", {"end": 30}, Doing.CHECKING),
    ("credit", {"have": 20}, Doing.CHECKING),
    ("ack", {}, Doing.WAITING),
    ("started", {"outbox": []}, Doing.STARTING),
]


def record(kind: str, fields: dict[str, object]) -> Record:
    return Record(at=0.0, kind=kind, fields=fields)


def test_an_account_shows_what_a_device_does() -> None:
    device = Watched()
    for kind, fields, expected in A_ROUND:
        assert device.feed([record(kind, fields)]).doing is expected, kind


def test_a_device_that_dies_training_starts() -> None:
    assert Watched().feed([record("training", {}), record("started", {})]).doing is Doing.STARTING


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], Doing.WAITING),
        ([Doing.TRAINING, Doing.WAITING], Doing.WAITING),
        ([Doing.DOWNLOADING, Doing.UPLOADING], Doing.UPLOADING),
        ([Doing.UPLOADING, Doing.CHECKING], Doing.CHECKING),
    ],
)
def test_the_aggregator_is_named_by_the_furthest_of_what_devices_want(devices: list[Doing], expected: Doing) -> None:
    watched = [Watched() for _ in devices]
    for device, doing in zip(watched, devices, strict=True):
        device.doing = doing
    assert serving(watched) is expected
