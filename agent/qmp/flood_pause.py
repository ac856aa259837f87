"""Pauses of reading in a flood of events, so that the event loop can run other tasks."""

import asyncio

FLOOD_BYTES = 64 * 1024
"""A chunk of at least this many bytes counts as a flood of events. A long reply counts, too."""
PAUSE_TURNS = 16
"""Number of turns of the event loop without reading after a flood. Other tasks run in these turns. A turn takes a few milliseconds."""


class FloodPause:
    """Pauses the reading of one connection after a large chunk of bytes."""

    __slots__ = ("_transport", "_turns")

    def __init__(self, transport: asyncio.Transport) -> None:
        """Set up without a pause; `begin` starts a pause."""
        self._transport: asyncio.Transport | None = transport
        self._turns = 0

    def disable(self) -> None:
        """Neither pause nor resume reading from now on, because the connection has ended."""
        self._transport = None

    def begin(self) -> None:
        """Stop reading for `PAUSE_TURNS` turns of the event loop, after a large chunk."""
        if self._transport is not None:
            self._transport.pause_reading()
            self._turns = PAUSE_TURNS
            asyncio.get_running_loop().call_soon(self._count_turn)

    def _count_turn(self) -> None:
        if self._transport is None:
            return
        self._turns -= 1
        if self._turns:
            asyncio.get_running_loop().call_soon(self._count_turn)
        else:
            self._transport.resume_reading()
