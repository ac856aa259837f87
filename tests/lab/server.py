"""Base class of HTTP servers that run as processes of their own and report readiness at `/-/ready`."""

import contextlib
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Self

import aiohttp

from tests.lab.machine import free_port, require
from tests.lab.waiting import until

_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 180.0


class ServerError(Exception):
    """A server did not start, or rejected a query. The message quotes the server."""


class Server(ABC):
    """A server process such as Prometheus or Alertmanager. As an async context manager, it runs while the `with` block runs.

    The server can be stopped, and started again at the same address.

    Attributes:
        url: The base URL, without a trailing slash.
        folder: The directory for data, log and config. It is created if it does not exist.
    """

    program: str

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    async def arguments(self) -> list[str]:
        """Write the config file, and return the command-line arguments without the listen address."""

    async def start(self) -> None:
        """Start the server, and wait until it is ready.

        Raises:
            ServerError: The server ended, or was not ready in time.
            MissingDependencyError: The program is not installed.
        """
        require(self.program, self.program)
        self.folder.mkdir(parents=True, exist_ok=True)
        listen = f"--web.listen-address={self.url.partition('//')[2]}"
        command = ["setpriv", "--pdeathsig", "KILL", self.program, *await self.arguments(), "--log.level=warn", listen]
        with self._log.open("ab") as log:
            # Not asyncio's process: it may outlive the event loop of one test.
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 - takes no time

        async def ended_or_ready() -> bool:
            return process.poll() is not None or await self._ready()

        try:
            await until(ended_or_ready, _START_SECONDS)
        except BaseException:
            await self.stop()
            raise
        if process.poll() is not None:
            await self.stop()
            raise ServerError(f"{self.program} did not start: {self._log.read_text()[-2000:]}")

    async def stop(self) -> None:
        """Stop the server with SIGTERM. Kill the server if it does not end in time."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                await until(lambda: process.poll() is not None, _STOP_SECONDS)
            except TimeoutError:
                process.kill()
                process.wait(_STOP_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        return False
