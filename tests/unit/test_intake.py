"""Records before they are numbered: in order, a part at each turn; in a flood the loud lose, and what is severe stays."""

import asyncio
import random
from collections import Counter
from typing import Final

from agent.delivery.entry import Entry
from agent.delivery.intake import FULL_TURN_RECORDS, RECORD_BYTES, TURN_RECORDS, Intake
from agent.delivery.lane import Budget, Lane
from agent.delivery.losses import Losses
from agent.record import Record, Severity, Vm

LOUD, QUIET = (Vm("host1", f"00000000-0000-4000-8000-00000000000{n}", f"vm{n}") for n in range(2))
ROOM: Final = 1024
"""Records that wait before something has to happen."""


class Way:
    """A lane that is full or not, an intake before it, and what came through."""

    def __init__(self, *, full: bool) -> None:
        self.losses = Losses()
        self.lane = Lane("events", Budget(ROOM * RECORD_BYTES, 0), self.losses, durable=True)
        self.lane.has_journal = True
        if full:
            self.lane.put(Entry("id", "key", "qemu.event.stop", 0, b"x" * (ROOM * RECORD_BYTES + 1)))
        self.sent: list[Record] = []
        self.intake = Intake(self.sent.append, self.lane, self.losses)

    def put(self, *records: Record) -> None:
        for record in records:
            self.intake.put(record)

    @property
    def lost(self) -> int:
        return self.losses.totals.get(("events", "flood"), 0)


def event(number: int, vm: Vm = LOUD, severity: Severity = Severity.DEBUG, kind: str = "event.stop") -> Record:
    return Record(f"qemu.{kind}", vm, {"n": number}, 1000 + number, "", severity)


async def test_what_comes_is_sent_on_in_order_and_others_get_their_turns() -> None:
    way = Way(full=False)
    records = [event(number) for number in range(2 * TURN_RECORDS)]
    way.put(*records[:ROOM])
    assert way.sent == []
    await asyncio.sleep(0)
    assert way.sent == records[:TURN_RECORDS]
    way.put(*records[ROOM:])
    await asyncio.sleep(0)
    assert way.sent == records[: 2 * TURN_RECORDS]
    assert len(way.intake) == 0
    way.put(event(0))
    await asyncio.sleep(0)
    assert way.sent[-1] == event(0), "after a rest it goes on"


async def test_where_the_lane_is_full_few_are_sent_on_at_each_turn() -> None:
    way = Way(full=True)
    way.put(*(event(number) for number in range(ROOM)))
    await asyncio.sleep(0)
    assert len(way.sent) == FULL_TURN_RECORDS
    way.intake.flush()
    assert (len(way.sent), way.lost) == (ROOM, 0)


async def test_more_than_may_wait_is_sent_on_at_once_where_the_lane_has_room() -> None:
    way = Way(full=False)
    records = [event(number) for number in range(10 * ROOM)]
    way.put(*records)
    assert len(way.intake) <= ROOM
    way.intake.flush()
    assert (way.sent, way.lost) == (records, 0)


async def test_of_a_flood_the_loud_lose_the_oldest_and_it_is_counted() -> None:
    way = Way(full=True)
    quiet = [event(number, QUIET) for number in range(ROOM // 8)]
    loud = [event(number) for number in range(ROOM)]
    way.put(*quiet, *loud)
    way.intake.flush()
    assert [record for record in way.sent if record.vm is QUIET] == quiet
    kept = [record for record in way.sent if record.vm is LOUD]
    assert kept == loud[way.lost :]
    assert ROOM // 8 < way.lost < ROOM
    (loss,) = way.losses.tell()
    assert (loss.reason, loss.records, loss.first_ns, loss.last_ns) == ("flood", way.lost, 1000, 1000 + way.lost - 1)


async def test_what_is_severe_is_never_given_up_nor_a_change_in_a_vms_life() -> None:
    way = Way(full=True)
    severe = [event(number, severity=Severity(2 + number % 3)) for number in range(3 * ROOM)]
    changes = [event(number, kind="vm.attached") for number in range(3 * ROOM)]
    way.put(*severe, *changes)
    assert len(way.intake) <= ROOM
    way.intake.flush()
    assert (way.sent, way.lost) == ([*severe, *changes], 0)


async def test_whatever_comes_is_sent_in_order_or_counted() -> None:
    chance = random.Random(7)
    way, put = Way(full=True), list[Record]()
    for number in range(20 * ROOM):
        put.append(event(number, chance.choice((LOUD, LOUD, QUIET)), Severity(chance.choice((0, 0, 0, 1, 2, 4)))))
        way.put(put[-1])
        if number % 700 == 0:
            await asyncio.sleep(0)
    way.intake.flush()
    numbers = [record.data["n"] for record in way.sent]
    assert numbers == sorted(set(numbers))
    assert len(put) == len(way.sent) + way.lost
    severe = Counter(record.severity for record in put if record.severity >= Severity.WARNING)
    assert severe == Counter(record.severity for record in way.sent if record.severity >= Severity.WARNING)


async def test_a_record_that_cannot_be_sent_on_keeps_back_no_other() -> None:
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context.get("exception")))
    way = Way(full=False)

    def send(record: Record) -> None:
        if not record.data["n"]:
            raise ZeroDivisionError
        way.sent.append(record)

    way.intake = Intake(send, way.lane, way.losses)
    way.put(event(1), event(0), event(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [record.data["n"] for record in way.sent] == [1, 2]
    assert [type(error) for error in said] == [ZeroDivisionError]
