"""A disk that fails once, at any step: accepted records are delivered in order, and the journal works again."""

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.delivery.drops import DropReason
from agent.delivery.journal import journal as journal_module
from tests.lab.faulty_disk import FailingDisk, FailsOnce, connect_with_hooks, sqlite_error
from tests.lab.scripted_sink import (
    DEADLINE_SECONDS,
    EVENT,
    SAMPLE,
    RecordSource,
    ScriptedSink,
    deduplicated,
    dropped,
    eventually,
    is_journaled,
    journal_caught_up,
    make_pipeline,
    running,
)

CONCURRENT_RUNS = 10
MEMORY = 5400
"""Bytes for all queues: about three records for events, four for samples."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The records that two runs of the agent delivered and dropped.

    Attributes:
        sources: the sources of the records, by record type.
        delivered: ids of the delivered records, in the order of their delivery.
        dropped: number of records that were counted as dropped.
    """

    sources: dict[str, RecordSource]
    delivered: list[str]
    dropped: int


async def deliver_over_a_restart(folder: Path, disk: FailsOnce) -> Outcome:
    """Put records while the sink fails and recovers; then stop, start again, and return what was delivered."""
    sources = {EVENT: RecordSource(EVENT), SAMPLE: RecordSource(SAMPLE, run=1)}
    first, second = ScriptedSink(up=False), ScriptedSink()
    pipeline = make_pipeline(first, folder, memory=MEMORY, connect=disk.connect)
    queues = {EVENT: pipeline.events, SAMPLE: pipeline.samples}

    async def put(count: int) -> None:
        for _ in range(count):
            for kind, source in sources.items():
                pipeline.put(source.next())
                await journal_caught_up(queues[kind])
            await eventually(lambda: is_journaled(pipeline.events))

    async with running(pipeline):
        await put(6)
        first.up = True
        await first.until(lambda: len(first.ids) >= 3)
        await put(2)
        await first.until(lambda: all(source.ids[-1] in first.ids for source in sources.values()))
        await eventually(lambda: pipeline.events.backlog.stored_size.records == 0)
        first.up = False
        await put(4)
        pipeline.supervisor._failures = 1  # so that the stop does not wait for it
    restarted = make_pipeline(second, folder)
    async with running(restarted):
        last = sources[EVENT].next()
        restarted.put(last)
        await second.until(lambda: last.id in second.ids)
    return Outcome(sources, first.ids + second.ids, dropped(restarted) + dropped(pipeline))


def check_outcome(outcome: Outcome, disk: FailsOnce) -> None:
    """Check that no event is missing, that missing samples were counted as dropped, and that the records of each queue are in order."""
    for source in outcome.sources.values():
        delivered = [record_id for record_id in deduplicated(outcome.delivered) if record_id in source.bodies]
        assert delivered == [record_id for record_id in source.ids if record_id in set(delivered)], "in order"
    assert set(outcome.sources[EVENT].ids) <= set(outcome.delivered), "no event is lost"
    missing = sum(len(source.ids) for source in outcome.sources.values()) - len(deduplicated(outcome.delivered))
    # A commit that failed may be on disk after all: its records may be delivered although they were counted.
    assert missing == outcome.dropped or (disk.failed == "COMMIT" and missing <= outcome.dropped)


async def test_without_a_fault_no_record_is_lost(folder: Path) -> None:
    disk = FailsOnce("", 0)
    outcome = await deliver_over_a_restart(folder, disk)
    check_outcome(outcome, disk)
    assert outcome.dropped == 0
    assert disk.calls > 60


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done"])
@pytest.mark.parametrize("name", ["SQLITE_IOERR_FSYNC", "SQLITE_FULL", "SQLITE_CORRUPT", "SQLITE_BUSY"])
async def test_a_fault_at_any_step_loses_no_event_and_keeps_the_order(folder: Path, name: str, *, after: bool) -> None:
    async def fails_at(at: int) -> bool:
        disk = FailsOnce(name, at, after=after)
        outcome = await deliver_over_a_restart(folder / str(at), disk)
        try:
            check_outcome(outcome, disk)
        except AssertionError as error:
            error.add_note(f"{name} at {at}: {disk.failed}")
            raise
        return bool(disk.failed)

    at = 1
    while all(await asyncio.gather(*(fails_at(number) for number in range(at, at + CONCURRENT_RUNS)))):
        at += CONCURRENT_RUNS
    assert at > 60


async def test_a_disk_that_fails_at_the_last_write_does_not_disturb_the_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FailingDisk("BEGIN")
    pipeline = make_pipeline(ScriptedSink(), folder, connect=disk.connect)
    journal = pipeline.journal
    assert journal is not None
    write_remaining = journal.write_remaining

    async def drop_a_record_and_fail() -> None:
        await write_remaining()
        pipeline.drops.add("samples", DropReason.QUEUE_FULL, 1, 0, 0, 0.0)
        disk.error_name = "SQLITE_READONLY"

    monkeypatch.setattr(journal, "write_remaining", drop_a_record_and_fail)
    async with running(pipeline):
        await eventually(lambda: journal.error is None)
    assert journal.error is not None
    restarted = make_pipeline(ScriptedSink(), folder)
    async with running(restarted):  # the lock was released
        await eventually(lambda: not restarted.unready_reasons())


async def test_the_newest_dead_letters_wait_for_the_disk_up_to_their_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit fails while the limit is reached twice: in the commit's transaction, and by the rejections during the commit."""
    monkeypatch.setattr(journal_module, "MAX_DEAD_LETTERS", 3)
    failing, begun, released = threading.Event(), threading.Event(), threading.Event()

    def fail_commit(sql: str) -> None:
        if failing.is_set() and sql.startswith("COMMIT"):
            begun.set()
            released.wait(DEADLINE_SECONDS)
            raise sqlite_error("SQLITE_READONLY")

    source = RecordSource()
    async with running(make_pipeline(ScriptedSink(), folder, connect=connect_with_hooks(fail_commit))) as pipeline:
        journal = pipeline.journal
        assert journal is not None
        failing.set()
        journal.store_dead_letters("rejected", list(source.take(3)))
        await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        journal.store_dead_letters("rejected", list(source.take(3)))
        released.set()
        await eventually(lambda: journal.error is not None)
        journal.store_dead_letters("rejected", list(source.take(5)))
        assert [record.id for _, record in journal._dead_letters] == source.ids[-3:]
        failing.clear()
        await eventually(lambda: journal.error is None and not journal._dead_letters)
