"""Runs the agent for recording and replaying. It splits an agent's bytes into requests, and runs an agent that prints its records."""

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


class RequestSplitter:
    """Splits the bytes that an agent sends into requests. The agent sends no separator between requests."""

    def __init__(self) -> None:
        self._text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def receive(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the requests that these bytes complete. Always iterate to the end, because the state changes with each request."""
        self._text += self._decode(data)
        while self._text:
            try:
                request, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError:
                return  # the request is incomplete
            self._text = self._text[end:]
            yield request


@contextlib.asynccontextmanager
async def run_agent_at(monitor: Path, config: Config, listen: str) -> AsyncIterator[None]:
    """Run an agent that watches one monitor and prints its records, while the `with` block runs.

    Args:
        monitor: the path of the monitor's socket.
        config: the agent's config; its monitors, sinks and endpoint are replaced.
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
    async with Agent(config.model_copy(update=changes)).running():
        yield
