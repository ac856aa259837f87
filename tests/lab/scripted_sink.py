"""A scripted sink, a source of numbered records, and a delivery pipeline that runs while a block runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.delivery.drops import DROP_REPORT_TYPE, DropReport
from agent.delivery.journal.database import OpenDatabase
from agent.delivery.pipeline import DeliveryPipeline, DeliverySettings
from agent.delivery.queue import RecordQueue
from agent.delivery.sinks.base import Sink, SinkError
from agent.delivery.waits_and_deadlines import DeliveryWaitsAndDeadlines
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm

DEADLINE_SECONDS: Final = 180.0
"""Deadline of everything that is expected: generous, for a machine under load."""
EVENT: Final = "qemu.event.stop"
SAMPLE: Final = "qemu.sample.block"
START_NS: Final = 1_763_716_442_000_000_000
VMS: Final = tuple(Vm("host1", f"00000000-0000-4000-8000-00000000000{n}", f"vm{n}") for n in range(3))
SHORT_TIMINGS: Final = DeliveryWaitsAndDeadlines(
    linger=0.0, drop_report_interval=0.0, first_retry=0.01, max_retry=0.02, journal_retry=0.03, delete_delay=0.02
)
"""Retries follow within milliseconds."""


class ScriptedSink:
    """A sink that a test controls.

    Attributes:
        up: whether the sink accepts records.
        rejected: ids of the records that the sink rejects.
        batches: the accepted batches, in order, without rejected records.
        opens: how often the sink was opened.
        sends: how often a batch was sent, with any result.
        gate: while this event is not set, accepted batches are not acknowledged.
        changed: set whenever a batch is sent.
    """

    name = "the script"

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.rejected: set[str] = set()
        self.batches: list[list[EncodedRecord]] = []
        self.opens = 0
        self.sends = 0
        self.is_open = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Event()

    async def open(self) -> None:
        assert not self.is_open, "a sink is closed before it is opened again"
        self.opens += 1
        await asyncio.sleep(0)
        if not self.up:
            raise SinkError("the sink is down")
        self.is_open = True

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        assert batch, "a batch is never empty"
        self.sends += 1
        self.changed.set()
        await asyncio.sleep(0)
        if not (self.up and self.is_open):
            raise SinkError("the connection is lost")
        self.batches.append([record for record in batch if record.id not in self.rejected])
        self.changed.set()
        await self.gate.wait()
        return [record for record in batch if record.id in self.rejected]

    async def close(self) -> None:
        self.is_open = False

    @property
    def records(self) -> list[EncodedRecord]:
        """All accepted records, in order, with repetitions."""
        return [record for batch in self.batches for record in batch]

    @property
    def ids(self) -> list[str]:
        """The ids of all accepted records, except those about the agent itself."""
        return [record.id for record in self.records if not record.type.startswith("qemu.agent.")]

    @property
    def drop_reports(self) -> list[EncodedRecord]:
        """The accepted records that report drops."""
        return [record for record in self.records if record.type == DROP_REPORT_TYPE]

    async def until(self, predicate: Callable[[], object]) -> None:
        """Wait until a predicate returns a true value. It is evaluated whenever a batch is sent."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not predicate():
                self.changed.clear()
                await self.changed.wait()


class RecordSource:
    """Makes numbered records of three VMs in turn.

    Attributes:
        ids: the ids of all records so far, in order.
        bodies: the bodies of all records so far, by id.
    """

    def __init__(self, record_type: str = EVENT, *, size: int = 100, run: int = 0, start_ns: int = START_NS) -> None:
        """Configure the records.

        Args:
            record_type: the type of the records.
            size: bytes of padding in each record.
            run: a number that makes the ids of several sources distinct.
            start_ns: time of the first record, in nanoseconds since the epoch. Each record is a nanosecond later than the previous one.
        """
        self.record_type = record_type
        self.ids: list[str] = []
        self.bodies: dict[str, bytes] = {}
        self.padding = "x" * size
        self._start_ns = start_ns
        self._encode = RecordEncoder(START_NS + run * 1_000_000_000)

    def next(self, record_type: str | None = None) -> EncodedRecord:
        """Return the next record."""
        number = len(self.ids)
        data = {"n": number, "pad": self.padding}
        record = self._encode(Record(record_type or self.record_type, VMS[number % 3], data, self._start_ns + number))
        self.ids.append(record.id)
        self.bodies[record.id] = record.body
        return record

    def take(self, count: int, record_type: str | None = None) -> Iterator[EncodedRecord]:
        """Yield the next records."""
        for _ in range(count):
            yield self.next(record_type)


def make_pipeline(
    sink: Sink,
    folder: Path | None,
    *,
    memory: int = 16 << 20,
    disk: int = 64 << 20,
    connect: OpenDatabase | None = None,
    timings: DeliveryWaitsAndDeadlines = SHORT_TIMINGS,
    linger_seconds: float = 0.0,
) -> DeliveryPipeline:
    """Return a delivery pipeline to a sink. It publishes a record about dropped records, like the agent.

    Args:
        sink: the sink.
        folder: the journal's directory; None for no journal.
        memory: bytes of memory for all queues.
        disk: bytes of disk for each queue.
        connect: opens the journal's database; a test can pass a faulty disk's function.
        timings: delays and timeouts.
        linger_seconds: how long a sample waits for more samples of the same batch.
    """
    encode = RecordEncoder()
    agent = Vm("host1", "", "")

    def report_drops(report: DropReport) -> None:
        record = Record(DROP_REPORT_TYPE, agent, report.data(), START_NS, report.queue, Severity.ERROR)
        pipeline.put(encode(record))

    timings = replace(timings, linger=linger_seconds)
    pipeline = DeliveryPipeline(sink, DeliverySettings(memory, folder, disk, disk, disk, timings), report_drops)
    if connect is not None and pipeline.journal is not None:
        pipeline.journal._connect = connect
    return pipeline


@contextlib.asynccontextmanager
async def running(
    pipeline: DeliveryPipeline, stop_seconds: float = DEADLINE_SECONDS
) -> AsyncIterator[DeliveryPipeline]:
    """Run a pipeline while the `with` block runs. The block must end before a deadline.

    Args:
        pipeline: the pipeline.
        stop_seconds: how long the stop may take. By default it is long enough for the journal on a busy machine. While the sink fails, a
            stop does not wait for it. A test in which the stop has to drop records passes a short time.
    """
    async with asyncio.timeout(3 * DEADLINE_SECONDS), pipeline.run_in_background(stop_seconds):
        yield pipeline


async def eventually(predicate: Callable[[], object]) -> None:
    """Wait until a predicate returns a true value. It is evaluated every millisecond."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not predicate():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


def is_within_limits(queue: RecordQueue) -> bool:
    """Return whether a queue is within its limits. The journal may still have records of a durable queue to write."""
    return queue.tail.bytes <= queue.limits.memory and not queue.journaling.backlog_bytes_to_drop


async def journal_caught_up(queue: RecordQueue) -> None:
    """Wait until the queue is within its limits."""
    await eventually(lambda: is_within_limits(queue))


def is_journaled(queue: RecordQueue) -> bool:
    """Return whether the journal has all records of a queue."""
    return queue.journaling.available and all(
        record.row is not None for record in (*queue.in_flight, *queue.tail.records)
    )


def deduplicated(ids: Sequence[str]) -> list[str]:
    """Return ids without repetitions, like a consumer that deduplicates."""
    return list(dict.fromkeys(ids))


def dropped(pipeline: DeliveryPipeline) -> int:
    """Return the number of records that were counted as dropped."""
    return sum(pipeline.drops.totals.values())
