"""Calls of libvirt's blocking library, each in a thread, on a limited number of connections.

A call that waits for a hung QEMU returns only when that QEMU continues, because libvirt cannot cancel it. So a call that takes long
frees its slot for other calls, and its connection is not used again. The number of hung calls is limited too: each occupies one of
the workers (max_workers, 20 by default) that libvirtd has for all its clients.

A connection never has two calls at once, because libvirt 9.0 may crash then (virNetClientIOEventLoop, CVE-2024-4418). When keepalive
ends the calls of several threads on one connection, it leaves an event source that points into the stack of an ended thread. The next
thread that waits there crashes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.monitors.libvirt.client_library import KEEPALIVE, LibvirtConnection, run_in_thread, set_outcome, to_qmp_error
from agent.qmp.errors import QmpError, UnreadableReplyError

HUNG_SECONDS = 1.5
"""Time after which a call counts as hung: its slot is free for other calls, and its connection is not used again."""

MAX_CALLS = 4
MAX_HUNG = 8

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _PooledCall:
    """A call in progress."""

    connection: LibvirtConnection
    outcome: asyncio.Future[Any]
    hung: bool = False
    timer: asyncio.TimerHandle | None = field(default=None)


class ConnectionPool:
    """Makes calls to one libvirtd, and reconnects when it restarts. Must be used on the event loop that created it."""

    def __init__(
        self,
        api: Any,
        uri: str,
        *,
        read_only: bool = False,
        hung_seconds: float = HUNG_SECONDS,
        keepalive: tuple[int, int] = KEEPALIVE,
    ) -> None:
        """Create a pool without connections.

        Args:
            api: the module libvirt.
            uri: libvirt's URI of the daemon.
            read_only: whether connections are read-only.
            hung_seconds: seconds after which a call counts as hung.
            keepalive: seconds between two keepalive messages, and how many may stay unanswered.
        """
        self.hung = 0
        """Number of hung calls."""
        self.read_only = read_only
        self._api = api
        self._uri = uri
        self._hung_seconds = hung_seconds
        self._keepalive = keepalive
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._idle: list[LibvirtConnection] = []
        self._busy: set[LibvirtConnection] = set()

    async def run(self, function: Callable[[LibvirtConnection], T]) -> T:
        """Call `function` in a thread and return its result. The result must not refer to libvirt's objects.

        The caller sets the deadline. A cancelled call continues in its thread until it returns.

        Raises:
            CommandError: libvirt refused the call, or passed on an error of QEMU.
            UnreadableReplyError: libvirt's answer cannot be decoded.
            NotConnectedError: the domain does not exist.
            TransportLostError: libvirtd cannot be reached.
            DeniedError: libvirtd does not let the agent connect.
        """
        await self._slots.acquire()
        connection = self._take_connection()
        self._busy.add(connection)
        call = _PooledCall(connection, self._loop.create_future())
        call.timer = self._loop.call_later(self._hung_seconds, self._on_hung, call)
        run_in_thread(
            self._loop, lambda: self._call(function, connection), lambda outcome: self._on_return(call, outcome)
        )
        result: T = await call.outcome
        return result

    def retire(self) -> None:
        """Use new connections from now on. Close idle connections now, and busy ones when their calls return."""
        for connection in self._busy:
            connection.retired = True
        for connection in self._idle:
            self._close(connection)
        self._idle.clear()

    def _take_connection(self) -> LibvirtConnection:
        """Return a connection without a call in progress."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost():
                return connection
            self._close(connection)
        return LibvirtConnection(self._api, self._uri, read_only=self.read_only, keepalive=self._keepalive)

    def _close(self, connection: LibvirtConnection) -> None:
        run_in_thread(self._loop, connection.close, lambda _: None)

    def _call(self, function: Callable[[LibvirtConnection], T], connection: LibvirtConnection) -> T | QmpError:
        """Call `function` and convert libvirt's errors. Runs in a thread."""
        try:
            return function(connection)
        except self._api.libvirtError as error:
            return to_qmp_error(self._api, error, connection if connection.opened else None)
        except UnicodeDecodeError as error:  # libvirt's library decodes what libvirtd sends
            return UnreadableReplyError(f"libvirt's answer cannot be decoded: {error}")

    def _on_hung(self, call: _PooledCall) -> None:
        if self.hung < MAX_HUNG:
            call.hung = call.connection.retired = True
            self.hung += 1
            self._slots.release()

    def _on_return(self, call: _PooledCall, outcome: Any) -> None:
        assert call.timer is not None
        call.timer.cancel()
        if call.hung:
            self.hung -= 1
        else:
            self._slots.release()
        self._busy.remove(call.connection)
        if call.connection.retired:
            self._close(call.connection)
        else:
            self._idle.append(call.connection)
        set_outcome(call.outcome, outcome)
