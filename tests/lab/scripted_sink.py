"""A sink that does as it is told, records to put into it, and a delivery that lives as long as a block."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from agent.delivery.drops import DropReport
from agent.delivery.entry import Entry
from agent.delivery.journal.database import Connect
from agent.delivery.pipeline import DeliveryPipeline, DeliverySettings
from agent.delivery.queue import RecordQueue
from agent.delivery.sinks.base import Sink, SinkError
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm

LONG: Final = 15.0
"""Seconds within which anything that is to happen has happened."""
EVENT: Final = "qemu.event.stop"
SAMPLE: Final = "qemu.sample.block"
START_NS: Final = 1_763_716_442_000_000_000
VMS: Final = tuple(Vm("host1", f"00000000-0000-4000-8000-00000000000{n}", f"vm{n}") for n in range(3))


class Script:
    """A sink.

    Attributes:
        up: whether it takes anything.
        refused: ids that it will not have.
        batches: what it took, in order, refused records left out.
        opens: how often it was opened.
        sends: how often a batch was to be sent, whatever came of it.
        gate: while cleared, a batch that was taken is not acknowledged.
    """

    name = "the script"

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.refused: set[str] = set()
        self.batches: list[list[Entry]] = []
        self.opens = 0
        self.sends = 0
        self.is_open = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Event()

    async def open(self) -> None:
        assert not self.is_open, "a sink is closed before it is opened anew"
        self.opens += 1
        await asyncio.sleep(0)
        if not self.up:
            raise SinkError("nobody is there")
        self.is_open = True

    async def send(self, batch: Sequence[Entry]) -> Sequence[Entry]:
        assert batch, "nothing is no batch"
        self.sends += 1
        self.news.set()
        await asyncio.sleep(0)
        if not (self.up and self.is_open):
            raise SinkError("the connection is lost")
        self.batches.append([entry for entry in batch if entry.id not in self.refused])
        self.news.set()
        await self.gate.wait()
        return [entry for entry in batch if entry.id in self.refused]

    async def close(self) -> None:
        self.is_open = False

    @property
    def entries(self) -> list[Entry]:
        """All that it took, in order, again and again where it came so."""
        return [entry for batch in self.batches for entry in batch]

    @property
    def ids(self) -> list[str]:
        """The ids of all that it took, but for what the agent tells of itself."""
        return [entry.id for entry in self.entries if not entry.type.startswith("qemu.agent.")]

    @property
    def told(self) -> list[Entry]:
        """The losses that it was told."""
        return [entry for entry in self.entries if entry.type == "qemu.agent.records_dropped"]

    async def until(self, predicate: Callable[[], object]) -> None:
        """Wait until it is so, looking whenever a batch comes."""
        async with asyncio.timeout(LONG):
            while not predicate():
                self.news.clear()
                await self.news.wait()


class Source:
    """Makes records, each with a number of its own, of three VMs in turn."""

    def __init__(self, kind: str = EVENT, *, size: int = 100, run: int = 0) -> None:
        """Make ready; sources that are to be told apart get different runs."""
        self.kind = kind
        self.made: list[str] = []
        self.bodies: dict[str, bytes] = {}
        self._pad = "x" * size
        self._stamp = RecordEncoder(START_NS + run * 1_000_000_000)

    def next(self, kind: str | None = None) -> EncodedRecord:
        number = len(self.made)
        record = Record(kind or self.kind, VMS[number % 3], {"n": number, "pad": self._pad}, START_NS + number)
        stamped = self._stamp(record)
        self.made.append(stamped.id)
        self.bodies[stamped.id] = stamped.body
        return stamped

    def some(self, count: int, kind: str | None = None) -> Iterator[EncodedRecord]:
        for _ in range(count):
            yield self.next(kind)


def deliver(
    sink: Sink,
    folder: Path | None,
    *,
    memory: int = 16 << 20,
    disk: int = 64 << 20,
    connect: Connect | None = None,
    gather_seconds: float = 0.0,
) -> DeliveryPipeline:
    """Return a delivery to the script that tells losses as the agent does."""
    stamp = RecordEncoder()
    agent = Vm("host1", "", "")

    def tell(loss: DropReport) -> None:
        made.put(stamp(Record("qemu.agent.records_dropped", agent, loss.data(), START_NS, loss.lane, Severity.ERROR)))

    made = DeliveryPipeline(sink, DeliverySettings(memory, folder, disk, disk, disk), tell)
    made.samples.gather_seconds = gather_seconds
    if connect is not None and made.journal is not None:
        made.journal._connect = connect
    return made


@contextlib.asynccontextmanager
async def running(delivery: DeliveryPipeline, stop_seconds: float = LONG) -> AsyncIterator[DeliveryPipeline]:
    """Deliver for as long as the block runs; both ends have a deadline."""
    async with asyncio.timeout(3 * LONG), delivery.running(stop_seconds):
        yield delivery


async def soon(predicate: Callable[[], object]) -> None:
    """Wait until it is so, looking each millisecond: for what no event tells of and happens often."""
    async with asyncio.timeout(LONG):
        while not predicate():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


async def caught_up(lane: RecordQueue) -> None:
    """Wait until the journal has all that memory is not to hold."""
    await soon(lambda: lane._tail_bytes <= lane.budget.memory and not lane.over_budget)


def is_journaled(lane: RecordQueue) -> bool:
    """Say whether the journal has all that waits in a lane."""
    return lane.has_journal and all(entry.row is not None for entry in (*lane.flying, *lane._tail))


def once(ids: Sequence[str]) -> list[str]:
    """Return ids without those that came before, as a consumer that deduplicates sees them."""
    return list(dict.fromkeys(ids))


def lost(delivery: DeliveryPipeline) -> int:
    """Return how many records were counted as lost."""
    return sum(delivery.losses.totals.values())
