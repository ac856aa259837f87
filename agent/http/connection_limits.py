"""Limits of the endpoint's connections: number of connections, size of a request's header, and timeouts for slow clients."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

ProtocolFactory = Callable[[], asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the endpoint's connections. The endpoint closes a connection that exceeds a limit.

    Attributes:
        connections: maximum number of concurrent connections.
        header_seconds: maximum time from the start of a connection to its first complete request header.
        idle_seconds: maximum time between two requests. Prometheus keeps its connection open between scrapes.
        read_seconds: timeout for a client that does not read its response.
        header_bytes: maximum size of a request's header.
    """

    connections: int = 256
    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    read_seconds: float = 30.0
    header_bytes: int = 64 << 10


DEFAULT_CONNECTION_LIMITS = ConnectionLimits()


class ConnectionLimiter:
    """Wraps the asyncio protocols of an HTTP server, and closes connections that exceed a limit."""

    def __init__(self, limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS) -> None:
        self.limits = limits
        self.refused = 0
        """Number of new connections that were closed, because too many were open."""
        self._connections: dict[asyncio.BaseTransport, _LimitedProtocol] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def wrap(self, factory: Callable[[], asyncio.BaseProtocol]) -> ProtocolFactory:
        """Return a protocol factory that enforces the limits around the protocols of `factory`."""
        return lambda: _LimitedProtocol(self, cast("asyncio.Protocol", factory()))

    def request_started(self, transport: asyncio.BaseTransport | None) -> None:
        """Stop the idle timer of a connection, because a request has arrived. The request's handler has no timeout."""
        if transport is not None and (connection := self._connections.get(transport)) is not None:
            connection.request_started()

    def request_finished(self, transport: asyncio.BaseTransport | None) -> None:
        """Start the idle timer of a connection, because the response was sent."""
        if transport is not None and (connection := self._connections.get(transport)) is not None:
            connection.request_finished()

    def add(self, transport: asyncio.BaseTransport, connection: "_LimitedProtocol") -> bool:
        """Add a new connection. Return False if too many are open."""
        if len(self._connections) >= self.limits.connections:
            self.refused += 1
            return False
        self._connections[transport] = connection
        return True

    def remove(self, transport: asyncio.BaseTransport) -> None:
        """Remove a connection that ended."""
        self._connections.pop(transport, None)


class _LimitedProtocol(asyncio.Protocol):
    """Passes a connection's data to the server's protocol, and aborts the connection at a limit."""

    def __init__(self, limiter: ConnectionLimiter, inner: asyncio.Protocol) -> None:
        self._limiter = limiter
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._admitted = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = 0  # bytes received since the previous request; None while a request is handled

    def request_started(self) -> None:
        self._header_bytes = None
        self._set_request_timer(None)

    def request_finished(self) -> None:
        self._header_bytes = 0
        self._set_request_timer(self._limiter.limits.idle_seconds)

    def _set_request_timer(self, seconds: float | None) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
        self._request_timer = self._abort_after(seconds) if seconds is not None else None

    def _abort_after(self, seconds: float) -> asyncio.TimerHandle:
        assert self._transport is not None
        return asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    # asyncio calls the methods below.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._admitted = self._limiter.add(transport, self)
        if not self._admitted:
            self._transport.abort()
            return
        self._set_request_timer(self._limiter.limits.header_seconds)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._request_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        if self._admitted:
            assert self._transport is not None
            self._limiter.remove(self._transport)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._admitted:
            return
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > self._limiter.limits.header_bytes:
                assert self._transport is not None
                self._transport.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._admitted else None

    def pause_writing(self) -> None:
        self._read_timer = self._abort_after(self._limiter.limits.read_seconds)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._inner.resume_writing()
