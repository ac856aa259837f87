"""Full disks: samples make room for events, events are delivered from memory, and journaling resumes with free space."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.journal import quarantined_files
from agent.delivery.journal.database import connect
from agent.delivery.journal.journal import JOURNAL_FILE
from tests.lab.faulty_disk import tmpfs
from tests.lab.scripted_sink import (
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


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """The mount point of a file system of 512 KiB."""
    with tmpfs(folder / "disk", "size=512k"):
        yield folder / "disk"


def fill_disk(folder: Path) -> Path:
    """Fill a file system to the last byte, with a file whose path is returned."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    assert os.statvfs(folder).f_bavail == 0
    return filler


def connect_100_pages(path: Path) -> sqlite3.Connection:
    """Open a database that SQLite limits to 100 pages, which acts like a full disk."""
    db = connect(path)
    db.execute("PRAGMA max_page_count = 100")
    return db


async def test_samples_make_room_for_events_on_a_full_disk(folder: Path) -> None:
    sink, events, samples = ScriptedSink(up=False), RecordSource(EVENT, run=1), RecordSource(SAMPLE, run=2)
    async with running(make_pipeline(sink, folder, memory=100_000, connect=connect_100_pages)) as pipeline:
        for _ in range(300):
            pipeline.put(samples.next())
            pipeline.put(samples.next())
            pipeline.put(events.next())
            await journal_caught_up(pipeline.samples)
            await eventually(lambda: is_journaled(pipeline.events))
        assert set(pipeline.drops.totals) == {("samples", "queue_full")}
        sink.up = True
        await sink.until(lambda: {events.ids[-1], samples.ids[-1]} <= set(sink.ids))
        await eventually(lambda: pipeline.unready_reasons() == [])
    for source in (events, samples):
        delivered = [record_id for record_id in deduplicated(sink.ids) if record_id in source.bodies]
        assert delivered == [record_id for record_id in source.ids if record_id in set(delivered)]
    assert set(events.ids) <= set(sink.ids)
    assert len(deduplicated(sink.ids)) + dropped(pipeline) == 900


async def test_events_are_delivered_from_memory_while_the_disk_is_full(small_disk: Path) -> None:
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, small_disk)) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids == source.ids)
        filler = fill_disk(small_disk)
        sink.up = False
        for _ in range(200):  # more than the free pages hold
            pipeline.put(source.next())
        await eventually(lambda: any("disk is full" in reason for reason in pipeline.unready_reasons()))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
        sink.up = False
        for record in source.take(300):
            pipeline.put(record)
        filler.unlink()
        await eventually(lambda: is_journaled(pipeline.events))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
        await eventually(lambda: pipeline.unready_reasons() == [])
    assert dropped(pipeline) == 0
    assert quarantined_files(small_disk) == []


async def test_a_start_on_a_full_disk_loses_no_journaled_record(small_disk: Path) -> None:
    source, fresh = RecordSource(run=1), RecordSource(run=2)
    async with running(make_pipeline(ScriptedSink(up=False), small_disk)) as pipeline:
        for record in source.take(50):
            pipeline.put(record)
        await eventually(lambda: pipeline.supervisor.is_failing)
    filler = fill_disk(small_disk)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, small_disk)) as pipeline:
        pipeline.put(fresh.next())
        await sink.until(lambda: fresh.ids[0] in sink.ids)
        filler.unlink()
        await sink.until(lambda: set(source.ids) <= set(sink.ids))
        await eventually(lambda: pipeline.unready_reasons() == [])
    assert [record_id for record_id in sink.ids if record_id in source.bodies] == source.ids
    assert dropped(pipeline) == 0


@pytest.mark.parametrize("free_kib", [0, 20, 28, 60, 76, 100])
@pytest.mark.parametrize("damaged", [False, True], ids=["intact", "damaged"])
async def test_a_start_on_an_almost_full_disk_quarantines_and_loses_nothing_intact(
    small_disk: Path, free_kib: int, *, damaged: bool
) -> None:
    """SQLite needs space for its log and its shared memory even to read a journal."""
    source, fresh = RecordSource(run=1), RecordSource(run=2)
    async with running(make_pipeline(ScriptedSink(up=False), small_disk)) as pipeline:
        for record in source.take(50):
            pipeline.put(record)
        await eventually(lambda: pipeline.supervisor.is_failing)
    if damaged:
        with contextlib.closing(sqlite3.connect(small_disk / JOURNAL_FILE)) as db:
            db.execute("PRAGMA user_version = 7")
    filler = fill_disk(small_disk)
    os.truncate(filler, filler.stat().st_size - free_kib * 1024)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, small_disk)) as pipeline:
        pipeline.put(fresh.next())
        await sink.until(lambda: fresh.ids[0] in sink.ids)
        await asyncio.sleep(0.2)
        filler.unlink()
        await sink.until(lambda: set(source.ids) <= set(sink.ids))
        await eventually(lambda: pipeline.unready_reasons() == [])
    assert [record_id for record_id in deduplicated(sink.ids) if record_id in source.bodies] == source.ids
    assert dropped(pipeline) == 0
    assert len(quarantined_files(small_disk)) == damaged


async def test_a_stop_on_a_full_disk_loses_only_records_that_have_no_room(small_disk: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource()
    async with running(make_pipeline(sink, small_disk)) as pipeline:
        for record in source.take(20):
            pipeline.put(record)
        await eventually(lambda: is_journaled(pipeline.events))
        filler = fill_disk(small_disk)
        for record in source.take(1000):
            pipeline.put(record)
    stopped = dropped(pipeline)
    assert pipeline.drops.totals == {("events", "shutdown"): stopped}
    filler.unlink()
    sink = ScriptedSink()
    async with running(make_pipeline(sink, small_disk)) as pipeline:
        await sink.until(lambda: len(sink.ids) >= 1020 - stopped)
    assert sink.ids == source.ids[: 1020 - stopped]
    assert stopped <= 1000
    assert (small_disk / JOURNAL_FILE).exists()
