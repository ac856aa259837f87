"""Code that `capture` and `replay` share: runs an agent on one monitor, and splits the bytes that the agent sends into QMP commands."""

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
"""Maximum number of bytes of one read."""


class RequestSplitter:
    """Splits the bytes that an agent sends into QMP commands. The agent sends no separator between commands."""

    def __init__(self) -> None:
        self._text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def receive(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the commands that `data` completes. Always iterate to the end, because each step removes a command from the buffer."""
        self._text += self._decode(data)
        while self._text:
            try:
                request, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError:
                return  # the command is incomplete
            self._text = self._text[end:]
            yield request


@contextlib.asynccontextmanager
async def run_agent_on_monitor(monitor: Path, config: Config, listen: str) -> AsyncIterator[None]:
    """Run an agent that watches one monitor and prints its records, while the `with` block runs.

    Args:
        monitor: the path of the monitor's socket.
        config: the agent's config. This function replaces the monitors, the sinks, the endpoint and the Alertmanager.
        listen: the address of the endpoint, `host:port`.

    Raises:
        StartError: the endpoint cannot listen on its address.
    """
    changes = {
        "monitors": [DialConfig(dial=str(monitor))],
        "kafka": None,
        "jsonl": JsonLinesConfig(),
        "web": config.web.model_copy(update={"listen_address": listen, "config_file": None}),
        "alerts": config.alerts.model_copy(update={"alertmanager": None}),
    }
    async with Agent(config.model_copy(update=changes)).run_in_background():
        yield
