"""Sends dead letters to the dead-letter topic. A dead letter is a record that Kafka rejected as too large for the record's topic.

The journal also stores dead letters. The message of a dead letter has additional headers about the rejection. The message has no `data`
if it is too large for the dead-letter topic, too.
"""

import asyncio
from collections.abc import Callable, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.message import NO_TIMESTAMP, Header, MessageEncoder, remove_record_data
from agent.model.record import EncodedRecord

REASON_HEADER = "dead_letter_reason"
TOPIC_HEADER = "dead_letter_topic"
BYTES_HEADER = "dead_letter_bytes"
TRUNCATED_HEADER = "dead_letter_truncated"


class DeadLetterTopic:
    """Sends rejected records to the dead-letter topic. After a failure, the next attempt skips the records that Kafka has acknowledged."""

    def __init__(self, topic: str, encode: MessageEncoder, topic_for: Callable[[str], str]) -> None:
        """Set up the sender. Nothing is sent yet.

        Args:
            topic: name of the dead-letter topic.
            encode: encodes a record into a message.
            topic_for: returns the topic of a record type. A dead letter names the topic that rejected the record.
        """
        self._topic = topic
        self._encode = encode
        self._topic_for = topic_for
        # The records of the batches in progress, by id:
        self._acknowledged: set[str] = set()
        self._too_large: set[str] = set()

    async def send(self, producer: AIOKafkaProducer, records: Sequence[EncodedRecord], seconds: float) -> None:
        """Send rejected records, and wait until Kafka acknowledges them.

        Args:
            producer: the sink's producer.
            records: the records; each is too large for its topic.
            seconds: deadline for each record, in seconds.

        Raises:
            SinkError: Kafka does not acknowledge a record. The caller reopens the sink and sends the records again.
            KafkaError: Kafka rejects a dead letter, but not because of its size.
        """
        for record in records:
            if record.id not in self._acknowledged:
                try:
                    async with asyncio.timeout(seconds):
                        await self._send_record(producer, record)
                except TimeoutError:
                    raise SinkError(f"topic {self._topic}: no acknowledgement for {seconds:g} s") from None
                self._acknowledged.add(record.id)
        ids = {record.id for record in records}
        self._acknowledged -= ids
        self._too_large -= ids

    async def _send_record(self, producer: AIOKafkaProducer, record: EncodedRecord) -> None:
        truncated = record.id in self._too_large
        try:
            acknowledgement = await self._enqueue_dead_letter(producer, record, truncated=truncated)
        except MessageSizeTooLargeError:  # aiokafka raises this error before it sends the message
            truncated = True
            acknowledgement = await self._enqueue_dead_letter(producer, record, truncated=True)
        try:
            await acknowledgement
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            self._too_large.add(record.id)
            text = f"topic {self._topic} rejects even records without data as too large: raise its max.message.bytes"
            raise SinkError(text, retry_now=not truncated) from error

    async def _enqueue_dead_letter(
        self, producer: AIOKafkaProducer, record: EncodedRecord, *, truncated: bool
    ) -> asyncio.Future[object]:
        """Enqueue a dead letter in the producer, and return the future of its acknowledgement."""
        key, value, headers = self._encode(remove_record_data(record) if truncated else record)
        headers = headers + self._rejection_headers(record, truncated=truncated)
        acknowledgement: asyncio.Future[object] = await producer.send(
            self._topic, value=value, key=key, headers=headers, timestamp_ms=NO_TIMESTAMP
        )
        return acknowledgement

    def _rejection_headers(self, record: EncodedRecord, *, truncated: bool) -> list[Header]:
        return [
            (REASON_HEADER, b"too_large"),
            (TOPIC_HEADER, self._topic_for(record.type).encode()),
            (BYTES_HEADER, str(len(record.body)).encode()),
            (TRUNCATED_HEADER, b"true" if truncated else b"false"),
        ]
