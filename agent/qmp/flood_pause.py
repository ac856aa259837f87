"""Pauses of reading in a flood of events, because the event loop would otherwise have no time for anything else."""

import asyncio
from collections.abc import Callable

from agent.qmp.commands import Request

FLOOD_BYTES = 64 * 1024
"""A chunk of at least this size counts as a flood of events. A long reply may also be such a chunk."""
PAUSE_TURNS = 16
"""Number of turns of the event loop without reading after a flood. Other tasks run in these turns, a few milliseconds each."""
READ_TURNS = 2
"""Number of turns of the event loop that reading all arrived data takes."""


class FloodPause:
    """Pauses the reading of one connection after a large chunk of bytes. During the pause, it holds the connection's requests.

    Attributes:
        turns: turns of the event loop until the end of the pause; 0 if there is no pause.
    """

    __slots__ = ("_held", "_transport", "_write_request", "turns")

    def __init__(self, transport: asyncio.Transport, write_request: Callable[[Request], None]) -> None:
        """Create an object that is not pausing.

        Args:
            transport: the connection's transport.
            write_request: writes a request.
        """
        self.turns = 0
        self._transport = transport
        self._write_request: Callable[[Request], None] | None = write_request
        self._held: list[Request] = []

    def end(self) -> None:
        """End all reading and writing, because the connection has ended. This breaks a reference cycle."""
        self._write_request, self._held = None, []

    def hold(self, data: Request) -> None:
        """Hold a request, and write it after the pause or after the next chunk, whichever comes first."""
        self._held.append(data)

    def on_chunk(self, size: int) -> None:
        """Handle a chunk of `size` bytes: write the held requests, and begin a pause after a large chunk."""
        self._write_held()
        if size >= FLOOD_BYTES and self._write_request is not None:
            self._transport.pause_reading()
            if not self.turns:
                asyncio.get_running_loop().call_soon(self._count_turn)
            self.turns = PAUSE_TURNS + READ_TURNS

    def _count_turn(self) -> None:
        """Count the turns of a pause. Resume reading READ_TURNS before its end, and write the held requests at its end.

        Requests wait until all arrived data has been read, because a write to a closed connection makes the kernel discard unread data.
        """
        if self._write_request is None:
            return
        self.turns -= 1
        if self.turns == READ_TURNS:
            self._transport.resume_reading()
        if self.turns:
            asyncio.get_running_loop().call_soon(self._count_turn)
        else:
            self._write_held()

    def _write_held(self) -> None:
        held, self._held = self._held, []
        for data in held:
            if self._write_request is not None:  # a write can end the connection
                self._write_request(data)
