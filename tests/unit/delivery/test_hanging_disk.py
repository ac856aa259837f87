"""Delivery while the disk of the journal hangs or is slow."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent.delivery.pipeline import DeliveryPipeline
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord
from tests.lab.faulty_disk import HangingDisk
from tests.lab.queue_kinds import DURABLE, SPILLING, QueueKind
from tests.lab.scripted_sink import (
    DEADLINE_SECONDS,
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


async def journal_alerts(pipeline: DeliveryPipeline, source: RecordSource) -> None:
    """Enqueue 1,500 alerts, and wait until the journal has them. More than memory holds wait on the disk only."""
    for _ in range(15):
        for record in source.take(100):
            pipeline.put(record)
        await journal_caught_up(pipeline.alerts)
    await eventually(lambda: is_journaled(pipeline.alerts))


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
        return replace(source.next(), persistent_entry=PersistentEntry("alert", len(source.ids)))

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
        assert pipeline.stored_persistent_entries == {"alert": 5}


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
        await journal_alerts(pipeline, source)
        assert pipeline.alerts.backlog.size.records > 500
        hanging.prefix, hanging.hanging = statement, True
        pipeline.put(source.next())
        if statement == "COMMIT":
            await asyncio.to_thread(hanging.begun.wait, DEADLINE_SECONDS)
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
        assert len(set(sink.ids)) < 1501, "the others are on the disk"
        assert len(pipeline.alerts) == 1501 - len(set(sink.ids))
        assert pipeline.alerts.oldest_record_age_seconds() > 0
        pipeline.put(source.next())
        await sink.until(lambda: source.ids[-1] in sink.ids)
        hanging.release()
        await sink.until(lambda: set(sink.ids) == set(source.ids))
        await eventually(lambda: len(pipeline.alerts) == 0 and pipeline.alerts.backlog.stored_size.records == 0)
    assert dropped(pipeline) == 0
    assert deduplicated(sink.ids) == sink.ids


async def test_a_postponed_backlog_is_delivered_after_a_restart(folder: Path, hanging: HangingDisk) -> None:
    sink, source = ScriptedSink(up=False), RecordSource("qemu.alert.disk_full", size=1000)
    timings = replace(SHORT_TIMINGS, journal_hang=0.1)
    async with running(
        make_pipeline(sink, folder, connect=hanging.connect, timings=timings, memory=4 << 20), stop_seconds=1
    ) as pipeline:
        await journal_alerts(pipeline, source)
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
        await eventually(lambda: pipeline.events.journaling.written_records > 0)
    assert sink.ids == source.ids[1:]


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


@pytest.mark.parametrize("prefix", ["COMMIT", "PRAGMA journal_mode"], ids=["commit", "open"])
async def test_a_slow_journal_drops_no_event_within_four_times_the_memory(
    folder: Path, prefix: str, hanging: HangingDisk
) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(size=1000)
    hanging.prefix, hanging.hanging = prefix, True
    timings = replace(SHORT_TIMINGS, journal_open=0.01)
    pipeline = make_pipeline(sink, folder, memory=200_000, connect=hanging.connect, timings=timings)
    async with running(pipeline):
        queue = pipeline.events
        pipeline.put(source.next())
        await eventually(hanging.begun.is_set)
        while queue.tail.bytes < 3.9 * queue.limits.memory:
            pipeline.put(source.next())
        assert dropped(pipeline) == 0
        for record in source.take(100):
            pipeline.put(record)
        assert queue.tail.bytes <= 4 * queue.limits.memory
        assert {*pipeline.drops.totals} == {("events", "journal_unavailable")}
        hanging.release()
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
