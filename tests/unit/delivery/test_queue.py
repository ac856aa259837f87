"""What every kind of lane promises while the agent runs: order, exact counts, and nothing lost that need not be."""

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
    journal_caught_up,
    make_pipeline,
    running,
)

pytestmark = each_kind


async def test_what_is_put_in_comes_out_once_and_in_order(kind: QueueKind, folder: Path) -> None:
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


async def test_a_record_put_while_a_batch_flies_comes_behind_it(kind: QueueKind, folder: Path) -> None:
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


async def test_what_failed_is_sent_again_before_what_came_later(kind: QueueKind, folder: Path) -> None:
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


async def test_over_its_budget_the_oldest_that_wait_go_and_each_is_counted(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(kind.type, size=1000)
    async with running(make_pipeline(sink, kind.folder(folder), memory=200_000, disk=400_000)) as pipeline:
        queue = kind.queue(pipeline)
        for _ in range(100):
            for record in source.take(50):
                pipeline.put(record)
            await journal_caught_up(queue)
        sink.up = True
        await sink.until(lambda: source.ids[-1] in sink.ids)
        await queue.drained()
    came = deduplicated(sink.ids)
    missing = [number for number, record_id in enumerate(source.ids) if record_id not in set(came)]
    assert came == [record_id for record_id in source.ids if record_id in set(came)], "order is kept"
    assert len(missing) == dropped(pipeline) > 1000
    assert missing == list(range(missing[0], missing[0] + len(missing))), "the oldest that did not fly, and no other"
    assert [key[1] for key in pipeline.drops.totals] == ["queue_full"]
    kept = sum(len(source.bodies[record_id]) for record_id in came)
    assert kept > 50_000, "a budget is used"
    assert kept < 2 * (200_000 + (400_000 if kind.journaled else 0))
    drop_reports = [record.body for record in sink.drop_reports]
    assert sum(int(body.split(b'"records":')[1].split(b",")[0]) for body in drop_reports) == dropped(pipeline)


async def test_refused_records_are_buried_and_the_rest_delivered(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    record = list(source.take(100))
    sink.rejected = set(source.ids[7:60:11])
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for one in record:
            pipeline.put(one)
        await sink.until(lambda: len(sink.ids) == 95 and sink.drop_reports)
        assert pipeline.supervisor.delivered >= 95
    assert sink.ids == [record_id for record_id in source.ids if record_id not in sink.rejected]
    assert pipeline.drops.totals == {(kind.queue(pipeline).name, "rejected"): 5}
    if pipeline.journal is not None:
        store = JournalDatabase(pipeline.journal.path)
        dead_letters = list(store.dead_letters())
        store.close()
        assert [(reason, record.id) for reason, record in dead_letters] == [
            ("rejected", i) for i in source.ids[7:60:11]
        ]
        assert [record.body for _, record in dead_letters] == [source.bodies[i] for i in source.ids[7:60:11]]


async def test_what_is_left_at_the_end_is_delivered_while_the_sink_takes_it(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
        for record in source.take(2500):
            pipeline.put(record)
    assert sink.ids == source.ids, "even those put in when the sink was not open yet"
    assert dropped(pipeline) == 0


async def test_a_sink_that_is_down_at_the_end_costs_no_more_than_the_deadline(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(up=False), RecordSource(kind.type)
    async with asyncio.timeout(2), running(make_pipeline(sink, kind.folder(folder)), stop_seconds=1) as pipeline:
        for record in source.take(2500):
            pipeline.put(record)
        await eventually(lambda: sink.opens > 1)
    assert sink.ids == []
    assert dropped(pipeline) == (0 if kind.journaled else 2500)
    if kind.journaled:
        sink = ScriptedSink()
        async with running(make_pipeline(sink, kind.folder(folder))) as pipeline:
            await sink.until(lambda: len(sink.ids) >= 2500)
        assert sink.ids == source.ids, "the next run delivers it all"
    else:
        assert pipeline.drops.totals == {("events", "shutdown"): 2500}


async def test_a_sink_that_hangs_at_the_end_costs_no_more_than_the_deadline(kind: QueueKind, folder: Path) -> None:
    sink, source = ScriptedSink(), RecordSource(kind.type)
    sink.gate.clear()
    async with asyncio.timeout(2), running(make_pipeline(sink, kind.folder(folder)), stop_seconds=1) as pipeline:
        for record in source.take(10):
            pipeline.put(record)
        await sink.until(lambda: sink.ids)
    assert dropped(pipeline) == (0 if kind.journaled else 10)


async def test_over_many_restarts_nothing_is_lost_and_order_kept(kind: QueueKind, folder: Path) -> None:
    made: list[str] = []
    came: list[str] = []
    gone = 0
    for run in range(6):
        sink, source = ScriptedSink(up=run % 3 == 2), RecordSource(kind.type, size=400, run=run)
        memory = 16 << 20 if run % 2 else 60_000
        async with running(make_pipeline(sink, kind.folder(folder), memory=memory), stop_seconds=1) as pipeline:
            for _ in range(25):
                for record in source.take(20):
                    pipeline.put(record)
                await journal_caught_up(kind.queue(pipeline))
        made += source.ids
        came += sink.ids
        gone += dropped(pipeline)
    if kind.journaled:
        assert gone == 0
        assert deduplicated(came) == made
    assert len(deduplicated(came)) + gone == len(made)
