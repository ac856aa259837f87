"""Reads the compacted state topic from its beginning, to get the current state of all hosts.

async with StateReader("qemu.state", client={"bootstrap_servers": "kafka-1:9092"}) as reader:
    print(reader.state.vm(uuid))
    ...
    await reader.catch_up()
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from agent.consumer.fleet_state import FleetState
from agent.consumer.stream_record import MessageFormatError, MessagePosition, StreamRecord

_log: Final = logging.getLogger(__name__)
_POLL_MS: Final = 200


class StateReader:
    """A consumer of all partitions of the state topic, without a consumer group. Use as an async context manager.

    Attributes:
        state: the state as of the last `catch_up`.
    """

    def __init__(self, topic: str, *, client: Mapping[str, Any], catch_up_seconds: float = 300.0) -> None:
        """Set up a reader.

        Args:
            topic: name of the state topic.
            client: aiokafka's keyword arguments for the connection, such as `bootstrap_servers`.
            catch_up_seconds: timeout for connecting, and for reading to the end of the topic, in seconds.
        """
        self.state = FleetState()
        self._catch_up_seconds = catch_up_seconds
        options = {**client, "group_id": None, "auto_offset_reset": "earliest", "enable_auto_commit": False}
        self._consumer = AIOKafkaConsumer(topic, **options)

    async def __aenter__(self) -> Self:
        """Connect, and read the topic to its end.

        Raises:
            KafkaError: the consumer cannot connect, or the topic does not exist.
            TimeoutError: Kafka did not answer in time.
        """
        try:
            async with asyncio.timeout(self._catch_up_seconds):
                await self._consumer.start()  # returns when all partitions are assigned
            await self.catch_up()
        except BaseException:
            await self._stop_consumer()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_consumer()

    async def catch_up(self) -> None:
        """Read the messages that were written before this call, and update `state`.

        Raises:
            KafkaError: Kafka does not permit the consumer to read.
            TimeoutError: Kafka did not answer in time.
        """
        async with asyncio.timeout(self._catch_up_seconds):
            ends: Mapping[TopicPartition, int] = await self._consumer.end_offsets(self._consumer.assignment())
            while any([await self._consumer.position(name) < end for name, end in ends.items()]):
                messages: Mapping[TopicPartition, Sequence[ConsumerRecord]]
                messages = await self._consumer.getmany(timeout_ms=_POLL_MS)
                for received in messages.values():
                    for message in received:
                        self._apply_message(message)

    def _apply_message(self, message: ConsumerRecord) -> None:
        key = (message.key or b"").decode(errors="replace")
        position = MessagePosition(message.topic, message.partition, message.offset)
        try:
            record = None
            if message.value is not None:
                record = StreamRecord.parse(position, message.value, message.headers)
        except MessageFormatError as error:
            _log.warning(
                "state topic: message at %s ignored, because it is not a record of the agent: %s", position, error
            )
            return
        self.state.apply_message(key, record)

    async def _stop_consumer(self) -> None:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(self._catch_up_seconds):
                await self._consumer.stop()
