"""Limits of queues: disk while everything works, memory while nothing works, and time at a stop."""

import asyncio
import contextlib
import gc
import json
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.queue import RecordQueue
from agent.delivery.queue_contents import QueueLimits
from agent.delivery.queue_journaling import SLOW_JOURNAL_FACTOR
from agent.model.record import EncodedRecord, RecordDeliveryState
from tests.lab.faulty_disk import FailingDisk, HangingDisk
from tests.lab.queue_kinds import DURABLE, MEMORY, SPILLING, QueueKind, journaled_kinds
from tests.lab.scripted_sink import (
    DEADLINE_SECONDS,
    SAMPLE,
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
    assert size < 1.5 * sum(record.bytes_with_overhead for record in records)


async def test_samples_are_not_written_to_disk_while_the_sink_works(folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(SAMPLE)
    async with running(make_pipeline(sink, folder)) as pipeline:
        for _ in range(20):
            for record in source.take(100):
                pipeline.put(record)
            await sink.until(lambda: len(sink.ids) == len(source.ids))
        assert pipeline.journal is not None
        assert (pipeline.samples.journaling.written_records, pipeline.journal.commits) == (0, 0)


async def test_samples_linger_for_a_batch_and_events_do_not(folder: Path) -> None:
    sink, samples, events = ScriptedSink(), RecordSource(SAMPLE, run=1), RecordSource()
    async with running(make_pipeline(sink, folder, linger_seconds=10 * DEADLINE_SECONDS)) as pipeline:
        for record in samples.take(5):
            pipeline.put(record)
        await asyncio.sleep(0)
        for record in samples.take(5):
            pipeline.put(record)
        event = events.next()
        pipeline.put(event)
        await sink.until(lambda: event.id in sink.ids)
    assert [[record.id for record in batch] for batch in sink.batches] == [[event.id], samples.ids]


async def test_samples_that_have_lingered_are_sent(folder: Path) -> None:
    sink, samples = ScriptedSink(), RecordSource(SAMPLE)
    async with running(make_pipeline(sink, folder, linger_seconds=0.05)) as pipeline:
        pipeline.put(samples.next())
        await sink.until(lambda: sink.ids == samples.ids)


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
            assert queue.backlog.size.records > 300
            sink.up = True
            for record in source.take(10):  # while the backlog is being sent
                pipeline.put(record)
            await sink.until(lambda: deduplicated(sink.ids) == source.ids)
            await eventually(lambda: queue.backlog.stored_size.records == 0 and queue.backlog.size.records == 0)
        assert 1000 < queue.journaling.written_records < len(source.ids), "records that fit into memory are not written"
    assert dropped(pipeline) == 0


async def test_delivered_records_are_deleted_from_the_journal(folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource()
    async with running(make_pipeline(sink, folder)) as pipeline:
        queue = pipeline.events
        for record in source.take(3000):
            pipeline.put(record)
        await eventually(lambda: queue.journaling.written_records == 3000)
        assert queue.backlog.stored_size.records == 3000
        sink.up = True
        await sink.until(lambda: len(sink.ids) == 3000)
        await eventually(lambda: queue.backlog.stored_size.records == 0)
        assert queue.backlog.stored_size.bytes == 0
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
                queue.journaling.written_records > 50
                and (is_journaled(queue) or not (kind.durable or queue.journaling._pending.has_unwritten_records))
            )
        )
        journaled = queue.journaling.written_records
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
    async with running(make_pipeline(sink, folder)) as pipeline:
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
    async with running(pipeline, stop_seconds=DEADLINE_SECONDS if disk == "works" else 1):
        pipeline.put(template)
        await sink.until(lambda: sink.ids)
        sink.gate.clear()  # it accepts records and never acknowledges them
        hanging.hanging, failing.error_name = disk == "hangs", "SQLITE_READONLY" if disk == "fails" else None
        highest = 0
        for number in range(100_000):
            pipeline.put(
                replace(template, id=f"{template.id}-{number}", row=None, delivery_state=RecordDeliveryState.QUEUED)
            )
            if number % 500 == 499:
                await asyncio.sleep(0)
                highest = max(highest, queue.memory_bytes)
                if disk == "works":
                    await journal_caught_up(queue)
        held = records_in_memory()
        hanging.release()
        failing.error_name = None
        sink.gate.set()
    factor = SLOW_JOURNAL_FACTOR if queue.durable else 2
    assert highest <= factor * queue.limits.memory + 2 * (1 << 20), "a multiple of its share, and what is in flight"
    assert held < 12_000
    if disk == "works":
        assert dropped(pipeline) == 0


async def test_drops_of_a_durable_queue_have_their_own_reason_while_the_journal_fails(folder: Path) -> None:
    sink, source, disk = ScriptedSink(up=False), RecordSource(size=1000), FailingDisk("BEGIN")
    async with running(make_pipeline(sink, folder, memory=200_000, connect=disk.connect)) as pipeline:
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
