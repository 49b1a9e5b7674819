"""The auditor finds what it is there to find: each count is tried on a run where something went wrong."""

from dataclasses import replace

import pytest

from aggregator.store.journal import UploadRow, VersionRow
from aggregator.store.rows import UploadState
from benchmarks.faults.audit import Resume, Trainings, acknowledged_lost, counted_twice, resumes, trainings
from benchmarks.faults.evidence import JournalRows
from benchmarks.faults.records import Record
from protocol.codecs import Codec

MIB = 1 << 20


def upload(round_number: int, client: str, state: UploadState = UploadState.MERGED) -> UploadRow:
    name = f"{round_number} {client}"
    return UploadRow(
        id=name,
        round=round_number,
        client=client,
        token=f"token {name}",
        sha256=f"digest {name}",
        size=1,
        num_examples=1,
        metrics_json="{}",
        state=state,
    )


def version(number: int) -> VersionRow:
    return VersionRow(version=number, round=number, state_digest="", body_digest="", codec=Codec.BF16, slots=1)


def journal(*uploads: UploadRow, versions: int = 2) -> JournalRows:
    return JournalRows(versions=[version(number) for number in range(versions)], uploads=uploads, assignments={})


def told(*lines: tuple[float, str, dict[str, object]]) -> list[Record]:
    return [Record(at=at, kind=kind, fields=fields) for at, kind, fields in lines]


def test_an_acknowledged_update_is_safe_merged_or_while_its_round_is_open() -> None:
    rows = journal(upload(1, "a"), upload(2, "a", UploadState.DURABLE))
    assert acknowledged_lost(["1 a", "2 a"], rows) == 0


@pytest.mark.parametrize("state", [state for state in UploadState if state is not UploadState.MERGED])
def test_an_acknowledged_update_that_its_version_lacks_is_lost(state: UploadState) -> None:
    assert acknowledged_lost(["1 a"], journal(upload(1, "a", state))) == 1


def test_an_acknowledged_update_that_the_journal_does_not_know_is_lost() -> None:
    assert acknowledged_lost(["1 a", "1 b"], journal(upload(1, "a"))) == 1


def test_one_update_a_device_and_round_is_counted_once() -> None:
    assert counted_twice(journal(upload(1, "a"), upload(1, "b"), upload(2, "a"))) == 0


def test_two_updates_of_a_device_in_a_round_count_twice() -> None:
    again = replace(upload(1, "a"), id="other", sha256="other")
    assert counted_twice(journal(upload(1, "a"), again)) == 1


def test_an_update_that_comes_again_in_another_round_counts_twice() -> None:
    again = replace(upload(2, "a"), sha256="digest 1 a")
    assert counted_twice(journal(upload(1, "a"), again, versions=3)) == 1


def test_a_refused_update_counts_nothing() -> None:
    refused = replace(upload(1, "a", UploadState.REJECTED), id="other", sha256="other")
    assert counted_twice(journal(upload(1, "a"), refused)) == 0


TRAINING = (1.0, "training", {"round": 1, "token": "t"})


def test_a_training_that_was_killed_is_begun_again_with_reason() -> None:
    records = told((0.0, "started", {"outbox": []}), TRAINING, (2.0, "started", {"outbox": []}), TRAINING)
    assert trainings(records) == Trainings(begun=2, interrupted=1, needless=0)


@pytest.mark.parametrize("kept", [(2.0, "started", {"outbox": ["t"]}), (2.0, "offer", {"token": "t"})])
def test_a_training_of_what_is_in_the_outbox_is_needless(kept: tuple[float, str, dict[str, object]]) -> None:
    records = told((0.0, "started", {"outbox": []}), TRAINING, kept, (3.0, "started", {"outbox": []}), TRAINING)
    assert trainings(records) == Trainings(begun=2, interrupted=0, needless=1)


def broken_upload(have: int, sent: int = 12 * MIB) -> list[Record]:
    offer = {"upload": "u", "token": "t", "size": 16 * MIB}
    return told(
        (1.0, "offer", offer),
        (1.1, "credit", {"upload": "u", "have": 0}),
        (1.2, "chunk", {"upload": "u", "end": sent}),
        (2.0, "started", {"outbox": ["t"]}),
        (3.0, "offer", offer),
        (3.1, "credit", {"upload": "u", "have": have}),
        (3.2, "chunk", {"upload": "u", "end": 16 * MIB}),
        (3.3, "credit", {"upload": "u", "have": 16 * MIB}),
    )


def test_a_resumed_upload_is_measured_once_where_it_goes_on() -> None:
    (found,) = resumes(broken_upload(have=10 * MIB), aggregator_kills=[0.5, 3.5])
    assert found == Resume(at=3.1, sent=12 * MIB, have=10 * MIB, size=16 * MIB, aggregator_died=False)
    assert found.resent == 2 * MIB
    assert found.limit == 4 * MIB


@pytest.mark.parametrize("killed_at", [1.15, 1.5])  # a device may go on sending before it notices
def test_a_dead_aggregator_may_lose_what_it_had_not_journalled(killed_at: float) -> None:
    (found,) = resumes(broken_upload(have=0, sent=11 * MIB), aggregator_kills=[killed_at])
    assert found.aggregator_died
    assert found.resent <= found.limit == 12 * MIB


def test_an_upload_that_begins_anew_while_the_aggregator_lives_is_over_the_limit() -> None:
    (found,) = resumes(broken_upload(have=0), aggregator_kills=[])
    assert found.resent > found.limit


def test_a_death_is_remembered_over_an_offer_that_nobody_answered() -> None:
    first, *rest = broken_upload(have=0, sent=11 * MIB)
    records = sorted([first, *rest, replace(first, at=2.5)], key=lambda record: record.at)
    assert [found.aggregator_died for found in resumes(records, aggregator_kills=[1.5])] == [True]


def test_an_upload_that_was_never_begun_is_not_resumed() -> None:
    offer = (1.0, "offer", {"upload": "u", "token": "t", "size": 16})
    assert list(resumes(told(offer, offer, (2.0, "credit", {"upload": "u", "have": 0})), [])) == []
