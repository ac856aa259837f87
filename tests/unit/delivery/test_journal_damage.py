"""Journals that cannot be used, each in its own way: the agent starts, works, says so, and journals again when it can."""

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
from agent.delivery.journal.writer import FILE
from agent.delivery.sender import BATCH_RECORDS
from tests.lab.faulty_disk import FailingDisk, failure, tmpfs
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

PAGE = 4096


def remove(folder: Path) -> None:
    """Remove a journal's files, as a tidy person would."""
    for file in folder.glob(f"{FILE}*"):
        file.unlink()


async def leave(folder: Path, source: RecordSource, count: int, *, memory: int = 16 << 20) -> None:
    """Have a journal in a folder with so many records that were not delivered."""
    async with running(make_pipeline(ScriptedSink(up=False), folder, memory=memory), stop_seconds=1) as pipeline:
        for record in source.take(count):
            pipeline.put(record)


async def works_from_memory(folder: Path, *words: str, mend: Callable[[], object]) -> None:
    """See that an agent works without its journal and says why, and with it once that is mended."""
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        for _ in range(2):
            pipeline.put(source.next())
            await sink.until(lambda: sink.ids == source.ids)
        (trouble,) = pipeline.unready_reasons()
        assert trouble.startswith("nothing is journaled: ")
        for word in words:
            assert word in trouble
        sink.up = False
        pipeline.put(source.next())
        mend()
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
        await eventually(lambda: pipeline.unready_reasons() == [])
    assert dropped(pipeline) == 0


async def test_what_is_no_database_at_all_is_set_aside_as_it_is(folder: Path) -> None:
    (folder / FILE).write_bytes(b"this is not a database\n" * 1000)
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids == source.ids)
        assert pipeline.unready_reasons() == []
        (note,) = pipeline.warnings()
        assert note.startswith("1 damaged")
    (aside,) = quarantined_files(folder)
    assert aside.name.startswith(f"{FILE}.damaged-")
    assert aside.read_bytes() == b"this is not a database\n" * 1000


async def test_an_empty_file_is_a_new_journal(folder: Path) -> None:
    (folder / FILE).touch()
    await leave(folder, RecordSource(), 5)
    assert quarantined_files(folder) == []


async def test_a_folder_in_the_journals_place_is_left_alone(folder: Path) -> None:
    (folder / FILE).mkdir()
    await works_from_memory(folder, str(folder / FILE), "unable to open", mend=(folder / FILE).rmdir)


async def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    (folder / "file").touch()
    await works_from_memory(folder / "file" / "journal", "Not a directory", mend=(folder / "file").unlink)


async def test_a_read_only_folder_is_named(folder: Path) -> None:
    def mend() -> None:
        subprocess.run(["mount", "-o", "remount,rw", folder / "disk"], check=True)

    with tmpfs(folder / "disk", "ro"):
        await works_from_memory(folder / "disk", f"{folder / 'disk'}: Read-only file system", mend=mend)


async def test_a_journal_that_became_read_only_is_left_where_it_is(folder: Path) -> None:
    disk, sink, source = FailingDisk("BEGIN"), ScriptedSink(up=False), RecordSource()
    async with running(make_pipeline(sink, folder, connect=disk.connect)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: is_journaled(pipeline.events))
        disk.name = "SQLITE_READONLY"
        pipeline.put(source.next())
        await eventually(lambda: len(pipeline.unready_reasons()) == 2)
        disk.name = None
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
    assert quarantined_files(folder) == []


async def test_a_journal_of_a_format_to_come_is_set_aside_and_what_can_be_read_is_delivered(folder: Path) -> None:
    source = RecordSource()
    await leave(folder, source, 20)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)):
        await sink.until(lambda: sink.ids == source.ids)
    assert len(quarantined_files(folder)) == 1


async def test_of_two_agents_with_one_folder_the_second_waits_for_it(folder: Path) -> None:
    first, second = ScriptedSink(up=False), ScriptedSink()
    left, source = RecordSource(run=1), RecordSource(run=2)
    async with contextlib.AsyncExitStack() as other:
        one = await other.enter_async_context(running(make_pipeline(first, folder), stop_seconds=1))
        async with running(make_pipeline(second, folder)) as two:
            for record in left.take(5):
                one.put(record)
            await eventually(lambda: is_journaled(one.events))
            two.put(source.next())
            await second.until(lambda: second.ids == source.ids)
            assert two.unready_reasons() == [f"nothing is journaled: {folder / FILE}: another agent uses {folder}"]
            await other.aclose()
            await second.until(lambda: second.ids == source.ids + left.ids)
            assert two.unready_reasons() == []


async def test_a_journal_that_is_removed_under_way_is_made_anew_and_what_was_in_it_told(folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(size=1000)
    async with running(make_pipeline(sink, folder, memory=100_000)) as pipeline:
        queue = pipeline.events
        for record in source.take(200):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue))
        remove(folder)
        pipeline.put(source.next())
        await eventually(lambda: is_journaled(queue) and (folder / FILE).exists())
        assert list(pipeline.drops.totals) == [("events", "corrupt")]
        assert dropped(pipeline) > 50
        shutil.copytree(folder, folder / "killed")
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids and sink.drop_reports)
    assert len(deduplicated(sink.ids)) + dropped(pipeline) == len(source.ids)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder / "killed")):
        await sink.until(lambda: source.ids[-1] in sink.ids)
    assert len(sink.ids) + dropped(pipeline) == len(source.ids), "what was in memory is in the new one"


@pytest.mark.parametrize("queue", ["events", "samples"])
async def test_what_is_before_and_behind_a_damaged_page_is_delivered(folder: Path, queue: str) -> None:
    source = RecordSource(EVENT if queue == "events" else SAMPLE)
    await leave(folder, source, 3000)
    data = bytearray((folder / FILE).read_bytes())
    at = data.index(source.bodies[source.ids[1500]]) // PAGE * PAGE
    data[at : at + PAGE] = b"\xff" * PAGE
    (folder / FILE).write_bytes(data)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)) as pipeline:
        await sink.until(lambda: sink.ids[-1:] == source.ids[-1:])
        await sink.until(lambda: dropped(pipeline) == 0 or sink.drop_reports)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in set(sink.ids)]
    assert sink.ids == [record_id for record_id in source.ids if record_id in set(sink.ids)]
    assert 1 <= len(missing) <= PAGE // 400
    assert missing == list(range(missing[0], missing[-1] + 1)), "that page, and no more"
    assert 1500 in missing
    assert [json.loads(record.body)["data"]["records"] for record in sink.drop_reports] in ([], [len(missing)])
    assert len(quarantined_files(folder)) == 1


async def test_a_page_that_is_damaged_under_way_costs_what_was_on_it(folder: Path) -> None:
    def forgetful(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA cache_size = 1")
        return db

    sink, source = ScriptedSink(up=False), RecordSource(size=300)
    made = make_pipeline(sink, folder, memory=200_000, connect=forgetful)
    async with running(made, stop_seconds=1) as pipeline:
        queue = pipeline.events
        for record in source.take(1000):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue) and queue.in_flight)
        assert pipeline.journal is not None
        assert pipeline.journal._database is not None
        flew = len(queue.in_flight)
        pipeline.journal._database.checkpoint()
        path = folder / FILE
        data = bytearray(path.read_bytes())
        at = data.index(source.bodies[source.ids[flew + 100]]) // PAGE * PAGE
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff" * PAGE)
        sink.up = True
        await sink.until(lambda: sink.drop_reports)
        pipeline.put(source.next())
        await sink.until(lambda: source.ids[-1] in sink.ids)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in set(sink.ids)]
    assert deduplicated(sink.ids) == [record_id for record_id in source.ids if record_id in set(sink.ids)]
    assert pipeline.drops.totals == {("events", "corrupt"): len(missing)}
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert flew + 100 in missing


async def test_what_flies_while_the_journal_is_made_anew_still_comes_first_after_a_restart(folder: Path) -> None:
    disk, sink, source = FailingDisk("BEGIN"), ScriptedSink(up=False), RecordSource(size=300)
    async with running(
        make_pipeline(sink, folder / "a", memory=60_000, connect=disk.connect), stop_seconds=1
    ) as pipeline:
        queue = pipeline.events
        for record in source.take(300):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(lambda: is_journaled(queue) and queue.in_flight and queue.backlog)
        disk.name = "SQLITE_CORRUPT"
        pipeline.put(source.next())
        await eventually(lambda: pipeline.journal is not None and pipeline.journal.error is not None)
        disk.name = None
        await eventually(lambda: is_journaled(queue) and quarantined_files(folder / "a"))
        shutil.copytree(folder / "a", folder / "b")
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder / "b")):
        await sink.until(lambda: source.ids[-1] in sink.ids)
    assert deduplicated(sink.ids) == source.ids
    assert dropped(pipeline) == 0


async def test_what_cannot_be_read_for_long_does_not_hold_up_the_rest_and_comes_after_the_next_start(
    folder: Path,
) -> None:
    disk, source, fresh = FailingDisk(), RecordSource(run=1), RecordSource(run=2)
    left = BATCH_RECORDS + 1000  # more than flies at once
    await leave(folder, source, left)
    sink = ScriptedSink()
    sink.gate.clear()
    timings = replace(SHORT_TIMINGS, read_patience=0.3)
    async with running(make_pipeline(sink, folder, connect=disk.connect, timings=timings)) as pipeline:
        await sink.until(lambda: sink.ids)
        disk.name = "SQLITE_CANTOPEN"
        sink.gate.set()
        pipeline.put(fresh.next())
        await sink.until(lambda: fresh.ids[0] in sink.ids)
        assert len(pipeline.unready_reasons()) == 1
        came = len(sink.ids)
        assert came < left + 1
        disk.name = None
        await eventually(lambda: pipeline.unready_reasons() == [])
        sink.up = False
        pipeline.put(fresh.next())
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: fresh.ids[-1] in sink.ids)
    next_sink = ScriptedSink()
    async with running(make_pipeline(next_sink, folder)) as pipeline:
        await next_sink.until(lambda: source.ids[-1] in next_sink.ids)
    assert set(sink.ids + next_sink.ids) == {*source.ids, *fresh.ids}
    assert dropped(pipeline) == 0


async def test_a_damaged_file_that_cannot_be_replaced_yet_is_put_back_whole(folder: Path) -> None:
    source = RecordSource()
    await leave(folder, source, 50)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    disk = FailingDisk("BEGIN")
    disk.name = "SQLITE_FULL"
    sink, fresh = ScriptedSink(), RecordSource(run=2)
    async with running(make_pipeline(sink, folder, connect=disk.connect)) as pipeline:
        pipeline.put(fresh.next())
        await sink.until(lambda: sink.ids == fresh.ids)
        assert [name for name in pipeline.unready_reasons() if "disk is full" in name]
        disk.name = None
        await sink.until(lambda: sink.ids == fresh.ids + source.ids)
    assert len(quarantined_files(folder)) == 1


async def test_nothing_opens_and_all_is_delivered_from_memory(folder: Path) -> None:
    def refuse(path: Path) -> sqlite3.Connection:
        raise failure("SQLITE_CANTOPEN")

    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder, connect=refuse)) as pipeline:
        for record in source.take(100):
            pipeline.put(record)
    assert sink.ids == source.ids
    assert dropped(pipeline) == 0
