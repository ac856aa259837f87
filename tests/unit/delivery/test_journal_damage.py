"""Damaged and unusable journals: the agent starts, delivers, reports the error, and journals again as soon as possible."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.journal import quarantined_files
from agent.delivery.journal.database import connect
from agent.delivery.journal.journal import JOURNAL_FILE
from agent.delivery.sender import BATCH_RECORDS
from tests.lab.faulty_disk import FailingDisk, sqlite_error, tmpfs
from tests.lab.scripted_sink import (
    EVENT,
    SAMPLE,
    SHORT_TIMINGS,
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

PAGE_BYTES = 4096


def remove_journal_files(folder: Path) -> None:
    """Remove all files of a journal."""
    for file in folder.glob(f"{JOURNAL_FILE}*"):
        file.unlink()


async def leave_undelivered(folder: Path, source: RecordSource, count: int, *, memory: int = 16 << 20) -> None:
    """Leave a journal with undelivered records in a directory."""
    async with running(make_pipeline(ScriptedSink(up=False), folder, memory=memory)) as pipeline:
        for record in source.take(count):
            pipeline.put(record)
        await eventually(lambda: pipeline.supervisor.is_failing)


async def check_works_from_memory(folder: Path, *words: str, repair: Callable[[], object]) -> None:
    """Check that delivery works without the journal.

    Args:
        folder: the journal's directory.
        words: words that the reported reason must have.
        repair: makes the journal work again.
    """
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        for _ in range(2):
            pipeline.put(source.next())
            await sink.until(lambda: sink.ids == source.ids)
        (reason,) = pipeline.unready_reasons()
        assert reason.startswith("nothing is journaled: ")
        for word in words:
            assert word in reason
        sink.up = False
        pipeline.put(source.next())
        repair()
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
        await eventually(lambda: pipeline.unready_reasons() == [])
    assert dropped(pipeline) == 0


async def test_a_journal_file_that_is_no_database_is_quarantined_unchanged(folder: Path) -> None:
    (folder / JOURNAL_FILE).write_bytes(b"this is not a database\n" * 1000)
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids == source.ids)
        assert pipeline.unready_reasons() == []
        (warning,) = pipeline.warnings()
        assert warning.startswith("1 damaged")
    (quarantined,) = quarantined_files(folder)
    assert quarantined.name.startswith(f"{JOURNAL_FILE}.damaged-")
    assert quarantined.read_bytes() == b"this is not a database\n" * 1000


async def test_an_empty_file_becomes_a_new_journal(folder: Path) -> None:
    (folder / JOURNAL_FILE).touch()
    await leave_undelivered(folder, RecordSource(), 5)
    assert quarantined_files(folder) == []


async def test_a_directory_at_the_journals_path_is_not_quarantined(folder: Path) -> None:
    (folder / JOURNAL_FILE).mkdir()
    await check_works_from_memory(
        folder, str(folder / JOURNAL_FILE), "unable to open", repair=(folder / JOURNAL_FILE).rmdir
    )


async def test_a_journal_directory_that_cannot_be_created_is_reported(folder: Path) -> None:
    (folder / "file").touch()
    await check_works_from_memory(folder / "file" / "journal", "Not a directory", repair=(folder / "file").unlink)


async def test_a_read_only_journal_directory_is_reported(folder: Path) -> None:
    def repair() -> None:
        subprocess.run(["mount", "-o", "remount,rw", folder / "disk"], check=True)

    with tmpfs(folder / "disk", "ro"):
        await check_works_from_memory(folder / "disk", f"{folder / 'disk'}: Read-only file system", repair=repair)


async def test_a_journal_that_becomes_read_only_is_not_quarantined(folder: Path) -> None:
    disk, sink, source = FailingDisk("BEGIN"), ScriptedSink(up=False), RecordSource()
    async with running(make_pipeline(sink, folder, connect=disk.connect)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: is_journaled(pipeline.events))
        disk.error_name = "SQLITE_READONLY"
        pipeline.put(source.next())
        await eventually(lambda: len(pipeline.unready_reasons()) == 2)
        disk.error_name = None
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
    assert quarantined_files(folder) == []


async def test_a_journal_of_a_newer_format_is_quarantined_and_its_records_delivered(folder: Path) -> None:
    source = RecordSource()
    await leave_undelivered(folder, source, 20)
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)):
        await sink.until(lambda: sink.ids == source.ids)
    assert len(quarantined_files(folder)) == 1


async def test_a_second_agent_waits_for_the_journal_of_the_first(folder: Path) -> None:
    first, second = ScriptedSink(up=False), ScriptedSink()
    left, source = RecordSource(run=1), RecordSource(run=2)
    async with contextlib.AsyncExitStack() as first_agent:
        first_pipeline = await first_agent.enter_async_context(running(make_pipeline(first, folder)))
        async with running(make_pipeline(second, folder)) as second_pipeline:
            for record in left.take(5):
                first_pipeline.put(record)
            await eventually(lambda: is_journaled(first_pipeline.events))
            second_pipeline.put(source.next())
            await second.until(lambda: second.ids == source.ids)
            assert second_pipeline.unready_reasons() == [
                f"nothing is journaled: {folder / JOURNAL_FILE}: another agent uses {folder}"
            ]
            await first_agent.aclose()
            await second.until(lambda: second.ids == source.ids + left.ids)
            assert second_pipeline.unready_reasons() == []


async def test_a_removed_journal_is_created_again_and_its_records_count_as_dropped(folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(size=1000)
    async with running(make_pipeline(sink, folder, memory=100_000)) as pipeline:
        queue = pipeline.events
        for record in source.take(200):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue))
        remove_journal_files(folder)
        pipeline.put(source.next())
        await eventually(lambda: is_journaled(queue) and (folder / JOURNAL_FILE).exists())
        assert list(pipeline.drops.totals) == [("events", "corrupt")]
        assert dropped(pipeline) > 50
        shutil.copytree(folder, folder / "killed")
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids and sink.drop_reports)
    assert len(deduplicated(sink.ids)) + dropped(pipeline) == len(source.ids)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder / "killed")):
        await sink.until(lambda: source.ids[-1] in sink.ids)
    assert len(sink.ids) + dropped(pipeline) == len(source.ids), "records in memory are in the new file"


@pytest.mark.parametrize("queue", ["events", "samples"])
async def test_records_before_and_after_a_damaged_page_are_delivered(folder: Path, queue: str) -> None:
    source = RecordSource(EVENT if queue == "events" else SAMPLE)
    await leave_undelivered(folder, source, 3000)
    data = bytearray((folder / JOURNAL_FILE).read_bytes())
    at = data.index(source.bodies[source.ids[1500]]) // PAGE_BYTES * PAGE_BYTES
    data[at : at + PAGE_BYTES] = b"\xff" * PAGE_BYTES
    (folder / JOURNAL_FILE).write_bytes(data)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)) as pipeline:
        await sink.until(lambda: sink.ids[-1:] == source.ids[-1:])
        await sink.until(lambda: dropped(pipeline) == 0 or sink.drop_reports)
    delivered = set(sink.ids)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in delivered]
    assert sink.ids == [record_id for record_id in source.ids if record_id in delivered]
    assert 1 <= len(missing) <= PAGE_BYTES // 400
    assert missing == list(range(missing[0], missing[-1] + 1)), "that page, and no others"
    assert 1500 in missing
    assert [json.loads(record.body)["data"]["records"] for record in sink.drop_reports] in ([], [len(missing)])
    assert len(quarantined_files(folder)) == 1


async def test_a_page_damaged_while_the_agent_runs_loses_only_its_own_records(folder: Path) -> None:
    def without_cache(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA cache_size = 1")
        return db

    sink, source = ScriptedSink(up=False), RecordSource(size=300)
    made = make_pipeline(sink, folder, memory=200_000, connect=without_cache)
    async with running(made) as pipeline:
        queue = pipeline.events
        for record in source.take(1000):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue) and queue.in_flight)
        assert pipeline.journal is not None
        assert pipeline.journal._database is not None
        in_flight = len(queue.in_flight)
        pipeline.journal._database.checkpoint()
        path = folder / JOURNAL_FILE
        data = bytearray(path.read_bytes())
        at = data.index(source.bodies[source.ids[in_flight + 100]]) // PAGE_BYTES * PAGE_BYTES
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff" * PAGE_BYTES)
        sink.up = True
        await sink.until(lambda: sink.drop_reports)
        pipeline.put(source.next())
        await sink.until(lambda: source.ids[-1] in sink.ids)
    delivered = set(sink.ids)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in delivered]
    assert deduplicated(sink.ids) == [record_id for record_id in source.ids if record_id in delivered]
    assert pipeline.drops.totals == {("events", "corrupt"): len(missing)}
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert in_flight + 100 in missing


async def test_records_in_flight_stay_first_when_the_journal_is_rebuilt(folder: Path) -> None:
    disk, sink, source = FailingDisk("BEGIN"), ScriptedSink(up=False), RecordSource(size=300)
    async with running(make_pipeline(sink, folder / "a", memory=60_000, connect=disk.connect)) as pipeline:
        queue = pipeline.events
        for record in source.take(300):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue) and queue.in_flight and queue.backlog)
        disk.error_name = "SQLITE_CORRUPT"
        pipeline.put(source.next())
        await eventually(lambda: pipeline.journal is not None and pipeline.journal.error is not None)
        disk.error_name = None
        await eventually(lambda: is_journaled(queue) and quarantined_files(folder / "a"))
        shutil.copytree(folder / "a", folder / "b")
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder / "b")):
        await sink.until(lambda: source.ids[-1] in sink.ids)
    assert deduplicated(sink.ids) == source.ids
    assert dropped(pipeline) == 0


async def test_an_unreadable_backlog_is_postponed_until_it_can_be_read(folder: Path) -> None:
    disk, source, fresh = FailingDisk(), RecordSource(run=1), RecordSource(run=2)
    left = BATCH_RECORDS + 1000  # more than one batch
    await leave_undelivered(folder, source, left)
    sink = ScriptedSink()
    sink.gate.clear()
    timings = replace(SHORT_TIMINGS, postpone_backlog_after=0.3)
    async with running(make_pipeline(sink, folder, connect=disk.connect, timings=timings)) as pipeline:
        await sink.until(lambda: sink.ids)
        disk.error_name = "SQLITE_CANTOPEN"
        sink.gate.set()
        pipeline.put(fresh.next())
        await sink.until(lambda: fresh.ids[0] in sink.ids)
        assert len(pipeline.unready_reasons()) == 1
        delivered = len(sink.ids)
        assert delivered < left + 1
        disk.error_name = None
        await sink.until(lambda: source.ids[-1] in sink.ids)
        await eventually(lambda: pipeline.unready_reasons() == [])
        await eventually(lambda: len(pipeline.events) == 0 and pipeline.events.backlog.stored_size.records == 0)
    assert set(sink.ids) == {*source.ids, *fresh.ids}
    assert deduplicated(sink.ids) == sink.ids
    assert dropped(pipeline) == 0


async def test_a_damaged_file_that_cannot_be_replaced_stays_in_place(folder: Path) -> None:
    source = RecordSource()
    await leave_undelivered(folder, source, 50)
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    disk = FailingDisk("BEGIN")
    disk.error_name = "SQLITE_FULL"
    sink, fresh = ScriptedSink(), RecordSource(run=2)
    async with running(make_pipeline(sink, folder, connect=disk.connect)) as pipeline:
        pipeline.put(fresh.next())
        await sink.until(lambda: sink.ids == fresh.ids)
        assert [reason for reason in pipeline.unready_reasons() if "disk is full" in reason]
        disk.error_name = None
        await sink.until(lambda: sink.ids == fresh.ids + source.ids)
    assert len(quarantined_files(folder)) == 1


async def test_records_are_delivered_from_memory_if_no_journal_can_be_opened(folder: Path) -> None:
    def refuse(path: Path) -> sqlite3.Connection:
        raise sqlite_error("SQLITE_CANTOPEN")

    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder, connect=refuse)) as pipeline:
        for record in source.take(100):
            pipeline.put(record)
    assert sink.ids == source.ids
    assert dropped(pipeline) == 0
