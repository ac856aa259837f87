"""Random walks through the states of records and sinks: each transition is legal, and no record is lost or out of order."""

import asyncio
from collections import deque
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.delivery.drops import DropLedger
from agent.delivery.queue import RecordQueue
from agent.delivery.queue_contents import QueueLimits
from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.supervisor import SinkState, SinkSupervisor
from agent.delivery.sizes import RowsSummary
from agent.model.record import EncodedRecord, RecordDeliveryState
from tests.lab.scripted_sink import SHORT_TIMINGS, RecordSource, ScriptedSink, deduplicated, eventually

IN_MEMORY = {RecordDeliveryState.QUEUED, RecordDeliveryState.WRITING, RecordDeliveryState.JOURNALED}


class QueueMachine(RuleBasedStateMachine):
    """A durable queue. A dict of rows stands for its journal, and a list of ids for its sink."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.drops = DropLedger()
        self.queue = RecordQueue("events", QueueLimits(4000, 1 << 20), self.drops, durable=self.durable)
        self.source = RecordSource()
        self.rows: dict[int, EncodedRecord] = {}
        self.last_row = 0
        self.writing: list[EncodedRecord] | None = None
        self.in_order = True
        self.delivered: list[str] = []
        self.open_journal([])

    def open_journal(self, copied: list[EncodedRecord]) -> None:
        contents = RowsSummary()
        for record in self.rows.values():
            contents.add_records_of_type(record.type, 1, record.bytes_with_overhead, record.time_ns, record.time_ns)
        self.queue.journaling.on_opened(contents, self.last_row, copied, sorted(self.rows)[: len(copied)])

    def journaled_copy(self, record: EncodedRecord, row: int) -> EncodedRecord:
        fields = (record.id, record.key, record.type, record.time_ns, record.body)
        return EncodedRecord(*fields, row=row, delivery_state=RecordDeliveryState.JOURNALED)

    @rule(count=st.integers(1, 12))
    def put(self, count: int) -> None:
        for record in self.source.take(count):
            self.queue.put(record)

    @precondition(lambda self: self.writing is None and self.queue.journaling.available)
    @rule()
    def start_write(self) -> None:
        self.deletion = self.queue.backlog.next_deletion()
        self.writing = self.queue.journaling.take_records_for_transaction()

    @precondition(lambda self: self.writing is not None)
    @rule()
    def commit(self) -> None:
        assert self.writing is not None
        if self.deletion is not None:
            gone = [row for row in self.rows if self.deletion.after_row < row <= self.deletion.last_row]
            for row in gone:
                del self.rows[row]
        rows = range(self.last_row + 1, self.last_row + 1 + len(self.writing))
        self.last_row += len(self.writing)
        self.rows |= {row: self.journaled_copy(record, row) for row, record in zip(rows, self.writing, strict=True)}
        self.writing = None
        self.queue.journaling.on_committed(rows, self.deletion)

    @precondition(lambda self: self.writing is not None)
    @rule(available=st.booleans())
    def fail_write(self, *, available: bool) -> None:
        self.writing = None
        self.queue.journaling.on_journal_failed(available=available)

    @precondition(lambda self: not self.queue.journaling.available)
    @rule()
    def resume_journal(self) -> None:
        self.queue.journaling.on_journal_works_again()

    @precondition(lambda self: self.writing is None)
    @rule()
    def replace_journal(self) -> None:
        self.queue.journaling.on_journal_failed(available=False)
        copied = [record for record in self.queue.in_flight if self.durable or record.row is not None]
        backlog = self.queue.backlog
        waiting = [self.rows[row] for row in sorted(self.rows) if backlog.after_row < row <= backlog.last_row]
        self.rows.clear()
        for record in (*copied, *waiting):
            self.last_row += 1
            self.rows[self.last_row] = self.journaled_copy(record, self.last_row)
        self.open_journal(copied)

    @precondition(lambda self: not self.queue.in_flight)
    @rule(count=st.integers(1, 8))
    def take(self, count: int) -> None:
        if self.queue.backlog:
            if self.queue.journaling.available:
                after = self.queue.backlog.after_row
                rows = [row for row in sorted(self.rows) if row > after][:count]
                self.queue.take_from_disk([self.rows[row] for row in rows], 0, rows[-1] if rows else after)
                for row in rows:  # read again, if at all, as a new object
                    self.rows[row] = self.journaled_copy(self.rows[row], row)
        else:
            self.queue.take_from_memory(count, 1 << 20)

    @precondition(lambda self: self.queue.backlog and not self.queue.in_flight)
    @rule()
    def hang(self) -> None:
        """Let the disk hang: newer records are delivered first."""
        self.queue.journaling.on_disk_hang_changed(hangs=True)
        self.queue.journaling.postpone_unreadable_backlog()
        self.in_order = False

    @rule()
    def respond(self) -> None:
        self.queue.journaling.on_disk_hang_changed(hangs=False)

    @precondition(lambda self: self.queue.in_flight)
    @rule()
    def ack(self) -> None:
        self.delivered += [record.id for record in self.queue.in_flight]
        self.queue.ack()

    @invariant()
    def states_match_places(self) -> None:
        for record in (*self.queue.in_flight, *self.queue.tail.records):
            assert record.delivery_state in IN_MEMORY
            assert (record.row is not None) == (record.delivery_state is RecordDeliveryState.JOURNALED)
        assert self.queue.tail.bytes == sum(record.bytes_with_overhead for record in self.queue.tail.records)

    @invariant()
    def rows_are_counted(self) -> None:
        assert self.queue.backlog.stored_size.records == len(self.rows)

    @invariant()
    def delivered_in_order(self) -> None:
        assert deduplicated(self.delivered) == self.delivered
        if self.in_order:
            assert self.delivered == sorted(self.delivered, key=self.source.ids.index)

    def teardown(self) -> None:
        if self.writing is not None:
            self.commit()
        self.queue.journaling.on_journal_works_again()
        self.respond()
        for _ in range(len(self.source.ids) + 2):
            if self.queue.in_flight:
                self.ack()
            self.start_write()
            self.commit()
            self.take(100)
        assert len(self.delivered) + sum(self.drops.totals.values()) == len(self.source.ids)
        self.queue.drop_remaining()
        assert len(self.queue) == 0


class SpillingQueueMachine(QueueMachine):
    """A queue whose records are journaled only if they do not fit into memory."""

    durable = False


def test_rows_delivered_before_a_hang_are_deleted_after_it() -> None:
    machine = QueueMachine()
    machine.put(3)
    machine.start_write()
    machine.commit()
    machine.put(3)
    machine.respond()
    machine.put(1)
    machine.take(1)
    machine.ack()
    machine.hang()
    machine.start_write()
    machine.commit()
    machine.rows_are_counted()
    machine.teardown()


def test_a_record_delivered_between_two_hangs_is_delivered_once() -> None:
    machine = QueueMachine()
    machine.put(3)
    machine.start_write()
    machine.commit()
    machine.put(3)
    machine.hang()
    machine.start_write()
    machine.put(1)
    machine.take(1)
    machine.ack()
    machine.commit()
    machine.put(1)
    machine.hang()
    machine.start_write()
    machine.commit()
    machine.teardown()
    machine.delivered_in_order()


TestDurableQueue = QueueMachine.TestCase
TestSpillingQueue = SpillingQueueMachine.TestCase
TestDurableQueue.settings = TestSpillingQueue.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None
)


class RandomSink(ScriptedSink):
    """A sink whose first calls have the given outcomes. Later calls succeed."""

    def __init__(self, outcomes: list[str]) -> None:
        super().__init__()
        self.outcomes = deque(outcomes)

    def raise_next_outcome(self) -> None:
        match self.outcomes.popleft() if self.outcomes else "ok":
            case "fail":
                raise SinkError("scripted")
            case "retry":
                raise SinkError("scripted", retry_now=True)

    async def open(self) -> None:
        await super().open()
        try:
            self.raise_next_outcome()
        except SinkError:
            self.is_open = False
            raise

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        self.raise_next_outcome()
        return await super().send(batch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(("ok", "fail", "retry")), max_size=12))
async def test_every_batch_is_delivered_after_any_failures_of_a_sink(outcomes: list[str]) -> None:
    sink, sources = RandomSink(outcomes), [RecordSource(run=run) for run in range(3)]
    supervisor = SinkSupervisor(sink, SHORT_TIMINGS)
    async with asyncio.timeout(60):
        await asyncio.gather(*(supervisor.deliver([*source.take(3)]) for source in sources))
    assert (supervisor.state, supervisor.delivered, supervisor.error) == (SinkState.OPEN, 9, None)
    assert sorted(sink.ids) == sorted(record_id for source in sources for record_id in source.ids)
    await supervisor.close()
    assert (supervisor.state, sink.is_open) == (SinkState.CLOSED, False)


async def test_a_cancelled_open_leaves_the_sink_closed() -> None:
    class HangingSink(ScriptedSink):
        async def open(self) -> None:
            await asyncio.Event().wait()

    supervisor = SinkSupervisor(HangingSink(), SHORT_TIMINGS)
    opening = asyncio.create_task(supervisor.open_without_records())
    await eventually(lambda: supervisor.state is SinkState.OPENING)
    opening.cancel()
    await asyncio.wait({opening})
    assert supervisor.state is SinkState.CLOSED
