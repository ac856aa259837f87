"""Limits of queues: disk while everything works, memory while nothing works, and time at a stop."""

import asyncio
import contextlib
import gc
import json
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.queue import RecordQueue
from agent.delivery.queue_parts import QueueLimits
from agent.model.record import EncodedRecord, RecordState, StateNote
from tests.lab.faulty_disk import FailingDisk, HangingDisk
from tests.lab.queue_kinds import DURABLE, MEMORY, SPILLING, QueueKind, journaled_kinds
from tests.lab.scripted_sink import (
    DEADLINE_SECONDS,
    SAMPLE,
    SHORT_TIMINGS,
    START_NS,
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
def hanging() -> Iterator[HangingDisk]:
    """A disk that hangs if a test sets its `hanging`. It works again after the test."""
    disk = HangingDisk()
    yield disk
    disk.release()


QUEUE_KINDS_AND_DISKS = [
    (MEMORY, "none"),
    *((kind, disk) for kind in (DURABLE, SPILLING) for disk in ("works", "hangs", "fails")),
]


def records_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is EncodedRecord for thing in gc.get_objects())


def test_a_record_takes_about_as_much_memory_as_is_counted_for_it() -> None:
    source = RecordSource(size=500)
    tracemalloc.start()
    records = [*source.take(500)]
    source.bodies.clear()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 1.5 * sum(record.size for record in records)


async def test_samples_are_not_written_to_disk_while_the_sink_works(folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(SAMPLE)
    async with running(make_pipeline(sink, folder)) as pipeline:
        for _ in range(20):
            for record in source.take(100):
                pipeline.put(record)
            await sink.until(lambda: len(sink.ids) == len(source.ids))
        assert pipeline.journal is not None
        assert (pipeline.samples.journaling.written, pipeline.journal.commits) == (0, 0)


async def test_samples_linger_for_a_batch_and_events_do_not(folder: Path) -> None:
    sink, samples, events = ScriptedSink(), RecordSource(SAMPLE, run=1), RecordSource()
    async with running(make_pipeline(sink, folder, linger_seconds=DEADLINE_SECONDS / 20)) as pipeline:
        for record in samples.take(5):
            pipeline.put(record)
        await asyncio.sleep(0)
        for record in samples.take(5):
            pipeline.put(record)
        event = events.next()
        pipeline.put(event)
        await sink.until(lambda: samples.ids[-1] in sink.ids)
    assert [[record.id for record in batch] for batch in sink.batches] == [[event.id], samples.ids]


@pytest.mark.parametrize("error", [None, asyncio.CancelledError()], ids=["stop", "cancelled"])
async def test_a_stop_sends_lingering_records_immediately(error: BaseException | None, folder: Path) -> None:
    sink, samples = ScriptedSink(), RecordSource(SAMPLE)
    with contextlib.suppress(asyncio.CancelledError):
        async with running(make_pipeline(sink, None, linger_seconds=10 * DEADLINE_SECONDS)) as pipeline:
            pipeline.put(samples.next())
            await asyncio.sleep(0)
            if error is not None:
                raise error
    assert sink.ids == samples.ids
    assert dropped(pipeline) == 0


async def test_an_unexpected_exception_in_delivery_ends_the_agent_immediately(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ScriptedSink, "send", lambda self, _: fail(self))
    with pytest.raises(ExceptionGroup) as caught:
        async with (
            asyncio.timeout(DEADLINE_SECONDS / 2),
            running(make_pipeline(ScriptedSink(), folder), stop_seconds=2 * DEADLINE_SECONDS) as pipeline,
        ):
            pipeline.put(RecordSource().next())
            await asyncio.sleep(DEADLINE_SECONDS)
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_samples_spill_to_disk_while_the_sink_is_down_and_keep_their_order(folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(SAMPLE, size=400)
    async with running(make_pipeline(sink, folder, memory=200_000)) as pipeline:
        queue = pipeline.samples
        for _ in range(4):
            sink.up = False
            for _ in range(20):
                for record in source.take(40):
                    pipeline.put(record)
                await journal_caught_up(queue)
            assert queue.backlog.waiting.records > 300
            sink.up = True
            for record in source.take(10):  # while the backlog is being sent
                pipeline.put(record)
            await sink.until(lambda: deduplicated(sink.ids) == source.ids)
            await eventually(lambda: queue.backlog.stored.records == 0 and queue.backlog.waiting.records == 0)
        assert 1000 < queue.journaling.written < len(source.ids), "records that fit into memory are not written"
    assert dropped(pipeline) == 0


async def test_delivered_records_are_deleted_from_the_journal(folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        queue = pipeline.events
        for record in source.take(3000):
            pipeline.put(record)
        await eventually(lambda: queue.journaling.written == 3000)
        assert queue.backlog.stored.records == 3000
        sink.up = True
        await sink.until(lambda: len(sink.ids) == 3000)
        await eventually(lambda: queue.backlog.stored.records == 0)
        assert queue.backlog.stored.bytes == 0
        assert pipeline.journal is not None
        assert pipeline.journal.commits < 20, "records share an fsync"


@journaled_kinds
async def test_journaled_records_survive_a_kill(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(kind.type)
    async with running(make_pipeline(sink, folder / "one", memory=100_000), stop_seconds=1) as pipeline:
        queue = kind.queue(pipeline)
        for record in source.take(200):
            pipeline.put(record)
            await journal_caught_up(queue)
        await eventually(
            lambda: (
                queue.journaling.written > 50
                and (is_journaled(queue) or not (kind.durable or queue.journaling._pending.busy))
            )
        )
        journaled = queue.journaling.written
        shutil.copytree(folder / "one", folder / "two")  # the files after a kill -9
    if kind.durable:
        assert journaled == 200
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder / "two")):
        await sink.until(lambda: len(sink.ids) >= journaled)
    assert [record_id for record_id in source.ids if record_id in set(sink.ids)] == sink.ids
    assert {record.id: record.body for record in sink.records}.items() <= source.bodies.items()


async def test_unreported_drops_survive_a_restart_and_are_reported_once(folder: Path) -> None:
    sink = ScriptedSink(up=False)
    async with running(make_pipeline(sink, folder), stop_seconds=1) as pipeline:
        pipeline.drops.add("samples", DropReason.QUEUE_FULL, 7, START_NS, START_NS + 5 * 10**9, 0)
        pipeline.drops.add("events", DropReason.CORRUPT, 2, 0, 0, 0)
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)) as pipeline:
        pipeline.drops.add("samples", DropReason.QUEUE_FULL, 3, START_NS - 10**9, START_NS, 0)
        pipeline.put(RecordSource().next())
        await sink.until(lambda: len(sink.drop_reports) == 2)
        assert not pipeline.drops.has_unreported
    reports = [json.loads(record.body) for record in sink.drop_reports]
    assert [(report["subject"], report["severitytext"], report["data"]) for report in reports] == [
        (
            "samples",
            "ERROR",
            {
                "reason": "queue_full",
                "queue": "samples",
                "records": 10,
                "first_timestamp_seconds": START_NS / 1e9 - 1,
                "last_timestamp_seconds": START_NS / 1e9 + 5,
            },
        ),
        ("events", "ERROR", {"reason": "corrupt", "queue": "events", "records": 2}),
    ]
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)) as pipeline:
        pipeline.put(RecordSource(run=1).next())
        await sink.until(lambda: sink.ids)
    assert sink.drop_reports == [], "each drop is reported once"


@pytest.mark.parametrize(
    ("kind", "disk"), QUEUE_KINDS_AND_DISKS, ids=lambda it: it.name if isinstance(it, QueueKind) else it
)
async def test_memory_stays_bounded_while_100000_records_cannot_be_sent(
    kind: QueueKind, disk: str, folder: Path, hanging: HangingDisk
) -> None:
    sink, failing, template = ScriptedSink(), FailingDisk("BEGIN"), RecordSource(kind.type, size=500).next()
    connect = failing.connect if disk == "fails" else hanging.connect
    pipeline = make_pipeline(sink, kind.folder(folder), memory=4 << 20, disk=256 << 20, connect=connect)
    queue = kind.queue(pipeline)
    async with running(pipeline, stop_seconds=10 if disk == "works" else 1):
        pipeline.put(template)
        await sink.until(lambda: sink.ids)
        sink.gate.clear()  # it accepts records and never acknowledges them
        hanging.hanging, failing.error_name = disk == "hangs", "SQLITE_READONLY" if disk == "fails" else None
        highest = 0
        for number in range(100_000):
            pipeline.put(replace(template, id=f"{template.id}-{number}", row=None, state=RecordState.QUEUED))
            if number % 500 == 499:
                await asyncio.sleep(0)
                highest = max(highest, queue.memory_bytes)
                if disk == "works":
                    await journal_caught_up(queue)
        held = records_in_memory()
        hanging.release()
        failing.error_name = None
        sink.gate.set()
    assert highest <= 2 * (2 << 20) + 2 * (1 << 20), "twice the queue's half of the memory, and what is in flight"
    assert held < 12_000
    if disk == "works":
        assert dropped(pipeline) == 0


@pytest.mark.parametrize("kind", [DURABLE, SPILLING], ids=lambda kind: kind.name)
async def test_a_hanging_disk_delays_neither_delivery_nor_a_stop(
    kind: QueueKind, folder: Path, hanging: HangingDisk
) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with asyncio.timeout(60):
        async with running(make_pipeline(sink, folder, connect=hanging.connect), stop_seconds=1) as pipeline:
            pipeline.put(source.next())
            await sink.until(lambda: sink.ids)
            hanging.hanging = True
            for _ in range(5):
                pipeline.put(source.next("qemu.event.stop"))  # has the journal start
                pipeline.put(source.next())
                await sink.until(lambda: sorted(sink.ids) == sorted(source.ids))
            await asyncio.to_thread(hanging.begun.wait, DEADLINE_SECONDS)
    assert dropped(pipeline) == 0, "all records were acknowledged"


async def test_alerts_are_delivered_while_the_journals_disk_hangs(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(), RecordSource("qemu.alert.disk_full")
    timings = replace(SHORT_TIMINGS, journal_hang=0.1)

    def alert() -> EncodedRecord:
        return replace(source.next(), note=StateNote("alert", len(source.ids)))

    async with running(make_pipeline(sink, folder, connect=hanging.connect, timings=timings)) as pipeline:
        pipeline.put(alert())
        await sink.until(lambda: sink.ids == source.ids)
        hanging.hanging = True
        for _ in range(3):
            pipeline.put(alert())
            await sink.until(lambda: sink.ids == source.ids)
        hanging.release()
        await eventually(lambda: pipeline.alerts.journaling.available)
        sink.up = False
        pipeline.put(alert())
        await eventually(lambda: is_journaled(pipeline.alerts))
        sink.up = True
        await sink.until(lambda: deduplicated(sink.ids) == source.ids)
    assert dropped(pipeline) == 0
    async with running(make_pipeline(ScriptedSink(), folder)) as pipeline:
        assert pipeline.stored_notes == {"alert": 5}


@pytest.mark.parametrize("statement", ["COMMIT", "SELECT"])
async def test_alerts_do_not_wait_for_older_ones_on_a_disk_that_hangs(
    folder: Path, hanging: HangingDisk, statement: str
) -> None:
    """The alerts on the disk follow when it works again, and none is lost or delivered twice."""
    sink, source = ScriptedSink(up=False), RecordSource("qemu.alert.disk_full", size=1000)
    timings = replace(SHORT_TIMINGS, journal_hang=0.1)
    async with running(
        make_pipeline(sink, folder, connect=hanging.connect, timings=timings, memory=4 << 20)
    ) as pipeline:
        for _ in range(15):
            for record in source.take(100):
                pipeline.put(record)
            await journal_caught_up(pipeline.alerts)
        await eventually(lambda: is_journaled(pipeline.alerts))
        assert pipeline.alerts.backlog.waiting.records > 500
        hanging.prefix, hanging.hanging = statement, True
        pipeline.put(source.next())
        if statement == "COMMIT":
            await asyncio.to_thread(hanging.begun.wait, DEADLINE_SECONDS)
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
        assert len(set(sink.ids)) < 1501, "the others are on the disk"
        assert len(pipeline.alerts) == 1501 - len(set(sink.ids))
        pipeline.put(source.next())
        await sink.until(lambda: source.ids[-1] in sink.ids)
        hanging.release()
        await sink.until(lambda: set(sink.ids) == set(source.ids))
        await eventually(lambda: len(pipeline.alerts) == 0 and pipeline.alerts.backlog.stored.records == 0)
    assert dropped(pipeline) == 0
    assert deduplicated(sink.ids) == sink.ids


async def test_a_postponed_backlog_is_delivered_after_a_restart(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(up=False), RecordSource("qemu.alert.disk_full", size=1000)
    timings = replace(SHORT_TIMINGS, journal_hang=0.1)
    async with running(
        make_pipeline(sink, folder, connect=hanging.connect, timings=timings, memory=4 << 20), stop_seconds=1
    ) as pipeline:
        for _ in range(15):
            for record in source.take(100):
                pipeline.put(record)
            await journal_caught_up(pipeline.alerts)
        await eventually(lambda: is_journaled(pipeline.alerts))
        hanging.prefix, hanging.hanging = "SELECT", True
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
    hanging.release()
    second = ScriptedSink()
    async with running(make_pipeline(second, folder)):
        await second.until(lambda: {*sink.ids, *second.ids} == set(source.ids))


async def test_a_disk_that_hangs_is_reported_until_it_continues(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(), RecordSource()
    timings = replace(SHORT_TIMINGS, unready_after=0.2)
    async with running(make_pipeline(sink, folder, connect=hanging.connect, timings=timings)) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids)
        hanging.hanging = True
        pipeline.put(source.next())
        await eventually(lambda: any("the disk of" in reason for reason in pipeline.unready_reasons()))
        hanging.release()
        await eventually(lambda: pipeline.unready_reasons() == [])


async def test_a_journal_that_opens_late_does_not_delay_the_start(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        pipeline.put(source.next())
    hanging.hanging = True
    sink = ScriptedSink()
    timings = replace(SHORT_TIMINGS, journal_open=0.05)
    async with running(make_pipeline(sink, folder, connect=hanging.connect_after_release, timings=timings)) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids)
        assert not pipeline.events.journaling.available
        hanging.release()
        await eventually(lambda: pipeline.events.journaling.available)
        pipeline.put(source.next())
        await eventually(lambda: pipeline.events.journaling.written > 0)
    assert sink.ids == source.ids[1:]


async def test_drops_of_a_durable_queue_have_their_own_reason_while_the_journal_fails(folder: Path) -> None:
    sink, source, disk = ScriptedSink(up=False), RecordSource(size=1000), FailingDisk("BEGIN")
    async with running(make_pipeline(sink, folder, memory=200_000, connect=disk.connect), stop_seconds=1) as pipeline:
        disk.error_name = "SQLITE_READONLY"
        for record in source.take(1000):
            pipeline.put(record)
        await eventually(lambda: any("nothing is journaled" in reason for reason in pipeline.unready_reasons()))
        assert list(pipeline.drops.totals) == [("events", "journal_unavailable")]
        disk.error_name = None
        await eventually(lambda: not any("journaled" in reason for reason in pipeline.unready_reasons()))
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
    assert len(deduplicated(sink.ids)) + dropped(pipeline) == 1000


async def test_a_pipeline_without_a_journal_reports_no_journal_error(folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(MEMORY.type)
    async with running(make_pipeline(sink, None), stop_seconds=1) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.unready_reasons() == ["nothing is delivered to the script: the sink is down"])


async def test_an_unexpected_exception_in_a_sink_ends_the_agent(folder: Path) -> None:
    class Buggy(ScriptedSink):
        async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
            raise ZeroDivisionError(len(batch))

    with pytest.raises(ExceptionGroup) as raised:
        async with running(make_pipeline(Buggy(), folder)) as pipeline:
            pipeline.put(RecordSource().next())
            await asyncio.Event().wait()
    assert raised.group_contains(ZeroDivisionError)


async def test_a_batch_that_is_full_does_not_linger() -> None:
    queue, source = (
        RecordQueue(
            "samples", QueueLimits(1 << 20, 0), DropLedger(), durable=False, linger_seconds=10 * DEADLINE_SECONDS
        ),
        RecordSource(SAMPLE),
    )
    for record in source.take(10):
        queue.put(record)
    waiting = asyncio.create_task(queue.linger(1000, 1 << 20))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    waiting.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await queue.linger(1000, 1000)


async def test_a_slow_disk_drops_no_record_that_a_fast_disk_would_store(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(), RecordSource(size=2000)
    timings = replace(SHORT_TIMINGS, journal_hang=0.05)
    async with running(
        make_pipeline(sink, folder, memory=1 << 20, connect=hanging.connect, timings=timings)
    ) as pipeline:
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids)
        sink.up = False
        hanging.hanging = True
        pipeline.put(source.next())
        await eventually(lambda: pipeline.events.journaling.hangs)
        while pipeline.events.memory_bytes < pipeline.events.limits.memory * 3 // 2:
            pipeline.put(source.next())
        hanging.release()
        await eventually(lambda: not pipeline.events.journaling.hangs)
        sink.up = True
        await sink.until(lambda: len(sink.ids) == len(source.ids))
    assert pipeline.drops.totals == {}
