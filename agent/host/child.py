"""A child process that answers requests line by line. The agent never waits for its end: a child that waits for storage cannot be ended."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

START_SECONDS = 30.0
"""How long a child may take to start. On a busy host Python takes seconds."""

MAX_LINE_BYTES = 16384
"""Maximum size of an answer: a path of 4096 bytes has twice as many hexadecimal digits."""


class ChildError(Exception):
    """The child cannot be started, or it has ended."""


class _Lines(asyncio.SubprocessProtocol):
    """The lines that a child wrote and that were not read yet.

    Attributes:
        exited: set when the child has ended.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._part = b""
        self._ended = False
        self._arrived = asyncio.Event()
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        """Handle the end of the child."""
        self.exited.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - it is standard output
        """Handle output."""
        *lines, self._part = (self._part + data).split(b"\n")
        self._lines.extend(lines)
        self._ended = self._ended or len(self._part) > MAX_LINE_BYTES
        self._arrived.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the child has ended
        """Handle the end of a pipe."""
        self._ended = True
        self._arrived.set()

    async def read(self) -> bytes:
        """Return the next line.

        Raises:
            ChildError: There is none, because the child has ended or does not write lines.
        """
        while not self._lines:
            if self._ended:
                raise ChildError("the child process has ended")
            self._arrived.clear()
            await self._arrived.wait()
        return self._lines.popleft()


class Child:
    """A running child. `kill` it after use."""

    def __init__(self, transport: asyncio.SubprocessTransport, lines: _Lines) -> None:
        self._transport = transport
        self._lines = lines

    @classmethod
    async def start(cls, program: Path, arguments: Sequence[str] = ()) -> Self:
        """Start a Python program that writes a line when it is ready.

        Raises:
            ChildError: The program cannot be started, or is not ready within `START_SECONDS`.
        """
        # -I and -S: no search path and no site packages, which take most of the start.
        command = (sys.executable, "-I", "-S", os.fspath(program), *arguments)
        pipe = asyncio.subprocess.PIPE
        try:
            transport, lines = await asyncio.get_running_loop().subprocess_exec(
                _Lines, *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, cwd="/"
            )
        except OSError as error:
            raise ChildError(f"cannot start a child process: {error.strerror or error}") from error
        child = cls(transport, lines)
        try:
            async with asyncio.timeout(START_SECONDS):
                await child.read_line()
        except TimeoutError:
            child.kill()
            raise ChildError(f"the child process was not ready within {START_SECONDS:g} s") from None
        except BaseException:
            child.kill()
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._transport.get_pid()

    def send(self, data: bytes) -> None:
        """Send requests. If the child has ended, `read_line` reports it."""
        # uvloop's transport is a WriteTransport by behaviour, not by class.
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)

    async def read_line(self) -> bytes:
        """Return the next line, without its end. It may be cancelled: no part of a line is lost.

        Raises:
            ChildError: The child has ended, or the line is too long.
        """
        return await self._lines.read()

    def kill(self) -> None:
        """Kill it without waiting for its end."""
        self._transport.close()

    async def ended(self) -> None:
        """Wait for its end, which may never come."""
        await self._lines.exited.wait()
