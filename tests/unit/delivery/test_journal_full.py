"""A disk that is full: samples give way to events, events go on from memory, and all is well when there is room again."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.journal import quarantined_files
from agent.delivery.journal.database import connect
from agent.delivery.journal.writer import FILE
from tests.lab.faulty_disk import mounted
from tests.lab.scripted_sink import (
    EVENT,
    SAMPLE,
    Script,
    Source,
    caught_up,
    deliver,
    is_journaled,
    lost,
    once,
    running,
    soon,
)


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """A disk of its own, of half a megabyte."""
    with mounted(folder / "disk", "size=512k"):
        yield folder / "disk"


def fill(folder: Path) -> Path:
    """Fill a disk to the last byte; return the file that does it."""
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


def of_100_pages(path: Path) -> sqlite3.Connection:
    """Connect to a file that SQLite itself says is full when it would be larger."""
    db = connect(path)
    db.execute("PRAGMA max_page_count = 100")
    return db


async def test_samples_on_a_full_disk_give_way_to_events(folder: Path) -> None:
    sink, events, samples = Script(up=False), Source(EVENT, run=1), Source(SAMPLE, run=2)
    async with running(deliver(sink, folder, memory=100_000, connect=of_100_pages)) as delivery:
        for _ in range(300):
            delivery.put(samples.next())
            delivery.put(samples.next())
            delivery.put(events.next())
            await caught_up(delivery.samples)
            await soon(lambda: is_journaled(delivery.events))
        assert set(delivery.losses.totals) == {("samples", "queue_full")}
        sink.up = True
        await sink.until(lambda: {events.made[-1], samples.made[-1]} <= set(sink.ids))
        await soon(lambda: delivery.troubles() == [])
    for source in (events, samples):
        came = [record_id for record_id in once(sink.ids) if record_id in source.bodies]
        assert came == [record_id for record_id in source.made if record_id in set(came)]
    assert set(events.made) <= set(sink.ids)
    assert len(once(sink.ids)) + lost(delivery) == 900


async def test_events_go_on_from_memory_while_there_is_no_room_at_all(small: Path) -> None:
    sink, source = Script(), Source()
    async with running(deliver(sink, small)) as delivery:
        delivery.put(source.next())
        await sink.until(lambda: sink.ids == source.made)
        filler = fill(small)
        sink.up = False
        for _ in range(200):  # more than there are pages to spare
            delivery.put(source.next())
        await soon(lambda: any("disk is full" in trouble for trouble in delivery.troubles()))
        sink.up = True
        await sink.until(lambda: once(sink.ids) == source.made)
        sink.up = False
        for stamped in source.some(300):
            delivery.put(stamped)
        filler.unlink()
        await soon(lambda: is_journaled(delivery.events))
        sink.up = True
        await sink.until(lambda: once(sink.ids) == source.made)
        await soon(lambda: delivery.troubles() == [])
    assert lost(delivery) == 0
    assert quarantined_files(small) == []


async def test_a_disk_that_is_full_at_the_start_costs_nothing_that_is_on_it(small: Path) -> None:
    source, fresh = Source(run=1), Source(run=2)
    async with running(deliver(Script(up=False), small), stop_seconds=1) as delivery:
        for stamped in source.some(50):
            delivery.put(stamped)
    filler = fill(small)
    sink = Script()
    async with running(deliver(sink, small)) as delivery:
        delivery.put(fresh.next())
        await sink.until(lambda: fresh.made[0] in sink.ids)
        filler.unlink()
        await sink.until(lambda: set(source.made) <= set(sink.ids))
        await soon(lambda: delivery.troubles() == [])
    assert [record_id for record_id in sink.ids if record_id in source.bodies] == source.made
    assert lost(delivery) == 0


async def test_a_full_disk_at_the_end_costs_no_more_than_what_had_no_room(small: Path) -> None:
    sink, source = Script(up=False), Source()
    async with running(deliver(sink, small), stop_seconds=1) as delivery:
        for stamped in source.some(20):
            delivery.put(stamped)
        await soon(lambda: is_journaled(delivery.events))
        filler = fill(small)
        for stamped in source.some(1000):
            delivery.put(stamped)
    stopped = lost(delivery)
    assert delivery.losses.totals == {("events", "shutdown"): stopped}
    filler.unlink()
    sink = Script()
    async with running(deliver(sink, small)) as delivery:
        await sink.until(lambda: len(sink.ids) >= 1020 - stopped)
    assert sink.ids == source.made[: 1020 - stopped]
    assert stopped <= 1000
    assert (small / FILE).exists()
