"""Reads settings of Kafka topics."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

SETTINGS_READ_SECONDS = 5.0
"""Deadline in seconds for reading a setting."""


async def read_topic_setting(options: Mapping[str, Any], topic: str, name: str) -> str | None:
    """Return a setting of a topic, such as `max.message.bytes`; None if it cannot be read.

    Args:
        options: aiokafka's keyword arguments for the connection.
        topic: the topic.
        name: name of the setting.
    """
    with contextlib.suppress(KafkaError, OSError, TimeoutError, ValueError):
        async with asyncio.timeout(SETTINGS_READ_SECONDS):
            admin = AIOKafkaAdminClient(**options)
            try:
                await admin.start()
                resource = ConfigResource(ConfigResourceType.TOPIC, topic, {name: None})
                (response,) = await admin.describe_configs([resource])
            finally:
                await admin.close()
        for _, _, _, _, entries in response.resources:
            return next((str(entry[1]) for entry in entries if entry[0] == name), None)
    return None
