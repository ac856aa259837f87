"""What recording and replaying share: requests cut out of an agent's bytes, and an agent for one monitor that prints its records."""

import codecs
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from agent.app.agent import Agent
from agent.config.model import Config
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.monitors import DialConfig

READ_BYTES = 1 << 16


class RequestFrames:
    """Cuts an agent's bytes into requests. The agent puts nothing between them."""

    def __init__(self) -> None:
        self._text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def receive(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take bytes as they came and yield the requests that they complete; to be run to its end."""
        self._text += self._decode(data)
        while self._text:
            try:
                request, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError:
                return  # the rest of it is to come
            self._text = self._text[end:]
            yield request


@contextlib.asynccontextmanager
async def watching(monitor: Path, config: Config, listen: str) -> AsyncIterator[None]:
    """Run an agent by a config, but with this one monitor, its records on standard output, and its endpoint there.

    Raises:
        StartError: the endpoint's address cannot be had.
    """
    only = {
        "monitors": [DialConfig(dial=str(monitor))],
        "kafka": None,
        "jsonl": JsonLinesConfig(),
        "web": config.web.model_copy(update={"listen_address": listen, "config_file": None}),
        "alerts": config.alerts.model_copy(update={"alertmanager": None}),
    }
    async with Agent(config.model_copy(update=only)).running():
        yield
