"""`qmp-agent top` on a terminal that can be looked at: a real pseudo-terminal, and pyte to read its screen."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from typing import Self

import pyte

from agent.cli.demo.guest import until
from tests.lab.agent_process import COMMAND


class Terminal:
    """A command on a pseudo-terminal of its own; it runs from entering to leaving.

    Attributes:
        screen: what is on it.
        process: the command, once entered.
    """

    def __init__(self, *arguments: str, columns: int = 120, rows: int = 30) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.process: asyncio.subprocess.Process
        self._stream = pyte.ByteStream(self.screen)
        self._arguments = arguments
        self._master = -1

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        self._size()
        self.process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *COMMAND, *self._arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "linux"},
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        os.close(self._master)

    def _read(self) -> None:
        try:
            self._stream.feed(os.read(self._master, 1 << 16))
        except OSError:  # the command has ended
            asyncio.get_running_loop().remove_reader(self._master)

    def _size(self) -> None:
        size = struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resize(self, columns: int, rows: int) -> None:
        """Make it another size, as a window that is dragged."""
        self.screen.resize(rows, columns)
        self._size()
        os.killpg(
            self.process.pid, signal.SIGWINCH
        )  # the kernel tells the terminal's foreground group, which this is not

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def row(self, text: str) -> str:
        """Return the first row that has this text; empty where there is none."""
        return next((row.rstrip() for row in self.screen.display if text in row), "")

    async def shows(self, *texts: str) -> None:
        """Wait until all of these are on the screen.

        Raises:
            AssertionError: they are not, in time.
        """
        try:
            await until(lambda: all(self.row(text) for text in texts), 60)
        except TimeoutError:
            raise AssertionError(f"no {texts} on\n" + "\n".join(self.screen.display)) from None
