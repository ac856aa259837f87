"""Records to Apache Kafka, by the CloudEvents Kafka binding 1.0.2 in structured mode: the body is the event, the key its VM."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from agent.delivery.sink import SinkError
from agent.record import CONTENT_TYPE, Stamped

HEADERS = [("content-type", f"{CONTENT_TYPE}; charset=UTF-8".encode())]


@dataclass(frozen=True, slots=True)
class Topics:
    """Where each kind of record goes."""

    events: str = "qemu.events"
    samples: str = "qemu.samples"
    alerts: str = "qemu.alerts"

    def of(self, record_type: str) -> str:
        """Return the topic for a record of this type; changes in a VM's life go with its events."""
        if record_type.startswith("qemu.sample."):
            return self.samples
        return self.alerts if record_type.startswith("qemu.alert.") else self.events


@dataclass(frozen=True, slots=True)
class KafkaTerms:
    """How to reach Kafka.

    Attributes:
        servers: host:port of some brokers.
        topics: where each kind of record goes.
        client_id: how we call ourselves.
        request_seconds: how long one request may take.
        open_seconds: how long connecting and getting a producer id may take.
        close_seconds: how long sending what is on its way may take at the end.
        options: further arguments of AIOKafkaProducer.
    """

    servers: tuple[str, ...]
    topics: Topics = field(default_factory=Topics)
    client_id: str = "qmp-agent"
    request_seconds: float = 10.0
    open_seconds: float = 20.0
    close_seconds: float = 5.0
    options: Mapping[str, object] = field(default_factory=dict)


class Kafka:
    """A sink that is acknowledged by all in-sync replicas."""

    def __init__(self, terms: KafkaTerms) -> None:
        self.name = f"Kafka at {', '.join(terms.servers)}"
        self._terms = terms
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            SinkError: no broker can be reached, or none will have us, in time.
        """
        producer = AIOKafkaProducer(
            bootstrap_servers=list(self._terms.servers),
            client_id=self._terms.client_id,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=256 * 1024,
            request_timeout_ms=int(self._terms.request_seconds * 1000),
            retry_backoff_ms=250,
            metadata_max_age_ms=60_000,
            **self._terms.options,
        )
        try:
            async with asyncio.timeout(self._terms.open_seconds):
                await producer.start()
        except (KafkaError, TimeoutError, OSError) as error:
            await self._stop(producer)
            raise SinkError(_why(error)) from error
        self._producer = producer

    async def send(self, batch: Sequence[Stamped]) -> Sequence[Stamped]:
        """Send a batch and wait until all of it is acknowledged.

        Raises:
            SinkError: some of it was not.
        """
        assert self._producer is not None
        acknowledged = []
        refused = []
        try:
            async with asyncio.timeout(60.0):
                for record in batch:
                    try:
                        acknowledged.append(
                            await self._producer.send(
                                self._terms.topics.of(record.record.type),
                                record.body,
                                key=record.record.vm.key.encode(),
                                timestamp_ms=record.record.time_ns // 1_000_000,
                                headers=HEADERS,
                            )
                        )
                    except MessageSizeTooLargeError:
                        refused.append(record)
                await asyncio.gather(*acknowledged)
        except (KafkaError, TimeoutError) as error:
            raise SinkError(_why(error)) from error
        return refused

    async def close(self) -> None:
        """Send what is on its way, within `close_seconds`, and disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._stop(producer)

    async def _stop(self, producer: AIOKafkaProducer) -> None:
        try:
            async with asyncio.timeout(self._terms.close_seconds):
                await producer.stop()
        except (KafkaError, TimeoutError, OSError):
            # aiokafka's stop waits for its buffer without end while the brokers are gone, and does nothing the second time.
            await producer.client.close()


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not isinstance(error, KafkaError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"
