"""Decides whether a rejected record is too large, or whether the topic's max.message.bytes is too small for any record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.delivery.sinks.kafka.topic_settings import read_topic_setting

TYPICAL_RECORD_BYTES = 4096
"""Upper bound of the size of most records."""


@dataclass(frozen=True, slots=True)
class TopicSizeLimit:
    """A topic's size limit, and the size of the smallest record that the topic did not reject.

    The two sizes show whether one record is too large, or the limit is too low for any record. A record's size is the bytes of a
    compressed batch with only this record, including the key, the headers and the framing.

    Attributes:
        max_message_bytes: the topic's max.message.bytes; None if the agent cannot read the setting.
        smallest_other_bytes: bytes of the smallest other record in the batch or acknowledged earlier; None without another record.
    """

    max_message_bytes: int | None
    smallest_other_bytes: int | None

    def is_record_too_large(self, size: int) -> bool:
        """Return whether a rejected record of `size` bytes is too large for a topic that accepts other records."""
        if self.max_message_bytes is not None and size <= self.max_message_bytes:
            return False  # the limit was raised after the rejection
        if self.max_message_bytes is not None and self.smallest_other_bytes is not None:
            return min(self.smallest_other_bytes, TYPICAL_RECORD_BYTES) <= self.max_message_bytes
        return size >= TYPICAL_RECORD_BYTES


async def read_max_message_bytes(options: Mapping[str, Any], topic: str) -> int | None:
    """Return a topic's max.message.bytes; None if it cannot be read.

    Args:
        options: aiokafka's keyword arguments for the connection.
        topic: the topic.
    """
    text = await read_topic_setting(options, topic, "max.message.bytes")
    return int(text) if text is not None and text.isdecimal() else None
