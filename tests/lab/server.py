"""A server with a web address that runs as a process of its own, and says there that it is ready."""

import contextlib
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Self

import aiohttp

from agent.cli.demo.guest import until
from tests.lab.machine import free_port, require

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0


class ServerError(Exception):
    """It did not start, or refused a question; the message has its own words."""


class Server(ABC):
    """One of Prometheus' servers; as an async context manager it runs from entering to leaving.

    It can be stopped and started again at the same address.

    Attributes:
        url: its web address, without a slash at the end.
        folder: where its data, log and settings go; need not be there yet.
    """

    program: str

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    async def arguments(self) -> list[str]:
        """Write its settings and return its arguments, but for its address."""

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerError: if it does not come to that.
            LabMissing: if the machine has none.
        """
        require(self.program, self.program)
        self.folder.mkdir(parents=True, exist_ok=True)
        listen = f"--web.listen-address={self.url.removeprefix('http://')}"
        command = ["setpriv", "--pdeathsig", "KILL", self.program, *await self.arguments(), "--log.level=warn", listen]
        with self._log.open("ab") as log:
            # Not asyncio's process: one may outlive the event loop of one test.
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 - takes no time

        async def settled() -> bool:
            return process.poll() is not None or await self._ready()

        try:
            await until(settled, _START_SECONDS)
        except BaseException:
            await self.stop()
            raise
        if process.poll() is not None:
            await self.stop()
            raise ServerError(f"{self.program} did not start: {self._log.read_text()[-2000:]}")

    async def stop(self) -> None:
        """End it, killing it if it takes its time."""
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
