"""What lanes may take: of the disk while all is well, of memory while nothing is, of time at the end."""

import asyncio
import contextlib
import gc
import json
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.entry import Entry
from agent.delivery.queue import QueueLimits, RecordQueue
from tests.lab.faulty_disk import Failing, Stuck
from tests.lab.queue_kinds import DURABLE, MEMORY, SPILLING, Kind, journaled_kinds
from tests.lab.scripted_sink import (
    LONG,
    SAMPLE,
    START_NS,
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
def stuck() -> Iterator[Stuck]:
    """A disk that hangs when it is told to, but not beyond the test."""
    disk = Stuck()
    yield disk
    disk.let_go()


STORED = [(MEMORY, "none"), *((kind, disk) for kind in (DURABLE, SPILLING) for disk in ("works", "hangs", "fails"))]


def entries_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is Entry for thing in gc.get_objects())


def test_an_entry_takes_about_the_memory_that_it_is_counted_for() -> None:
    source = Source(size=500)
    tracemalloc.start()
    entries = [Entry.of(stamped) for stamped in source.some(500)]
    source.bodies.clear()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 1.5 * sum(entry.size for entry in entries)


async def test_samples_cost_a_healthy_host_no_write_at_all(folder: Path) -> None:
    sink, source = Script(), Source(SAMPLE)
    async with running(deliver(sink, folder)) as delivery:
        for _ in range(20):
            for stamped in source.some(100):
                delivery.put(stamped)
            await sink.until(lambda: len(sink.ids) == len(source.made))
        assert delivery.journal is not None
        assert (delivery.samples.journaled, delivery.journal.commits) == (0, 0)


async def test_samples_gather_for_a_batch_and_events_do_not_wait_for_them(folder: Path) -> None:
    sink, samples, events = Script(), Source(SAMPLE, run=1), Source()
    async with running(deliver(sink, folder, gather_seconds=LONG / 20)) as delivery:
        for stamped in samples.some(5):
            delivery.put(stamped)
        await asyncio.sleep(0)
        for stamped in samples.some(5):
            delivery.put(stamped)
        event = events.next()
        delivery.put(event)
        await sink.until(lambda: samples.made[-1] in sink.ids)
    assert [[entry.id for entry in batch] for batch in sink.batches] == [[event.id], samples.made]


@pytest.mark.parametrize("why", [None, asyncio.CancelledError()], ids=["asked to", "cancelled"])
async def test_what_waits_for_others_goes_at_once_when_the_agent_ends(why: BaseException | None, folder: Path) -> None:
    sink, samples = Script(), Source(SAMPLE)
    with contextlib.suppress(asyncio.CancelledError):
        async with running(deliver(sink, None, gather_seconds=10 * LONG)) as delivery:
            delivery.put(samples.next())
            await asyncio.sleep(0)
            if why is not None:
                raise why
    assert sink.ids == samples.made
    assert lost(delivery) == 0


async def test_a_bug_in_the_way_out_ends_the_agent_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Script, "send", lambda self, _: fail(self))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(LONG / 2), running(deliver(Script(), folder), stop_seconds=2 * LONG) as delivery:
            delivery.put(Source().next())
            await asyncio.sleep(LONG)
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_samples_spill_while_the_sink_is_down_and_come_in_order_when_it_is_back(folder: Path) -> None:
    sink, source = Script(), Source(SAMPLE, size=400)
    async with running(deliver(sink, folder, memory=200_000)) as delivery:
        lane = delivery.samples
        for _ in range(4):
            sink.up = False
            for _ in range(20):
                for stamped in source.some(40):
                    delivery.put(stamped)
                await caught_up(lane)
            assert lane.backlog.records > 300
            sink.up = True
            for stamped in source.some(10):  # while the backlog is on its way
                delivery.put(stamped)
            await sink.until(lambda: once(sink.ids) == source.made)
            await soon(lambda: lane.disk.records == 0 and lane.backlog.records == 0)
        assert 1000 < lane.journaled < len(source.made), "what memory can hold needs no disk"
    assert lost(delivery) == 0


async def test_what_is_delivered_is_taken_off_the_disk(folder: Path) -> None:
    sink, source = Script(up=False), Source()
    async with running(deliver(sink, folder)) as delivery:
        lane = delivery.events
        for stamped in source.some(3000):
            delivery.put(stamped)
        await soon(lambda: lane.journaled == 3000)
        assert lane.disk.records == 3000
        sink.up = True
        await sink.until(lambda: len(sink.ids) == 3000)
        await soon(lambda: lane.disk.records == 0)
        assert lane.disk.bytes == 0
        assert delivery.journal is not None
        assert delivery.journal.commits < 20, "an fsync is shared by all that wait for one"


@journaled_kinds
async def test_what_was_journaled_survives_a_kill(kind: Kind, folder: Path) -> None:
    sink, source = Script(up=False), Source(kind.type)
    async with running(deliver(sink, folder / "one", memory=100_000), stop_seconds=1) as delivery:
        lane = kind.lane(delivery)
        for stamped in source.some(200):
            delivery.put(stamped)
            await caught_up(lane)
        await soon(lambda: lane.journaled > 50 and (is_journaled(lane) or not (kind.durable or lane._writing)))
        journaled = lane.journaled
        shutil.copytree(folder / "one", folder / "two")  # what is there after a kill -9
    if kind.durable:
        assert journaled == 200
    sink = Script()
    async with running(deliver(sink, folder / "two")):
        await sink.until(lambda: len(sink.ids) >= journaled)
    assert [record_id for record_id in source.made if record_id in set(sink.ids)] == sink.ids
    assert {entry.id: entry.body for entry in sink.entries}.items() <= source.bodies.items()


async def test_losses_that_were_not_told_survive_a_restart_and_are_told_once(folder: Path) -> None:
    sink = Script(up=False)
    async with running(deliver(sink, folder), stop_seconds=1) as delivery:
        delivery.losses.add("samples", DropReason.QUEUE_FULL, 7, START_NS, START_NS + 5 * 10**9, 0)
        delivery.losses.add("events", DropReason.CORRUPT, 2, 0, 0, 0)
    sink = Script()
    async with running(deliver(sink, folder)) as delivery:
        delivery.losses.add("samples", DropReason.QUEUE_FULL, 3, START_NS - 10**9, START_NS, 0)
        delivery.put(Source().next())
        await sink.until(lambda: len(sink.told) == 2)
        assert not delivery.losses
    told = [json.loads(entry.body) for entry in sink.told]
    assert [(one["subject"], one["severity"], one["data"]) for one in told] == [
        (
            "samples",
            "error",
            {
                "reason": "queue_full",
                "queue": "samples",
                "records": 10,
                "first_timestamp_seconds": START_NS / 1e9 - 1,
                "last_timestamp_seconds": START_NS / 1e9 + 5,
            },
        ),
        ("events", "error", {"reason": "corrupt", "queue": "events", "records": 2}),
    ]
    sink = Script()
    async with running(deliver(sink, folder)) as delivery:
        delivery.put(Source(run=1).next())
        await sink.until(lambda: sink.ids)
    assert sink.told == [], "once is enough"


@pytest.mark.parametrize(("kind", "disk"), STORED, ids=lambda it: it.name if isinstance(it, Kind) else it)
async def test_a_hundred_thousand_records_that_cannot_go_take_a_bounded_memory(
    kind: Kind, disk: str, folder: Path, stuck: Stuck
) -> None:
    sink, failing, one = Script(), Failing("BEGIN"), Source(kind.type, size=500).next()
    connect = failing.connect if disk == "fails" else stuck.connect
    delivery = deliver(sink, kind.folder(folder), memory=4 << 20, disk=256 << 20, connect=connect)
    lane = kind.lane(delivery)
    async with running(delivery, stop_seconds=10 if disk == "works" else 1):
        delivery.put(one)
        await sink.until(lambda: sink.ids)
        sink.gate.clear()  # it takes, and never acknowledges
        stuck.stuck, failing.name = disk == "hangs", "SQLITE_READONLY" if disk == "fails" else None
        most = 0
        for number in range(100_000):
            delivery.put(one._replace(id=f"{one.id}-{number}"))
            if number % 500 == 499:
                await asyncio.sleep(0)
                most = max(most, lane.memory_bytes)
                if disk == "works":
                    await caught_up(lane)
        held = entries_in_memory()
        stuck.let_go()
        failing.name = None
        sink.gate.set()
    assert most <= 2 * (2 << 20) + 2 * (1 << 20), "twice the lane's half, and what flies"
    assert held < 12_000
    if disk == "works":
        assert lost(delivery) == 0


@pytest.mark.parametrize("kind", [DURABLE, SPILLING], ids=lambda kind: kind.name)
async def test_a_disk_that_hangs_holds_up_neither_delivery_nor_the_end(kind: Kind, folder: Path, stuck: Stuck) -> None:
    sink, source = Script(), Source(kind.type)
    async with asyncio.timeout(5):
        async with running(deliver(sink, folder, connect=stuck.connect), stop_seconds=1) as delivery:
            delivery.put(source.next())
            await sink.until(lambda: sink.ids)
            stuck.stuck = True
            for _ in range(5):
                delivery.put(source.next("qemu.event.stop"))  # has the journal begin
                delivery.put(source.next())
                await sink.until(lambda: sorted(sink.ids) == sorted(source.made))
            await asyncio.to_thread(stuck.begun.wait, LONG)
    assert lost(delivery) == 0, "all was acknowledged"


async def test_a_disk_that_hangs_is_said_to_until_it_goes_on(
    folder: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.delivery.pipeline.SILENT_SECONDS", 0.2)
    sink, source = Script(), Source()
    async with running(deliver(sink, folder, connect=stuck.connect)) as delivery:
        delivery.put(source.next())
        await sink.until(lambda: sink.ids)
        stuck.stuck = True
        delivery.put(source.next())
        await soon(lambda: any("the disk of" in trouble for trouble in delivery.troubles()))
        stuck.let_go()
        await soon(lambda: delivery.troubles() == [])


async def test_a_journal_that_cannot_be_opened_in_time_holds_up_no_start(
    folder: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.delivery.pipeline.OPEN_SECONDS", 0.05)
    sink, source = Script(), Source()
    async with running(deliver(sink, folder)) as delivery:
        delivery.put(source.next())
    stuck.stuck = True
    sink = Script()
    async with running(deliver(sink, folder, connect=stuck.connect_late)) as delivery:
        delivery.put(source.next())
        await sink.until(lambda: sink.ids)
        assert not delivery.events.has_journal
        stuck.let_go()
        await soon(lambda: delivery.events.has_journal)
        delivery.put(source.next())
        await soon(lambda: delivery.events.journaled > 0)
    assert sink.ids == source.made[1:]


async def test_dropped_without_a_journal_in_a_durable_lane_says_so(folder: Path) -> None:
    sink, source, disk = Script(up=False), Source(size=1000), Failing("BEGIN")
    async with running(deliver(sink, folder, memory=200_000, connect=disk.connect), stop_seconds=1) as delivery:
        disk.name = "SQLITE_READONLY"
        for stamped in source.some(1000):
            delivery.put(stamped)
        await soon(lambda: any("nothing is journaled" in trouble for trouble in delivery.troubles()))
        assert list(delivery.losses.totals) == [("events", "journal_unavailable")]
        disk.name = None
        await soon(lambda: not any("journaled" in trouble for trouble in delivery.troubles()))
        sink.up = True
        await sink.until(lambda: source.made[-1] in sink.ids)
    assert len(once(sink.ids)) + lost(delivery) == 1000


async def test_without_a_journal_nothing_is_told_of_one(folder: Path) -> None:
    sink, source = Script(up=False), Source(MEMORY.type)
    async with running(deliver(sink, None), stop_seconds=1) as delivery:
        delivery.put(source.next())
        await soon(lambda: delivery.troubles() == ["nothing is delivered to the script: nobody is there"])


async def test_a_bug_in_a_sink_ends_the_agent_and_does_not_look_like_work(folder: Path) -> None:
    class Buggy(Script):
        async def send(self, batch: Sequence[Entry]) -> Sequence[Entry]:
            raise ZeroDivisionError(len(batch))

    with pytest.raises(ExceptionGroup) as raised:
        async with running(deliver(Buggy(), folder)) as delivery:
            delivery.put(Source().next())
            await asyncio.Event().wait()
    assert raised.group_contains(ZeroDivisionError)


async def test_a_batch_that_is_full_by_its_bytes_waits_for_no_more() -> None:
    lane, source = (
        RecordQueue("samples", QueueLimits(1 << 20, 0), DropLedger(), durable=False, gather_seconds=10 * LONG),
        Source(SAMPLE),
    )
    for stamped in source.some(10):
        lane.put(Entry.of(stamped))
    waiting = asyncio.create_task(lane.gathered(1000, 1 << 20))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    waiting.cancel()
    async with asyncio.timeout(LONG):
        await lane.gathered(1000, 1000)
