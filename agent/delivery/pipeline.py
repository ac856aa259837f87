"""The whole way out, as the rest of the agent sees it: put records in; they are delivered, or counted as lost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.delivery.drops import DropLedger, DropReason, DropReport
from agent.delivery.entry import Entry, StateNote
from agent.delivery.journal.writer import Journal
from agent.delivery.queue import QueueLimits, RecordQueue
from agent.delivery.sinks.base import Sink, SinkSupervisor, pump
from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)

TELL_SECONDS = 10.0
"""How often at most downstream is told of losses."""
GATHER_SECONDS = 0.25
"""How long samples wait for others: each poll by itself would cost more to send than to make."""
OPEN_SECONDS = 10.0
"""How long starting waits for the journal. One that takes longer opens while the agent works."""

SILENT_SECONDS = 30.0
"""How long a sink or a disk may take for one thing before it counts as hung. Kafka's requests end by themselves, with words for why."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """How much may wait, and where.

    Attributes:
        memory: bytes of memory for all lanes together.
        folder: where the journal lies; None has none, for sinks that are a disk themselves.
        alerts_disk, events_disk, samples_disk: bytes of the journal for each lane.
    """

    memory: int
    folder: Path | None
    alerts_disk: int = 0
    events_disk: int = 0
    samples_disk: int = 0


class DeliveryPipeline:
    """Three lanes, a journal and a sink.

    An alert has a lane of its own, for it waits until it is journaled, and what comes behind it in a lane waits with it; nor does it
    wait itself behind a flood of events.
    """

    def __init__(self, sink: Sink, terms: DeliverySettings, tell: Callable[[DropReport], None]) -> None:
        self.losses = DropLedger()
        self.outlet = SinkSupervisor(sink)
        durable = terms.folder is not None
        eighth = terms.memory // 8  # alerts are few
        self.alerts = RecordQueue("alerts", QueueLimits(eighth, terms.alerts_disk), self.losses, durable=durable)
        self.events = RecordQueue("events", QueueLimits(3 * eighth, terms.events_disk), self.losses, durable=durable)
        self.samples = RecordQueue(
            "samples",
            QueueLimits(4 * eighth, terms.samples_disk),
            self.losses,
            durable=False,
            gather_seconds=GATHER_SECONDS,
        )
        self.lanes = (self.alerts, self.events, self.samples)
        self._lane_of = {"alert": self.alerts, "sample": self.samples}
        self.journal = Journal(terms.folder, self.lanes, self.losses) if terms.folder is not None else None
        self._tell = tell
        self._told_at = float("-inf")

    def put(self, stamped: EncodedRecord, note: StateNote | None = None) -> None:
        """Take a record, and what is to be kept in one transaction with it. Never waits."""
        self._lane_of.get(stamped.record.kind, self.events).put(Entry.of(stamped, note))

    async def keep(self, note: StateNote, seconds: float) -> bool:
        """Keep a note over restarts; return whether it is on disk, which takes at most so long to say."""
        if self.journal is None or self.journal.trouble is not None:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self.journal.keep(note)
        except TimeoutError:
            return False
        return True

    @property
    def kept(self) -> dict[str, Any]:
        """What an earlier run kept, by name; known once `running` was entered."""
        return self.journal.notes if self.journal is not None else {}

    def troubles(self) -> list[str]:
        """Return why records do not go where they should, in words; empty when they do."""
        found, now = [], time.monotonic()
        if self.outlet.trouble is not None and (self.journal is not None or any(len(lane) for lane in self.lanes)):
            found.append(f"nothing is delivered to {self.outlet.sink.name}: {self.outlet.trouble}")
        elif (silent := max(lane.silent_seconds(now) for lane in self.lanes)) > SILENT_SECONDS:
            found.append(f"nothing is delivered to {self.outlet.sink.name}: it has not answered for {silent:.0f} s")
        if self.journal is not None and self.journal.trouble is not None:
            found.append(f"nothing is journaled: {self.journal.trouble}")
        elif self.journal is not None and (silent := self.journal.silent_seconds(now)) > SILENT_SECONDS:
            found.append(f"nothing is journaled: the disk of {self.journal.path} has not answered for {silent:.0f} s")
        return found

    def notes(self) -> list[str]:
        """Return what a person should look at some time, in words."""
        if self.journal is None or not self.journal.quarantined:
            return []
        return [
            f"{self.journal.quarantined} damaged journal files were set aside since the start: see `qmp-agent journal`"
        ]

    @contextlib.asynccontextmanager
    async def running(self, stop_seconds: float) -> AsyncIterator[None]:
        """Deliver for as long as the block runs, then what is left, or journal it, for at most so many seconds."""
        async with asyncio.TaskGroup() as tasks:  # a bug in one of them must not look like work
            journaling = None
            pumps = []
            if self.journal is not None:
                journaling = tasks.create_task(self.journal.run(), name="journal")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.journal.opened.wait(), OPEN_SECONDS)
                pumps.append(tasks.create_task(self.outlet.keep_open(), name="sink"))
            pumps += [
                tasks.create_task(pump(lane, self.outlet, self.journal, self._landed), name=f"pump {lane.name}")
                for lane in self.lanes
            ]
            try:
                try:
                    yield
                finally:
                    if not any(map(_failed, pumps)):  # such a one moves nothing more
                        await self._drain(stop_seconds * 0.7)
            finally:
                for task in pumps:
                    task.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await self._end(journaling, stop_seconds * 0.3)

    async def _drain(self, seconds: float) -> None:
        """Deliver what is left while that works."""
        for lane in self.lanes:
            lane.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for lane in self.lanes:
                    if not self.outlet.fails:
                        await lane.drained()

    async def _end(self, journaling: asyncio.Task[None] | None, seconds: float) -> None:
        """Journal the rest, unless the disk takes too long; count what is neither delivered nor journaled; let go."""
        if journaling is not None and self.journal is not None:
            self.journal.stop()
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.wait({journaling})
                    await self.journal.finish()
                    self._abandon()
                    await self.journal.close()
            except TimeoutError:
                _log.error("the journal's disk hangs; what it does not have is lost")
                journaling.cancel()
                self.journal.let_go()
        self._abandon()
        await self.outlet.close()

    def _abandon(self) -> None:
        for lane in self.lanes:
            lane.abandon()

    def _landed(self, lane: RecordQueue, refused: Sequence[Entry]) -> None:
        """Bury what was refused, and while delivery works, tell what was lost."""
        if refused:
            self.losses.add_entries(lane.name, DropReason.REJECTED, refused, time.monotonic())
            if self.journal is not None:
                self.journal.bury(DropReason.REJECTED.value, refused)
        open_way = lane is self.events or not len(self.events)  # the telling goes out behind what waits there
        if open_way and self.losses and time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            for loss in self.losses.tell():
                self._tell(loss)


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
