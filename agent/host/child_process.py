"""A child process that answers requests line by line.

Each wait for the exit of a child has a timeout, because even SIGKILL does not end a child that hangs on storage.
"""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

START_SECONDS = 30.0
"""How long a child may take to start. Python takes several seconds to start on a busy host."""

EXIT_SECONDS = 2.0
"""How long to wait for the exit of a killed child. A child that hangs on storage exits only after the storage answers."""

MAX_ANSWER_BYTES = 16384
"""Maximum size of an answer in bytes. A path of 4096 bytes takes 8192 hexadecimal digits."""


class ChildUnavailableError(Exception):
    """The child process cannot be started, has exited, or has sent a line that is too long."""


class _LineProtocol(asyncio.SubprocessProtocol):
    """Buffers the output lines of a child until `read_line` takes the lines.

    Attributes:
        exited: set when the child has exited.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._incomplete_line = b""
        self._ended = False
        self._output_arrived = asyncio.Event()
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        """Set `exited`: the child has exited."""
        self.exited.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - always standard output
        """Split the child's output into lines, and keep the lines until `read_line` takes them."""
        *lines, self._incomplete_line = (self._incomplete_line + data).split(b"\n")
        self._lines.extend(lines)
        self._ended = self._ended or len(self._incomplete_line) > MAX_ANSWER_BYTES
        self._output_arrived.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the child has exited
        """End the output: the child has closed a pipe."""
        self._ended = True
        self._output_arrived.set()

    async def read_line(self) -> bytes:
        """Wait for the next line, and return the line.

        Raises:
            ChildUnavailableError: The child has exited, or its line is longer than `MAX_ANSWER_BYTES`.
        """
        while not self._lines:
            if self._ended:
                raise ChildUnavailableError("the child process has exited")
            self._output_arrived.clear()
            await self._output_arrived.wait()
        return self._lines.popleft()


class ChildProcess:
    """A running child process. Call `kill` after use."""

    def __init__(self, transport: asyncio.SubprocessTransport, lines: _LineProtocol) -> None:
        self._transport = transport
        self._lines = lines

    @classmethod
    async def start(cls, program: Path, arguments: Sequence[str] = ()) -> Self:
        """Start a Python program, and wait for its first line, which shows that the program is ready.

        Raises:
            ChildUnavailableError: The program cannot be started, or is not ready within `START_SECONDS`.
        """
        # -I and -S skip the module search path and site-packages, which take most of the start time.
        command = (sys.executable, "-I", "-S", os.fspath(program), *arguments)
        pipe = asyncio.subprocess.PIPE
        try:
            transport, lines = await asyncio.get_running_loop().subprocess_exec(
                _LineProtocol, *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, cwd="/"
            )
        except OSError as error:
            raise ChildUnavailableError(f"cannot start a child process: {error.strerror or error}") from error
        child = cls(transport, lines)
        try:
            async with asyncio.timeout(START_SECONDS):
                await child.read_line()
        except BaseException as error:
            child.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await child.wait_for_exit()
            if isinstance(error, TimeoutError):
                raise ChildUnavailableError(f"the child process was not ready within {START_SECONDS:g} s") from None
            raise
        return child

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._transport.get_pid()

    def send(self, data: bytes) -> None:
        """Send requests. The next `read_line` raises an error if the child has exited."""
        # uvloop's transport behaves like a WriteTransport, but is no instance of that class.
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)

    async def read_line(self) -> bytes:
        """Wait for the next line, and return the line without its newline. A cancelled call loses no data.

        Raises:
            ChildUnavailableError: The child has exited, or the line is too long.
        """
        return await self._lines.read_line()

    def kill(self) -> None:
        """Kill the child without waiting for its exit."""
        self._transport.close()

    async def wait_for_exit(self) -> None:
        """Wait without a timeout for the exit of the child. A child that hangs on storage may never exit."""
        await self._lines.exited.wait()
