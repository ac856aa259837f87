"""What every kind of lane promises while the agent runs: order, exact counts, and nothing lost that need not be."""

import asyncio
from pathlib import Path

from agent.delivery.journal.database import JournalDatabase
from tests.lab.queue_kinds import Kind, each_kind
from tests.lab.scripted_sink import Script, Source, caught_up, deliver, lost, once, running, soon

pytestmark = each_kind


async def test_what_is_put_in_comes_out_once_and_in_order(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    async with running(deliver(sink, kind.folder(folder))) as delivery:
        for stamped in source.some(3000):
            delivery.put(stamped)
            if len(source.made) % 100 == 0:
                await asyncio.sleep(0)
        await sink.until(lambda: len(sink.ids) >= 3000)
        assert delivery.outlet.delivered == 3000
    assert sink.ids == source.made
    assert {entry.id: entry.body for entry in sink.entries} == source.bodies
    assert lost(delivery) == 0
    assert len(kind.lane(delivery)) == 0


async def test_a_record_put_while_a_batch_flies_comes_behind_it(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    async with running(deliver(sink, kind.folder(folder))) as delivery:
        sink.gate.clear()
        delivery.put(source.next())
        await sink.until(lambda: sink.ids == source.made)
        for stamped in source.some(50):
            delivery.put(stamped)
        assert len(sink.batches) == 1
        sink.gate.set()
        await sink.until(lambda: len(sink.ids) >= 51)
    assert sink.ids == source.made
    assert len(sink.batches) == 2


async def test_what_failed_is_sent_again_before_what_came_later(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    async with running(deliver(sink, kind.folder(folder))) as delivery:
        for _ in range(5):
            sink.up = False
            for stamped in source.some(10):
                delivery.put(stamped)
            before = sink.sends + sink.opens
            await soon(lambda tries=before: sink.sends + sink.opens > tries + 2)  # type: ignore[misc]
            assert delivery.troubles()
            sink.up = True
            await sink.until(lambda: len(once(sink.ids)) == len(source.made))
            await soon(lambda: delivery.troubles() == [])
        assert delivery.outlet.rebuilt > 0
    assert once(sink.ids) == source.made
    assert lost(delivery) == 0


async def test_over_its_budget_the_oldest_that_wait_go_and_each_is_counted(kind: Kind, folder: Path) -> None:
    sink, source = Script(up=False), Source(kind.type, size=1000)
    async with running(deliver(sink, kind.folder(folder), memory=200_000, disk=400_000)) as delivery:
        lane = kind.lane(delivery)
        for _ in range(100):
            for stamped in source.some(50):
                delivery.put(stamped)
            await caught_up(lane)
        sink.up = True
        await sink.until(lambda: source.made[-1] in sink.ids)
        await lane.drained()
    came = once(sink.ids)
    missing = [number for number, record_id in enumerate(source.made) if record_id not in set(came)]
    assert came == [record_id for record_id in source.made if record_id in set(came)], "order is kept"
    assert len(missing) == lost(delivery) > 1000
    assert missing == list(range(missing[0], missing[0] + len(missing))), "the oldest that did not fly, and no other"
    assert [key[1] for key in delivery.losses.totals] == ["queue_full"]
    kept = sum(len(source.bodies[record_id]) for record_id in came)
    assert kept > 50_000, "a budget is used"
    assert kept < 2 * (200_000 + (400_000 if kind.journaled else 0))
    told = [entry.body for entry in sink.told]
    assert sum(int(body.split(b'"records":')[1].split(b",")[0]) for body in told) == lost(delivery)


async def test_refused_records_are_buried_and_the_rest_delivered(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    stamped = list(source.some(100))
    sink.refused = set(source.made[7:60:11])
    async with running(deliver(sink, kind.folder(folder))) as delivery:
        for one in stamped:
            delivery.put(one)
        await sink.until(lambda: len(sink.ids) == 95 and sink.told)
        assert delivery.outlet.delivered >= 95
    assert sink.ids == [record_id for record_id in source.made if record_id not in sink.refused]
    assert delivery.losses.totals == {(kind.lane(delivery).name, "rejected"): 5}
    if delivery.journal is not None:
        store = JournalDatabase(delivery.journal.path)
        dead = list(store.dead())
        store.close()
        assert [(reason, entry.id) for reason, entry in dead] == [("rejected", i) for i in source.made[7:60:11]]
        assert [entry.body for _, entry in dead] == [source.bodies[i] for i in source.made[7:60:11]]


async def test_what_is_left_at_the_end_is_delivered_while_the_sink_takes_it(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    async with running(deliver(sink, kind.folder(folder))) as delivery:
        for stamped in source.some(2500):
            delivery.put(stamped)
    assert sink.ids == source.made, "even those put in when the sink was not open yet"
    assert lost(delivery) == 0


async def test_a_sink_that_is_down_at_the_end_costs_no_more_than_the_deadline(kind: Kind, folder: Path) -> None:
    sink, source = Script(up=False), Source(kind.type)
    async with asyncio.timeout(2), running(deliver(sink, kind.folder(folder)), stop_seconds=1) as delivery:
        for stamped in source.some(2500):
            delivery.put(stamped)
        await soon(lambda: sink.opens > 1)
    assert sink.ids == []
    assert lost(delivery) == (0 if kind.journaled else 2500)
    if kind.journaled:
        sink = Script()
        async with running(deliver(sink, kind.folder(folder))) as delivery:
            await sink.until(lambda: len(sink.ids) >= 2500)
        assert sink.ids == source.made, "the next run delivers it all"
    else:
        assert delivery.losses.totals == {("events", "shutdown"): 2500}


async def test_a_sink_that_hangs_at_the_end_costs_no_more_than_the_deadline(kind: Kind, folder: Path) -> None:
    sink, source = Script(), Source(kind.type)
    sink.gate.clear()
    async with asyncio.timeout(2), running(deliver(sink, kind.folder(folder)), stop_seconds=1) as delivery:
        for stamped in source.some(10):
            delivery.put(stamped)
        await sink.until(lambda: sink.ids)
    assert lost(delivery) == (0 if kind.journaled else 10)


async def test_over_many_restarts_nothing_is_lost_and_order_kept(kind: Kind, folder: Path) -> None:
    made: list[str] = []
    came: list[str] = []
    gone = 0
    for run in range(6):
        sink, source = Script(up=run % 3 == 2), Source(kind.type, size=400, run=run)
        memory = 16 << 20 if run % 2 else 60_000
        async with running(deliver(sink, kind.folder(folder), memory=memory), stop_seconds=1) as delivery:
            for _ in range(25):
                for stamped in source.some(20):
                    delivery.put(stamped)
                await caught_up(kind.lane(delivery))
        made += source.made
        came += sink.ids
        gone += lost(delivery)
    if kind.journaled:
        assert gone == 0
        assert once(came) == made
    assert len(once(came)) + gone == len(made)
