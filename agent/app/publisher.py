"""Publishes records: encodes each record once, enqueues it for delivery and sends it to the live stream's subscribers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from agent.delivery.drops import DropReport
from agent.delivery.pipeline import DeliveryPipeline, DeliverySettings
from agent.delivery.sinks.base import Sink
from agent.http.record_stream import RecordBroadcaster
from agent.model.family import Sample
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, StateNote, Vm

RUN_ID_NOTE = "records.run_id"
"""Name of the note with the id of the last run."""
STORE_SECONDS = 60.0
"""Deadline for storing the note, which nothing waits for."""
NOTE_SECONDS = 2.0
"""Maximum time that a record of a state waits for the journal to store its note."""


class RecordPublisher:
    """Publishes records to delivery and to the live stream.

    Attributes:
        delivery: the queues, the journal and the sink.
        broadcaster: the live stream.
        published: number of published records by kind, such as `event`.
    """

    def __init__(
        self, host: str, sink: Sink, settings: DeliverySettings, topic_of: Callable[[str], str] = lambda _type: ""
    ) -> None:
        self.delivery = DeliveryPipeline(sink, settings, self._report_drops)
        self.broadcaster = RecordBroadcaster()
        self.published: Counter[str] = Counter()
        self._host = host
        self._encode = RecordEncoder(topic_of=topic_of)

    @property
    def run_id(self) -> str:
        """The first part of the ids of this run's records."""
        return self._encode.run_id

    def continue_after_last_run(self) -> None:
        """Choose ids that sort after those of the last run, even if the clock was set back. Call this before the first record."""
        if isinstance(run_id := self.delivery.stored_notes.get(RUN_ID_NOTE), str):
            self._encode.continue_after(run_id)

    async def store_run_id(self) -> None:
        """Store the id of this run for the next one."""
        await self.delivery.persist_note(StateNote(RUN_ID_NOTE, self.run_id), STORE_SECONDS)

    def publish(self, record: Record, note: StateNote | None = None) -> str:
        """Publish a record without blocking, and return its id.

        Args:
            record: the record.
            note: state that the journal stores in one transaction with the record, or None.
        """
        encoded = self._encode(record, note)
        self.published[record.kind] += 1
        self.delivery.put(encoded)
        self.broadcaster.publish(encoded)
        return encoded.id

    def encode_state(self, record: Record) -> EncodedRecord:
        """Return a record of a state, encoded with the next id, and send it to the live stream's subscribers."""
        encoded = self._encode(record)
        self.published[record.kind] += 1
        self.broadcaster.publish(encoded)
        return encoded

    async def deliver_state(self, records: Sequence[EncodedRecord]) -> None:
        """Deliver records of states past the queues. Return when the sink has acknowledged them, without a deadline."""
        await self.delivery.deliver_unqueued("state", records)

    async def persist_note(self, note: StateNote) -> bool:
        """Store a note in the journal within `NOTE_SECONDS`. Return whether it is on disk."""
        return await self.delivery.persist_note(note, NOTE_SECONDS)

    def publish_samples(self, vm: Vm, samples: Sequence[Sample], time_ns: int) -> Sequence[EncodedRecord]:
        """Publish the samples of one poll together, without blocking. Return their records in the same order.

        Args:
            vm: the VM.
            samples: the samples.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        encoded = self._encode.encode_samples(vm, samples, time_ns)
        self.published["sample"] += len(encoded)
        self.delivery.put_samples(encoded)
        self.broadcaster.publish_samples(encoded)
        return encoded

    def _report_drops(self, report: DropReport) -> None:
        """Publish a record that reports dropped records."""
        vm = Vm(self._host, "", "")
        self.publish(
            Record("qemu.agent.records_dropped", vm, report.data(), time.time_ns(), report.queue, Severity.ERROR)
        )
