"""Publishes records: encodes each record once, enqueues it for delivery and sends it to the live stream's subscribers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from agent.app.stored_sequences import StoredSequences
from agent.delivery.drops import DropReport
from agent.delivery.pipeline import DeliveryPipeline, DeliverySettings
from agent.delivery.sinks.base import Sink
from agent.http.record_stream import RecordBroadcaster
from agent.model.family import Sample
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm, kind_of_record_type

RUN_ID_ENTRY_NAME = "records.run_id"
"""Name of the persistent entry with the id of the last run."""
STORE_RUN_ID_SECONDS = 60.0
"""Maximum time to store the id of this run. Records are published without waiting for the id to be stored."""
STORE_ENTRY_SECONDS = 2.0
"""Maximum time that a command or a state record waits until the journal has stored its persistent entry."""


class RecordPublisher:
    """Publishes records to delivery and to the live stream.

    Attributes:
        delivery: the queues, the journal and the sink.
        broadcaster: sends each record to the subscribers of the live stream.
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
        self._sequences = StoredSequences(topic_of)

    @property
    def run_id(self) -> str:
        """The first part of the ids of this run's records."""
        return self._encode.run_id

    def continue_after_last_run(self) -> None:
        """Continue the record ids and the `sequence` attributes of the last run. Call this before the first record.

        The ids and sequences of this run sort after those of the last run, even if the clock was set back.
        """
        if isinstance(run_id := self.delivery.stored_persistent_entries.get(RUN_ID_ENTRY_NAME), str):
            self._encode.ensure_run_id_after(run_id)
        if self.delivery.journal is not None:
            self._sequences.restore(self._encode.sequences, self.delivery.stored_persistent_entries)
            self.delivery.journal.pending_entries.fetch_changed = self._sequences.entries_to_store

    def store_sample_sequences(self) -> None:
        """Store the newest `sequence` attributes of samples in the journal.

        Call this after the last sample and before the end of delivery.
        """
        if self.delivery.journal is not None:
            self.delivery.journal.pending_entries.add(self._sequences.persistent_entry_of_sample_sequences())

    async def store_run_id(self) -> None:
        """Store the id of this run in the journal, for the next run."""
        await self.delivery.store_entry_in_journal(
            PersistentEntry(RUN_ID_ENTRY_NAME, self.run_id), STORE_RUN_ID_SECONDS
        )

    def publish(self, record: Record, entry: PersistentEntry | None = None) -> str:
        """Publish a record without blocking, and return its id.

        Args:
            record: the record.
            entry: a persistent entry that the journal stores in one transaction with the record; None for no entry.
        """
        encoded = self._encode(record, entry)
        kind = kind_of_record_type(encoded.type)
        self.published[kind] += 1
        self.delivery.put(encoded, kind)
        self.broadcaster.publish(encoded, kind)
        return encoded.id

    def encode_and_broadcast_state(self, record: Record) -> EncodedRecord:
        """Encode a record for the state topic, and send it to the subscribers of the live stream. Return the encoded record."""
        encoded = self._encode(record)
        self.published[record.kind] += 1
        self.broadcaster.publish(encoded)
        return encoded

    async def deliver_state(self, records: Sequence[EncodedRecord]) -> None:
        """Send records to the state topic without a queue. Wait without a deadline until the sink has acknowledged the records."""
        await self.delivery.deliver_without_queue("state", records)

    async def store_entry_in_journal(self, entry: PersistentEntry) -> bool:
        """Store a persistent entry within `STORE_ENTRY_SECONDS`. Return whether the entry is on disk."""
        return await self.delivery.store_entry_in_journal(entry, STORE_ENTRY_SECONDS)

    def publish_samples(self, vm: Vm, samples: Sequence[Sample], time_ns: int) -> Sequence[EncodedRecord]:
        """Publish the samples of one poll without blocking. Return the encoded records in the order of the samples.

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
