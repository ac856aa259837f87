"""Order, repetitions and gaps of the records of one partition, against a model of what arrived."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.consumer.record_orderer import Gap, OrderSettings, RecordOrderer
from agent.consumer.stream_record import MessagePosition, StreamRecord

SETTINGS: Final = OrderSettings(hold_seconds=2.0, max_held_records=50)
HOST: Final = "/hosts/hv7"


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def record(
    number: int, previous: int | None, *, vm: str = "a", run: int = 1, previous_run: int | None = None, offset: int = 0
) -> StreamRecord:
    """Return a record of a VM with these places in the order of runs of the agent; None for a record without predecessor."""
    attributes = {"id": f"{run}-{number}", "source": f"{HOST}/vms/{vm}", "sequence": f"{run:010}{number:012}"}
    if previous is not None:
        attributes["previoussequence"] = f"{previous_run or run:010}{previous:012}"
    return StreamRecord(MessagePosition("qemu.events", 0, offset), attributes, {}, datetime(2026, 11, 30, tzinfo=UTC))


def chain(*numbers: int, vm: str = "a", run: int = 1) -> list[StreamRecord]:
    """Return records that follow each other without a gap, from the first one of a run."""
    return [
        record(number, previous, vm=vm, run=run) for previous, number in zip((None, *numbers), numbers, strict=False)
    ]


def numbers(items: list[StreamRecord | Gap]) -> list[str]:
    """Return the ids of records, and for each gap the ends of it, or that it is unknown whether records are missing."""
    return [item.id if isinstance(item, StreamRecord) else _describe_gap(item) for item in items]


def _describe_gap(gap: Gap) -> str:
    return f"{gap.after[-1:]}<missing<={gap.through[-1:]}" if gap.is_certain else f"{gap.after[-1:]}<unknown"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def orderer(clock: Clock) -> RecordOrderer:
    return RecordOrderer(SETTINGS, clock, complete=True)


def add_all(orderer: RecordOrderer, records: list[StreamRecord]) -> list[str]:
    return numbers([item for added in records for item in orderer.add(added)])


def test_a_repetition_is_dropped_and_counted(orderer: RecordOrderer) -> None:
    one, two = chain(1, 2)
    assert add_all(orderer, [one, two, one, two]) == ["1-1", "1-2"]
    assert orderer.duplicates == 2


def test_a_record_waits_for_its_predecessor(orderer: RecordOrderer) -> None:
    one, two, three = chain(1, 4, 7)
    assert add_all(orderer, [one, three]) == ["1-1"]
    assert add_all(orderer, [two]) == ["1-4", "1-7"]


def test_a_missing_record_is_reported_when_its_successor_has_waited(orderer: RecordOrderer, clock: Clock) -> None:
    one, _, three, four = chain(1, 2, 3, 4)
    assert add_all(orderer, [one, three, four]) == ["1-1"]
    clock.now = 1.9
    assert orderer.release_overdue() == []
    clock.now = 2.0
    assert numbers(orderer.release_overdue()) == ["1<missing<=2", "1-3", "1-4"]


def test_a_record_that_comes_after_its_gap_is_handed_on_once(orderer: RecordOrderer) -> None:
    one, two, three = chain(1, 2, 3)
    add_all(orderer, [one, three])
    orderer.release_all()
    assert add_all(orderer, [two, two]) == ["1-2"]
    assert (orderer.late_records, orderer.duplicates) == (1, 1)


def test_the_loss_of_the_first_records_of_a_run_is_a_gap(orderer: RecordOrderer) -> None:
    add_all(orderer, chain(1, 2))
    assert add_all(orderer, chain(1, 2, run=2)[1:]) == []
    assert numbers(orderer.release_all()) == ["<missing<=1", "2-2"]


def test_a_run_that_continues_the_run_before_has_no_gap(orderer: RecordOrderer) -> None:
    add_all(orderer, chain(1, 2))
    assert add_all(orderer, [record(1, 2, run=2, previous_run=1), record(4, 1, run=2)]) == ["2-1", "2-4"]
    assert add_all(orderer, [record(2, 4, run=3, previous_run=2), *chain(1, 2)]) == ["3-2"]
    assert orderer.duplicates == 2


def test_the_loss_of_the_last_records_of_a_run_is_a_gap(orderer: RecordOrderer, clock: Clock) -> None:
    add_all(orderer, chain(1, 2))
    assert add_all(orderer, [record(1, 4, run=2, previous_run=1)]) == []
    clock.now = 2.0
    assert numbers(orderer.release_overdue()) == ["2<missing<=4", "2-1"]
    assert add_all(orderer, chain(1, 2, 3, 4)) == ["1-3", "1-4"], "they are late"


def test_a_run_whose_records_arrive_in_another_order_continues_the_run_before(orderer: RecordOrderer) -> None:
    add_all(orderer, chain(1, 2))
    assert add_all(orderer, [record(2, 1, run=2), record(3, 2, run=2)]) == []
    assert add_all(orderer, [record(1, 3, run=2, previous_run=1)]) == []
    assert add_all(orderer, [record(3, 2)]) == ["1-3", "2-1", "2-2", "2-3"]


def test_the_loss_of_a_whole_run_is_a_gap(orderer: RecordOrderer) -> None:
    add_all(orderer, chain(1, 2))
    assert add_all(orderer, [record(1, 5, run=3, previous_run=2)]) == []
    assert numbers(orderer.release_all()) == ["2<missing<=5", "3-1"]


def test_a_run_that_does_not_know_the_run_before_may_follow_lost_records(orderer: RecordOrderer) -> None:
    assert add_all(orderer, [*chain(1, 2), *chain(1, 2, run=2)]) == ["1-1", "1-2", "2<unknown", "2-1", "2-2"]


def test_a_run_that_continues_an_older_record_may_follow_lost_ones(orderer: RecordOrderer) -> None:
    add_all(orderer, chain(1, 2, 3))
    later = [record(1, 2, run=2, previous_run=1), record(2, 1, run=2)]
    assert add_all(orderer, later) == ["3<unknown", "2-1", "2-2"]


def test_a_record_without_predecessor_may_follow_lost_ones(orderer: RecordOrderer) -> None:
    assert add_all(orderer, [*chain(1, 2), record(7, None), record(8, 7)]) == ["1-1", "1-2", "2<unknown", "1-7", "1-8"]


def test_a_consumer_that_begins_in_the_middle_reports_no_gap(clock: Clock) -> None:
    midway = RecordOrderer(SETTINGS, clock, complete=False)
    assert add_all(midway, chain(1, 2, 3)[1:]) == ["1-2", "1-3"]
    assert numbers(midway.release_all()) == []


def test_a_record_from_before_the_start_of_the_consumer_is_not_counted_as_late(clock: Clock) -> None:
    midway = RecordOrderer(SETTINGS, clock, complete=False)
    one, two, three, _, five = chain(1, 2, 3, 4, 5)
    assert add_all(midway, [three, two, one, one]) == ["1-3", "1-2", "1-1"]
    assert (midway.late_records, midway.duplicates) == (0, 1)
    midway.add(five)
    midway.release_all()
    assert add_all(midway, [chain(1, 2, 3, 4)[3]]) == ["1-4"]
    assert midway.late_records == 1


def test_runs_of_an_agent_whose_clock_was_set_back_are_all_handed_on(orderer: RecordOrderer) -> None:
    later, earlier = chain(1, 2, run=9), chain(1, 2, run=3)
    assert add_all(orderer, [*later, *earlier, *later]) == ["9-1", "9-2", "2<unknown", "3-1", "3-2"]


def test_the_last_four_runs_of_each_source_are_remembered(orderer: RecordOrderer) -> None:
    runs = [chain(1, 2, run=run) for run in (1, 2, 3, 4)]
    for records in runs:
        assert add_all(orderer, records)[-2:] == [sent.id for sent in records]
    assert add_all(orderer, [repeated for records in runs for repeated in records]) == []
    add_all(orderer, chain(1, run=5))
    assert add_all(orderer, [*runs[1], *runs[0]]) == ["1<unknown", "1-1", "1-2"]


def test_a_gap_of_one_vm_delays_no_other_vm(orderer: RecordOrderer) -> None:
    one, _, three = chain(1, 2, 3)
    other = chain(1, 2, vm="b")
    assert add_all(orderer, [one, three, *other]) == ["1-1", "1-1", "1-2"]


def test_records_beyond_the_limit_do_not_wait(orderer: RecordOrderer) -> None:
    _, *rest = chain(*range(1, 60))
    assert add_all(orderer, rest[:50]) == []
    assert add_all(orderer, rest[50:52])[:2] == ["<missing<=1", "1-2"]


def test_the_first_held_offset_bounds_what_may_be_committed(orderer: RecordOrderer) -> None:
    orderer.add(record(1, None, offset=10))
    assert orderer.first_held_offset is None
    orderer.add(record(3, 2, offset=11))
    orderer.add(record(1, None, vm="b", offset=12))
    assert orderer.first_held_offset == 11


def test_the_oldest_sources_are_forgotten_beyond_the_limit(clock: Clock) -> None:
    orderer = RecordOrderer(OrderSettings(max_sources=2), clock, complete=True)
    for vm in "abc":
        add_all(orderer, chain(1, vm=vm))
    assert add_all(orderer, chain(1, vm="c")) == []
    assert add_all(orderer, chain(1, vm="a")) == ["1-1"]


@st.composite
def linked_deliveries(draw: st.DrawFn) -> tuple[list[StreamRecord], list[StreamRecord]]:
    """Return records as `deliveries`, whose runs continue each other."""
    sent: list[StreamRecord] = []
    for vm in "ab":
        previous: tuple[int, int] | None = None
        for run in (1, 2, 3):
            for number in range(1, draw(st.integers(0, 4)) + 1):
                before, before_run = (previous[1], previous[0]) if previous else (None, None)
                sent.append(record(number, before, vm=vm, run=run, previous_run=before_run))
                previous = run, number
    return sent, draw(st.lists(st.sampled_from(sent), max_size=40)) if sent else []


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[StreamRecord], list[StreamRecord]]:
    """Return the records that agents sent, and those that arrived: some are lost, some repeated, some out of order."""
    sent = [
        sent_record
        for vm in "ab"
        for run in (1, 2, 3)
        for sent_record in chain(*range(1, draw(st.integers(0, 6)) + 1), vm=vm, run=run)
    ]
    if not sent:
        return [], []
    arrived = draw(st.lists(st.sampled_from(sent), max_size=40))
    return sent, arrived


@given(deliveries() | linked_deliveries(), st.lists(st.booleans(), min_size=40, max_size=40))
def test_each_record_that_arrives_is_handed_on_once_in_any_order(
    delivery: tuple[list[StreamRecord], list[StreamRecord]], overdue: list[bool]
) -> None:
    clock = Clock()
    orderer = RecordOrderer(SETTINGS, clock, complete=True)
    handed_on: list[StreamRecord | Gap] = []
    for arrived, is_overdue in zip(delivery[1], overdue, strict=False):
        handed_on += orderer.add(arrived)
        clock.now += 3.0 if is_overdue else 0.0
        handed_on += orderer.release_overdue()
    handed_on += orderer.release_all()
    keys = [(item.source, item.id) for item in handed_on if isinstance(item, StreamRecord)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(arrived.source, arrived.id) for arrived in delivery[1]}
    assert len(delivery[1]) - len(keys) == orderer.duplicates
    assert orderer.first_held_offset is None


@given(deliveries())
def test_gaps_are_exactly_the_records_that_did_not_arrive(
    delivery: tuple[list[StreamRecord], list[StreamRecord]],
) -> None:
    sent, arrived = delivery
    orderer = RecordOrderer(SETTINGS, Clock(), complete=True)
    handed_on = [item for added in arrived for item in orderer.add(added)] + orderer.release_all()
    received = {(item.source, item.sequence) for item in arrived}
    newest: dict[tuple[str, str], str] = defaultdict(str)
    for source, sequence in received:
        newest[source, sequence[:10]] = max(newest[source, sequence[:10]], sequence)
    missing = {
        (item.source, item.sequence)
        for item in sent
        if (item.source, item.sequence) not in received and item.sequence < newest[item.source, item.sequence[:10]]
    }
    gaps = [item for item in handed_on if isinstance(item, Gap)]
    reported = {
        (item.source, item.sequence)
        for item in sent
        for gap in gaps
        if gap.source == item.source
        and gap.after < item.sequence <= gap.through
        and gap.next_record.sequence[:10] == item.sequence[:10]
    }
    assert reported == missing
    by_run: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in handed_on:
        if isinstance(item, StreamRecord):
            by_run[item.source, item.sequence[:10]].append(item.sequence)
    assert all(sequences == sorted(sequences) for sequences in by_run.values())
