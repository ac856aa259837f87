"""The real guest agent, qemu-ga, on a plain Unix socket: it reports this machine."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Self

from agent.cli.demo.guest import until
from tests.lab.machine import require


class GuestAgentProcess:
    """qemu-ga that listens at `socket`. As an async context manager it runs while the block runs."""

    def __init__(self, folder: Path, *, name: str = "vm1", binary: str = "/usr/sbin/qemu-ga") -> None:
        self.socket = folder / f"{name}.qga"
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder / f"{name}.qga-state"
        self._binary = binary

    async def start(self) -> None:
        """Start it and wait until its socket exists."""
        require(self._binary, "qemu-guest-agent")
        self._folder.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", self._binary, "-m", "unix-listen", "-p", os.fspath(self.socket)),
            *("-t", os.fspath(self._folder), "-f", os.fspath(self._folder / "pid")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(self.socket.exists, 30)

    async def stop(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()
        self.process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal if it still runs. SIGSTOP makes it hang until SIGCONT."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
