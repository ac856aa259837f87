"""Journals that cannot be used, each in its own way: the agent starts, works, says so, and journals again when it can."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cli.journal import quarantined_files
from agent.delivery.journal.database import connect
from agent.delivery.journal.writer import FILE
from agent.delivery.sinks.base import BATCH_RECORDS
from tests.lab.faulty_disk import Failing, failure, mounted
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

PAGE = 4096


def remove(folder: Path) -> None:
    """Remove a journal's files, as a tidy person would."""
    for file in folder.glob(f"{FILE}*"):
        file.unlink()


async def leave(folder: Path, source: Source, count: int, *, memory: int = 16 << 20) -> None:
    """Have a journal in a folder with so many records that were not delivered."""
    async with running(deliver(Script(up=False), folder, memory=memory), stop_seconds=1) as delivery:
        for stamped in source.some(count):
            delivery.put(stamped)


async def works_from_memory(folder: Path, *words: str, mend: Callable[[], object]) -> None:
    """See that an agent works without its journal and says why, and with it once that is mended."""
    sink, source = Script(), Source()
    async with running(deliver(sink, folder)) as delivery:
        for _ in range(2):
            delivery.put(source.next())
            await sink.until(lambda: sink.ids == source.made)
        (trouble,) = delivery.troubles()
        assert trouble.startswith("nothing is journaled: ")
        for word in words:
            assert word in trouble
        sink.up = False
        delivery.put(source.next())
        mend()
        await soon(lambda: is_journaled(delivery.events))
        sink.up = True
        await sink.until(lambda: once(sink.ids) == source.made)
        await soon(lambda: delivery.troubles() == [])
    assert lost(delivery) == 0


async def test_what_is_no_database_at_all_is_set_aside_as_it_is(folder: Path) -> None:
    (folder / FILE).write_bytes(b"this is not a database\n" * 1000)
    sink, source = Script(), Source()
    async with running(deliver(sink, folder)) as delivery:
        delivery.put(source.next())
        await sink.until(lambda: sink.ids == source.made)
        assert delivery.troubles() == []
        (note,) = delivery.notes()
        assert note.startswith("1 damaged")
    (aside,) = quarantined_files(folder)
    assert aside.name.startswith(f"{FILE}.damaged-")
    assert aside.read_bytes() == b"this is not a database\n" * 1000


async def test_an_empty_file_is_a_new_journal(folder: Path) -> None:
    (folder / FILE).touch()
    await leave(folder, Source(), 5)
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

    with mounted(folder / "disk", "ro"):
        await works_from_memory(folder / "disk", f"{folder / 'disk'}: Read-only file system", mend=mend)


async def test_a_journal_that_became_read_only_is_left_where_it_is(folder: Path) -> None:
    disk, sink, source = Failing("BEGIN"), Script(up=False), Source()
    async with running(deliver(sink, folder, connect=disk.connect)) as delivery:
        delivery.put(source.next())
        await soon(lambda: is_journaled(delivery.events))
        disk.name = "SQLITE_READONLY"
        delivery.put(source.next())
        await soon(lambda: len(delivery.troubles()) == 2)
        disk.name = None
        await soon(lambda: is_journaled(delivery.events))
        sink.up = True
        await sink.until(lambda: once(sink.ids) == source.made)
    assert quarantined_files(folder) == []


async def test_a_journal_of_a_format_to_come_is_set_aside_and_what_can_be_read_is_delivered(folder: Path) -> None:
    source = Source()
    await leave(folder, source, 20)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    sink = Script()
    async with running(deliver(sink, folder)):
        await sink.until(lambda: sink.ids == source.made)
    assert len(quarantined_files(folder)) == 1


async def test_of_two_agents_with_one_folder_the_second_waits_for_it(folder: Path) -> None:
    first, second = Script(up=False), Script()
    left, source = Source(run=1), Source(run=2)
    async with contextlib.AsyncExitStack() as other:
        one = await other.enter_async_context(running(deliver(first, folder), stop_seconds=1))
        async with running(deliver(second, folder)) as two:
            for stamped in left.some(5):
                one.put(stamped)
            await soon(lambda: is_journaled(one.events))
            two.put(source.next())
            await second.until(lambda: second.ids == source.made)
            assert two.troubles() == [f"nothing is journaled: {folder / FILE}: another agent uses {folder}"]
            await other.aclose()
            await second.until(lambda: second.ids == source.made + left.made)
            assert two.troubles() == []


async def test_a_journal_that_is_removed_under_way_is_made_anew_and_what_was_in_it_told(folder: Path) -> None:
    sink, source = Script(up=False), Source(size=1000)
    async with running(deliver(sink, folder, memory=100_000)) as delivery:
        lane = delivery.events
        for stamped in source.some(200):
            delivery.put(stamped)
            await caught_up(lane)
        await soon(lambda: is_journaled(lane))
        remove(folder)
        delivery.put(source.next())
        await soon(lambda: is_journaled(lane) and (folder / FILE).exists())
        assert list(delivery.losses.totals) == [("events", "corrupt")]
        assert lost(delivery) > 50
        shutil.copytree(folder, folder / "killed")
        sink.up = True
        await sink.until(lambda: source.made[-1] in sink.ids and sink.told)
    assert len(once(sink.ids)) + lost(delivery) == len(source.made)
    sink = Script()
    async with running(deliver(sink, folder / "killed")):
        await sink.until(lambda: source.made[-1] in sink.ids)
    assert len(sink.ids) + lost(delivery) == len(source.made), "what was in memory is in the new one"


@pytest.mark.parametrize("lane", ["events", "samples"])
async def test_what_is_before_and_behind_a_damaged_page_is_delivered(folder: Path, lane: str) -> None:
    source = Source(EVENT if lane == "events" else SAMPLE)
    await leave(folder, source, 3000)
    data = bytearray((folder / FILE).read_bytes())
    at = data.index(source.bodies[source.made[1500]]) // PAGE * PAGE
    data[at : at + PAGE] = b"\xff" * PAGE
    (folder / FILE).write_bytes(data)
    sink = Script()
    async with running(deliver(sink, folder)) as delivery:
        await sink.until(lambda: sink.ids[-1:] == source.made[-1:])
        await sink.until(lambda: lost(delivery) == 0 or sink.told)
    missing = [number for number, record_id in enumerate(source.made) if record_id not in set(sink.ids)]
    assert sink.ids == [record_id for record_id in source.made if record_id in set(sink.ids)]
    assert 1 <= len(missing) <= PAGE // 400
    assert missing == list(range(missing[0], missing[-1] + 1)), "that page, and no more"
    assert 1500 in missing
    assert [json.loads(entry.body)["data"]["records"] for entry in sink.told] in ([], [len(missing)])
    assert len(quarantined_files(folder)) == 1


async def test_a_page_that_is_damaged_under_way_costs_what_was_on_it(folder: Path) -> None:
    def forgetful(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA cache_size = 1")
        return db

    sink, source = Script(up=False), Source(size=300)
    made = deliver(sink, folder, memory=200_000, connect=forgetful)
    async with running(made, stop_seconds=1) as delivery:
        lane = delivery.events
        for stamped in source.some(1000):
            delivery.put(stamped)
            await caught_up(lane)
        await soon(lambda: is_journaled(lane) and lane.flying)
        assert delivery.journal is not None
        assert delivery.journal._store is not None
        flew = len(lane.flying)
        delivery.journal._store.fold()
        path = folder / FILE
        data = bytearray(path.read_bytes())
        at = data.index(source.bodies[source.made[flew + 100]]) // PAGE * PAGE
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff" * PAGE)
        sink.up = True
        await sink.until(lambda: sink.told)
        delivery.put(source.next())
        await sink.until(lambda: source.made[-1] in sink.ids)
    missing = [number for number, record_id in enumerate(source.made) if record_id not in set(sink.ids)]
    assert once(sink.ids) == [record_id for record_id in source.made if record_id in set(sink.ids)]
    assert delivery.losses.totals == {("events", "corrupt"): len(missing)}
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert flew + 100 in missing


async def test_what_flies_while_the_journal_is_made_anew_still_comes_first_after_a_restart(folder: Path) -> None:
    disk, sink, source = Failing("BEGIN"), Script(up=False), Source(size=300)
    async with running(deliver(sink, folder / "a", memory=60_000, connect=disk.connect), stop_seconds=1) as delivery:
        lane = delivery.events
        for stamped in source.some(300):
            delivery.put(stamped)
            await caught_up(lane)
        await soon(lambda: is_journaled(lane) and lane.flying and lane.has_backlog)
        disk.name = "SQLITE_CORRUPT"
        delivery.put(source.next())
        await soon(lambda: delivery.journal is not None and delivery.journal.trouble is not None)
        disk.name = None
        await soon(lambda: is_journaled(lane) and quarantined_files(folder / "a"))
        shutil.copytree(folder / "a", folder / "b")
    sink = Script()
    async with running(deliver(sink, folder / "b")):
        await sink.until(lambda: source.made[-1] in sink.ids)
    assert once(sink.ids) == source.made
    assert lost(delivery) == 0


async def test_what_cannot_be_read_for_long_does_not_hold_up_the_rest_and_comes_after_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.delivery.journal.writer.PATIENCE_SECONDS", 0.3)
    disk, source, fresh = Failing(), Source(run=1), Source(run=2)
    left = BATCH_RECORDS + 1000  # more than flies at once
    await leave(folder, source, left)
    sink = Script()
    sink.gate.clear()
    async with running(deliver(sink, folder, connect=disk.connect)) as delivery:
        await sink.until(lambda: sink.ids)
        disk.name = "SQLITE_CANTOPEN"
        sink.gate.set()
        delivery.put(fresh.next())
        await sink.until(lambda: fresh.made[0] in sink.ids)
        assert len(delivery.troubles()) == 1
        came = len(sink.ids)
        assert came < left + 1
        disk.name = None
        await soon(lambda: delivery.troubles() == [])
        sink.up = False
        delivery.put(fresh.next())
        await soon(lambda: is_journaled(delivery.events))
        sink.up = True
        await sink.until(lambda: fresh.made[-1] in sink.ids)
    next_sink = Script()
    async with running(deliver(next_sink, folder)) as delivery:
        await next_sink.until(lambda: source.made[-1] in next_sink.ids)
    assert set(sink.ids + next_sink.ids) == {*source.made, *fresh.made}
    assert lost(delivery) == 0


async def test_a_damaged_file_that_cannot_be_replaced_yet_is_put_back_whole(folder: Path) -> None:
    source = Source()
    await leave(folder, source, 50)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    disk = Failing("BEGIN")
    disk.name = "SQLITE_FULL"
    sink, fresh = Script(), Source(run=2)
    async with running(deliver(sink, folder, connect=disk.connect)) as delivery:
        delivery.put(fresh.next())
        await sink.until(lambda: sink.ids == fresh.made)
        assert [name for name in delivery.troubles() if "disk is full" in name]
        disk.name = None
        await sink.until(lambda: sink.ids == fresh.made + source.made)
    assert len(quarantined_files(folder)) == 1


async def test_nothing_opens_and_all_is_delivered_from_memory(folder: Path) -> None:
    def refuse(path: Path) -> sqlite3.Connection:
        raise failure("SQLITE_CANTOPEN")

    sink, source = Script(), Source()
    async with running(deliver(sink, folder, connect=refuse)) as delivery:
        for stamped in source.some(100):
            delivery.put(stamped)
    assert sink.ids == source.made
    assert lost(delivery) == 0
