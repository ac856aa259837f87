"""Runs a command on a pseudo-terminal, and reads its screen with pyte."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from typing import Self

import pyte

from tests.lab.agent_process import COMMAND
from tests.lab.waiting import until


class Terminal:
    """`qmp-agent` on a pseudo-terminal. As an async context manager, it runs while the `with` block runs.

    Attributes:
        screen: the content of the terminal's screen.
        process: the process of `qmp-agent`, while the `with` block runs.
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
        except BlockingIOError:
            pass
        except OSError:  # the command has ended
            asyncio.get_running_loop().remove_reader(self._master)

    def _size(self) -> None:
        size = struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resize(self, columns: int, rows: int) -> None:
        """Resize the terminal."""
        self.screen.resize(rows, columns)
        self._size()
        # The kernel signals only the foreground process group, and the command is not in it.
        os.killpg(self.process.pid, signal.SIGWINCH)

    def type(self, keys: str) -> None:
        """Send keys to the terminal."""
        os.write(self._master, keys.encode())

    def find_row(self, text: str) -> str:
        """Return the first row of the screen that contains a text; empty if no row contains it."""
        return next((row.rstrip() for row in self.screen.display if text in row), "")

    async def wait_for_texts(self, *texts: str) -> None:
        """Wait until all these texts are on the screen.

        Raises:
            AssertionError: A text does not appear in time.
        """
        try:
            await until(lambda: all(self.find_row(text) for text in texts))
        except TimeoutError:
            raise AssertionError(f"no {texts} on\n" + "\n".join(self.screen.display)) from None
