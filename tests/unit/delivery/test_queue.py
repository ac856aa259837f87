"""Guarantees of each kind of queue while the agent runs: order, exact counts, and no unnecessary drops."""

import asyncio
from pathlib import Path

from agent.delivery.journal.database import JournalDatabase
from tests.lab.queue_kinds import QueueKind, each_kind
from tests.lab.scripted_sink import (
    RecordSource,
    ScriptedSink,
    deduplicated,
    dropped,
    eventually,
    is_journaled,
    is_within_limits,
    journal_caught_up,
    make_pipeline,
    running,
)

pytestmark = each_kind


async def test_records_are_delivered_once_and_in_order(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for record in source.take(3000):
            pipeline.put(record)
            if len(source.ids) % 100 == 0:
                await asyncio.sleep(0)
        await sink.until(lambda: len(sink.ids) >= 3000)
        assert pipeline.supervisor.delivered == 3000
    assert sink.ids == source.ids
    assert {record.id: record.body for record in sink.records} == source.bodies
    assert dropped(pipeline) == 0
    assert len(kind.queue(pipeline)) == 0


async def test_records_put_during_a_send_are_sent_after_it(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        sink.gate.clear()
        pipeline.put(source.next())
        await sink.until(lambda: sink.ids == source.ids)
        for record in source.take(50):
            pipeline.put(record)
        assert len(sink.batches) == 1
        sink.gate.set()
        await sink.until(lambda: len(sink.ids) >= 51)
    assert sink.ids == source.ids
    assert len(sink.batches) == 2


async def test_a_failed_batch_is_retried_before_later_records(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for _ in range(5):
            sink.up = False
            for record in source.take(10):
                pipeline.put(record)
            before = sink.sends + sink.opens
            await eventually(lambda tries=before: sink.sends + sink.opens > tries + 2)  # type: ignore[misc]
            assert pipeline.unready_reasons()
            sink.up = True
            await sink.until(lambda: len(deduplicated(sink.ids)) == len(source.ids))
            await eventually(lambda: pipeline.unready_reasons() == [])
        assert pipeline.supervisor.reconnects > 0
    assert deduplicated(sink.ids) == source.ids
    assert dropped(pipeline) == 0


async def test_past_the_limit_the_oldest_waiting_records_are_dropped_and_counted(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(kind.type, size=1000)
    async with running(make_pipeline(sink, kind.folder(folder), memory=200_000, disk=400_000)) as pipeline:
        queue = kind.queue(pipeline)
        for _ in range(200):
            for record in source.take(25):  # half of the queue's memory
                pipeline.put(record)
            await journal_caught_up(queue)
        # A record that is written later could exceed the limit again, and the records after the batch in flight would be dropped.
        await eventually(lambda: is_within_limits(queue) and (is_journaled(queue) or not kind.durable))
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
        await queue.wait_drained()
    delivered = deduplicated(sink.ids)
    known = set(delivered)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in known]
    assert delivered == [record_id for record_id in source.ids if record_id in known], "order is kept"
    assert len(missing) == dropped(pipeline) > 1000
    assert missing == list(range(missing[0], missing[0] + len(missing))), (
        "the oldest that were not in flight, and no others"
    )
    assert [key[1] for key in pipeline.drops.totals] == ["queue_full"]
    kept = sum(len(source.bodies[record_id]) for record_id in delivered)
    assert kept > 50_000, "the limit is used"
    assert kept < 2 * (200_000 + (400_000 if kind.journaled else 0))
    reports = [record.body for record in sink.drop_reports]
    assert sum(int(body.split(b'"records":')[1].split(b",")[0]) for body in reports) == dropped(pipeline)


async def test_rejected_records_become_dead_letters_and_the_others_are_delivered(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    records = list(source.take(100))
    sink.rejected = set(source.ids[7:60:11])
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for record in records:
            pipeline.put(record)
        await sink.until(lambda: len(sink.ids) == 95 and sink.drop_reports)
        assert pipeline.supervisor.delivered >= 95
    assert sink.ids == [record_id for record_id in source.ids if record_id not in sink.rejected]
    assert pipeline.drops.totals == {(kind.queue(pipeline).name, "rejected"): 5}
    if pipeline.journal is not None:
        database = JournalDatabase(pipeline.journal.path)
        dead_letters = list(database.dead_letters())
        database.close()
        assert [(reason, record.id) for reason, record in dead_letters] == [
            ("rejected", i) for i in source.ids[7:60:11]
        ]
        assert [record.body for _, record in dead_letters] == [source.bodies[i] for i in source.ids[7:60:11]]


async def test_a_stop_delivers_the_remaining_records_while_the_sink_works(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for record in source.take(2500):
            pipeline.put(record)
    assert sink.ids == source.ids, "including those put before the sink was open"
    assert dropped(pipeline) == 0


async def test_a_stop_keeps_its_deadline_while_the_sink_is_down(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for record in source.take(2500):
            pipeline.put(record)
        await eventually(lambda: sink.opens > 1)
    assert sink.ids == []
    assert dropped(pipeline) == (0 if kind.journaled else 2500)
    if kind.journaled:
        sink = ScriptedSink()
        async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
            await sink.until(lambda: len(sink.ids) >= 2500)
        assert sink.ids == source.ids, "the next run delivers all"
    else:
        assert pipeline.drops.totals == {("events", "shutdown"): 2500}


async def test_a_stop_keeps_its_deadline_while_the_sink_hangs(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    sink.gate.clear()
    stop_seconds = 10 if kind.journaled else 1  # a part is for the journal, on a busy disk
    async with running(make_pipeline(sink, kind.folder(folder)), stop_seconds=stop_seconds) as pipeline:
        for record in source.take(10):
            pipeline.put(record)
        await sink.until(lambda: sink.ids)
    assert dropped(pipeline) == (0 if kind.journaled else 10)


async def test_many_restarts_lose_no_record_and_keep_the_order(kind: QueueKind, folder: Path) -> None:
    created: list[str] = []
    delivered: list[str] = []
    lost = 0
    for run in range(6):
        sink, source = ScriptedSink(up=run % 3 == 2), RecordSource(kind.type, size=400, run=run)
        memory = 16 << 20 if run % 2 else 60_000
        async with running(make_pipeline(sink, kind.folder(folder), memory=memory)) as pipeline:
            for _ in range(25):
                for record in source.take(20):
                    pipeline.put(record)
                await journal_caught_up(kind.queue(pipeline))
            await eventually(lambda: sink.up or pipeline.supervisor.is_failing)  # noqa: B023 - called at once
        created += source.ids
        delivered += sink.ids
        lost += dropped(pipeline)
    if kind.journaled:
        assert lost == 0
        assert deduplicated(delivered) == created
    assert len(deduplicated(delivered)) + lost == len(created)
