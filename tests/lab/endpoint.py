"""An endpoint with a web config, to be knocked at."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from agent.cli.demo.guest import until
from agent.cli.http_client import EndpointCredentials
from agent.http.handlers import create_application
from agent.http.server import HttpEndpoint
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.unit.http.test_handlers import Shown


class RunningEndpoint:
    """An endpoint with a web config in a folder.

    Attributes:
        url: where it is reached.
        host, port: that, in parts.
    """

    def __init__(self, folder: Path, config: Any = None, listen: str = "127.0.0.1:0") -> None:
        self.path = folder / "web.yml"
        self.write(config or {})
        self.endpoint = HttpEndpoint(create_application(Shown()), listen, self.path)

    def write(self, config: Any) -> None:
        """Put another config in the file's place, at once as a careful writer does."""
        new = self.path.with_suffix(".new")
        new.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        new.replace(self.path)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["RunningEndpoint"]:
        async with self.endpoint.serving() as self.url:
            self.host, port = self.url.rpartition("//")[2].rsplit(":", 1)
            self.port = int(port)
            yield self

    async def get(self, path: str = "/healthz", visitor: EndpointCredentials | None = None, **more: Any) -> int:
        async with (
            (visitor or EndpointCredentials()).session() as session,
            session.get(self.url + path, **more) as response,
        ):
            await response.read()
            return response.status

    @property
    def guards(self) -> Any:
        """The connections that there are."""
        return self.endpoint._rules.gate._guards

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection to write to by hand."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def until(self, status: int, **more: Any) -> None:
        """Ask until this is the answer."""

        async def so() -> bool:
            return await self.get(**more) == status

        await until(so, TIMEOUT_SECONDS)
