"""What one who connects may take of us: so many connections, so much of a header, so long for it, so long to read an answer."""

import asyncio
from collections.abc import Callable
from typing import cast

MAX_CONNECTIONS = 256
HEADER_SECONDS = 10.0
"""How long a new connection may take for its first request."""
IDLE_SECONDS = 75.0
"""How long one may be idle between requests; Prometheus keeps its connection from scrape to scrape."""
READ_SECONDS = 30.0
"""How long a reader may take nothing of what waits for it."""
MAX_HEADER_BYTES = 64 << 10

Factory = Callable[[], asyncio.Protocol]


class ConnectionLimiter:
    """Stands before an HTTP server's protocols and ends connections that take too much."""

    def __init__(self) -> None:
        self.refused = 0
        """Connections that were ended at once, because there were too many."""
        self._guards: dict[asyncio.BaseTransport, _LimitedProtocol] = {}

    def before(self, factory: Callable[[], asyncio.BaseProtocol]) -> Factory:
        """Return a factory of guarded protocols."""
        return lambda: _LimitedProtocol(self, cast("asyncio.Protocol", factory()))

    def begins(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request came on this connection: its handler's time is its own."""
        if transport is not None and (guard := self._guards.get(transport)) is not None:
            guard.begins()

    def ends(self, transport: asyncio.BaseTransport | None) -> None:
        """The request is answered."""
        if transport is not None and (guard := self._guards.get(transport)) is not None:
            guard.ends()

    def enter(self, transport: asyncio.BaseTransport, guard: "_LimitedProtocol") -> bool:
        """Return whether there is room for one more connection."""
        if len(self._guards) >= MAX_CONNECTIONS:
            self.refused += 1
            return False
        self._guards[transport] = guard
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """A connection has ended."""
        self._guards.pop(transport, None)


class _LimitedProtocol(asyncio.Protocol):
    """Hands on all that a connection brings, for as long as it keeps to the rules."""

    def __init__(self, gate: ConnectionLimiter, inner: asyncio.Protocol) -> None:
        self._gate = gate
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._entered = False
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._pending: int | None = 0  # bytes since the last request; None while one is being answered

    def begins(self) -> None:
        self._pending = None
        self._set(None)

    def ends(self) -> None:
        self._pending = 0
        self._set(IDLE_SECONDS)

    def _set(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._after(seconds) if seconds is not None else None

    def _after(self, seconds: float) -> asyncio.TimerHandle:
        assert self._transport is not None
        return asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._entered = self._gate.enter(transport, self)
        if not self._entered:
            self._transport.abort()
            return
        self._set(HEADER_SECONDS)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._reader):
            if timer is not None:
                timer.cancel()
        if self._entered:
            assert self._transport is not None
            self._gate.leave(self._transport)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._entered:
            return
        if self._pending is not None:
            self._pending += len(data)
            if self._pending > MAX_HEADER_BYTES:
                assert self._transport is not None
                self._transport.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._entered else None

    def pause_writing(self) -> None:
        self._reader = self._after(READ_SECONDS)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._inner.resume_writing()
