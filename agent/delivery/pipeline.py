"""The interface of delivery for the rest of the agent. Each record is delivered, or counted as dropped."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.delivery.drops import DropLedger, DropReason, DropReport
from agent.delivery.journal.journal import Journal
from agent.delivery.queue import RecordQueue
from agent.delivery.queue_contents import QueueLimits
from agent.delivery.sender import send_records_until_cancelled
from agent.delivery.sinks.base import Sink, SinkWithWarnings
from agent.delivery.sinks.supervisor import SinkSupervisor
from agent.delivery.waits_and_deadlines import DeliveryWaitsAndDeadlines
from agent.model.agent_lifecycle_records import QUEUE_NAMES
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Limits of the queues, and the journal's directory.

    Attributes:
        memory: bytes of memory for all queues together.
        directory: the journal's directory; None for no journal, because the sink itself stores the records on disk.
        alerts_disk: bytes that alerts may take in the journal.
        events_disk: bytes that events may take in the journal.
        samples_disk: bytes that samples may take in the journal.
        timings: waits and deadlines.
    """

    memory: int
    directory: Path | None
    alerts_disk: int = 0
    events_disk: int = 0
    samples_disk: int = 0
    timings: DeliveryWaitsAndDeadlines = field(default_factory=DeliveryWaitsAndDeadlines)


class DeliveryPipeline:
    """Three queues, a journal and a sink.

    Alerts have their own queue for two reasons. A flood of events must not delay an alert. The journal must write an alert before the
    alert is sent, but events must not wait for the journal.
    """

    def __init__(self, sink: Sink, settings: DeliverySettings, report_drops: Callable[[DropReport], None]) -> None:
        """Set up delivery. The context manager `run_in_background` starts the delivery.

        Args:
            sink: where records go.
            settings: limits and timings.
            report_drops: creates a record from a drop report and passes the record to `put`. Called only while delivery works.
        """
        timings = settings.timings
        self.drops = DropLedger()
        self.supervisor = SinkSupervisor(sink, timings)
        durable = settings.directory is not None
        eighth = settings.memory // 8  # alerts are few
        self.alerts = RecordQueue(
            QUEUE_NAMES[0],
            QueueLimits(eighth, settings.alerts_disk),
            self.drops,
            durable=durable,
            backlog_seconds=timings.journal_hang,
        )
        self.events = RecordQueue(
            QUEUE_NAMES[1],
            QueueLimits(3 * eighth, settings.events_disk),
            self.drops,
            durable=durable,
            backlog_seconds=timings.postpone_backlog_after,
        )
        self.samples = RecordQueue(
            QUEUE_NAMES[2],
            QueueLimits(4 * eighth, settings.samples_disk),
            self.drops,
            durable=False,
            linger_seconds=timings.linger,
            backlog_seconds=timings.postpone_backlog_after,
        )
        self.queues = (self.alerts, self.events, self.samples)
        self._queue_by_kind = {"alert": self.alerts, "sample": self.samples}
        self.journal: Journal | None = None
        if settings.directory is not None:
            self.journal = Journal(settings.directory, self.queues, self.drops, timings=timings)
        self.timings = timings
        self._report_drops = report_drops
        self._reported_at = float("-inf")

    def put(self, record: EncodedRecord, kind: str = "") -> None:
        """Accept a record. Never waits.

        Args:
            record: the record.
            kind: the record's kind, `Record.kind`; empty if the caller does not know the kind.
        """
        self._queue_by_kind.get(kind or record.kind, self.events).put(record)

    def put_samples(self, records: Sequence[EncodedRecord]) -> None:
        """Accept the samples of one poll. Never waits."""
        self.samples.put_all(records)

    async def deliver_without_queue(self, name: str, records: Sequence[EncodedRecord]) -> None:
        """Send records without a queue, and retry until the sink accepts or rejects each record.

        The journal does not store the records, because the caller can create the records again.

        Args:
            name: name under which rejected records are counted as dropped.
            records: the records.
        """
        rejected = await self.supervisor.deliver(records)
        if rejected:
            self.drops.add_records(name, DropReason.REJECTED, rejected, time.monotonic())

    async def store_entry_in_journal(self, entry: PersistentEntry, seconds: float) -> bool:
        """Store a persistent entry in the journal.

        Args:
            entry: a named value that the next run of the agent can read.
            seconds: maximum time to wait.

        Returns:
            True if the entry is on disk in time; False if the time has passed, or if there is no working journal.
        """
        if self.journal is None or self.journal.error is not None:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self.journal.persist_entry(entry)
        except TimeoutError:
            return False
        return True

    @property
    def stored_persistent_entries(self) -> dict[str, Any]:
        """Values of the persistent entries that earlier runs stored, by name; empty until the journal is open."""
        return self.journal.stored_persistent_entries if self.journal is not None else {}

    def unready_reasons(self) -> list[str]:
        """Return why records are not delivered or not journaled, one text for each reason; empty if everything works."""
        reasons, now = [], time.monotonic()
        sink = self.supervisor.sink.name
        seconds = max(queue.batch_in_flight_seconds(now) for queue in self.queues)
        if self.supervisor.error is not None and (self.journal is not None or any(map(len, self.queues))):
            reasons.append(f"nothing is delivered to {sink}: {self.supervisor.error}")
        elif seconds > self.timings.unready_after:
            reasons.append(f"nothing is delivered to {sink}: it has not answered for {seconds:.0f} s")
        if self.journal is not None and self.journal.error is not None:
            reasons.append(f"nothing is journaled: {self.journal.error}")
        elif (
            self.journal is not None
            and (seconds := self.journal.current_call_seconds(now)) > self.timings.unready_after
        ):
            reasons.append(
                f"nothing is journaled: the disk of {self.journal.path} has not answered for {seconds:.0f} s"
            )
        return reasons

    def warnings(self) -> list[str]:
        """Return warnings for the operator about problems that do not stop the delivery."""
        sink = self.supervisor.sink
        warnings = sink.warnings() if isinstance(sink, SinkWithWarnings) else []
        if self.journal is not None and self.journal.quarantined_files:
            warnings.append(
                f"{self.journal.quarantined_files} damaged journal files were quarantined since the start: see `qmp-agent journal`"
            )
        return warnings

    @contextlib.asynccontextmanager
    async def run_in_background(self, stop_seconds: float) -> AsyncIterator[None]:
        """Deliver while the `with` block runs. At the end of the block, deliver or journal the remaining records.

        Args:
            stop_seconds: how long the delivery and journaling of the remaining records may take.
        """
        async with asyncio.TaskGroup() as tasks:  # an unexpected exception must end the agent
            journaling = None
            senders = []
            if self.journal is not None:
                journaling = tasks.create_task(self.journal.run(), name="journal")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.journal.opened.wait(), self.timings.journal_open)
                senders.append(tasks.create_task(self.supervisor.open_without_records(), name="sink"))
            senders += [
                tasks.create_task(
                    send_records_until_cancelled(queue, self.supervisor, self.journal, self._on_sent),
                    name=f"send {queue.name}",
                )
                for queue in self.queues
            ]
            try:
                try:
                    yield
                finally:
                    # Do not wait after a sender has failed, because its queue would never become empty.
                    if not any(map(_task_has_failed, senders)):
                        await self._deliver_remaining(stop_seconds * 0.7)
            finally:
                for task in senders:
                    task.cancel()
                await asyncio.gather(*senders, return_exceptions=True)
                await self._journal_remaining(journaling, stop_seconds * 0.3)

    async def _deliver_remaining(self, seconds: float) -> None:
        """Deliver the remaining records while the sink works."""
        for queue in self.queues:
            queue.stop_lingering()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for queue in self.queues:
                    if not self.supervisor.is_failing:
                        await queue.wait_drained()

    async def _journal_remaining(self, journaling: asyncio.Task[None] | None, seconds: float) -> None:
        """Journal the remaining records, if the disk is fast enough. Drop records that are not journaled. Close the sink."""
        if journaling is not None and self.journal is not None:
            self.journal.stop()
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.wait({journaling})
                    await self.journal.write_remaining()
                    self._drop_remaining()
                    await self.journal.close()
            except TimeoutError:
                _log.error(
                    "journal %s: the disk hangs: the agent stops, and loses the records that are neither delivered nor journaled",
                    self.journal.path,
                )
                journaling.cancel()
                self.journal.release_lock()
        self._drop_remaining()
        await self.supervisor.close()

    def _drop_remaining(self) -> None:
        for queue in self.queues:
            queue.drop_remaining()

    def _on_sent(self, queue: RecordQueue, rejected: Sequence[EncodedRecord]) -> None:
        """Store rejected records as dead letters. Also report earlier drops, because delivery works now."""
        if rejected:
            self.drops.add_records(queue.name, DropReason.REJECTED, rejected, time.monotonic())
            if self.journal is not None:
                self.journal.store_dead_letters(DropReason.REJECTED.value, rejected)
        # Drop reports use the queue of events: do not add a report while that queue makes no progress.
        reportable = queue is self.events or not len(self.events)
        now = time.monotonic()
        if reportable and self.drops.has_unreported and now - self._reported_at >= self.timings.drop_report_interval:
            self._reported_at = now
            for report in self.drops.pop_unreported():
                self._report_drops(report)


def _task_has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
