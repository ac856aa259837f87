"""Calls of libvirt's blocking library, each in a thread, on a limited number of connections.

libvirt cannot cancel a call. A call that waits for a hung QEMU returns only when that QEMU continues. A call that takes too long counts as
hung, and another call may start in its place. The pool makes no further call on the connection of a hung call.
Each hung call occupies a worker thread of libvirtd, and all clients share these workers (max_workers, 20 by default). So the pool also
limits the number of hung calls.

A connection never has two calls at once, because libvirt 9.0 may then crash (virNetClientIOEventLoop, CVE-2024-4418). Keepalive may end the
calls of several threads on one connection. libvirt then keeps an event source that points into the stack of an ended thread. The next
thread that waits on the connection crashes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.common.daemon_thread import complete_future, run_in_thread
from agent.monitors.libvirt.libvirt_python import KEEPALIVE, LibvirtConnection, to_qmp_error
from agent.qmp.errors import QmpError, UnreadableReplyError

HUNG_SECONDS = 1.5
"""Seconds after which a call counts as hung."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of the calls to one libvirtd.

    Attributes:
        max_calls: maximum number of calls at once, not counting hung calls.
        max_hung: maximum number of hung calls. Any further hung call counts toward `max_calls` until the call returns.
    """

    max_calls: int
    max_hung: int


HOST_LIMITS = CallLimits(max_calls=4, max_hung=8)
"""Limits for a libvirtd with all domains of a host."""

SINGLE_DOMAIN_LIMITS = CallLimits(max_calls=1, max_hung=2)
"""Limits for a libvirtd with one domain, as in the pods of KubeVirt. A node may have 250 such daemons."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _PooledCall:
    """A call in progress on a connection. `outcome` completes when the call returns; `timer` marks the call as hung."""

    connection: LibvirtConnection
    outcome: asyncio.Future[Any]
    hung: bool = False
    timer: asyncio.TimerHandle | None = field(default=None)


class ConnectionPool:
    """Makes calls to one libvirtd, and reconnects when libvirtd restarts. Only the event loop that created the pool may use the pool."""

    def __init__(
        self,
        api: Any,
        uri: str,
        *,
        read_only: bool = False,
        limits: CallLimits = HOST_LIMITS,
        hung_seconds: float = HUNG_SECONDS,
        keepalive: tuple[int, int] = KEEPALIVE,
    ) -> None:
        """Create a pool without connections.

        Args:
            api: the module libvirt.
            uri: libvirt's URI of the daemon.
            read_only: whether connections are read-only.
            limits: limits of the calls.
            hung_seconds: seconds after which a call counts as hung.
            keepalive: seconds between two keepalive messages, and the number of messages that may stay unanswered.
        """
        self.hung_calls = 0
        """Number of hung calls."""
        self.read_only = read_only
        self.uri = uri
        """libvirt's URI. A new URI applies to the next connection."""
        self._api = api
        self._limits = limits
        self._hung_seconds = hung_seconds
        self._keepalive = keepalive
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limits.max_calls)
        self._idle: list[LibvirtConnection] = []
        self._in_use: set[LibvirtConnection] = set()

    @property
    def has_too_many_hung_calls(self) -> bool:
        """True if the number of hung calls has reached its limit. A further hung call then blocks one of the `max_calls`."""
        return self.hung_calls >= self._limits.max_hung

    async def call_with_connection(self, function: Callable[[LibvirtConnection], T]) -> T:
        """Call `function` with a connection, in a thread, and return the result. The result must not contain libvirt's objects.

        The caller sets the deadline. If the caller is cancelled, `function` continues in its thread until it returns.

        Raises:
            CommandError: libvirt refused the call, or passed on an error of QEMU.
            UnreadableReplyError: libvirt's answer cannot be decoded.
            NotConnectedError: the domain does not exist.
            TransportLostError: libvirtd cannot be reached.
            ConnectPermissionError: libvirtd does not permit the agent to connect.
        """
        await self._slots.acquire()
        connection = self._idle_or_new_connection()
        self._in_use.add(connection)
        call = _PooledCall(connection, self._loop.create_future())
        call.timer = self._loop.call_later(self._hung_seconds, self._mark_hung, call)
        run_in_thread(
            self._loop,
            lambda: self._call_and_convert_errors(function, connection),
            lambda outcome: self._finish_call(call, outcome),
        )
        result: T = await call.outcome
        return result

    def replace_connections(self) -> None:
        """Use new connections from now on. Close each old connection when it is idle."""
        for connection in self._in_use:
            connection.retired = True
        for connection in self._idle:
            self._close_in_background(connection)
        self._idle.clear()

    def _idle_or_new_connection(self) -> LibvirtConnection:
        """Return an idle connection, or a new connection if no connection is idle."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost():
                return connection
            self._close_in_background(connection)
        return LibvirtConnection(self._api, self.uri, read_only=self.read_only, keepalive=self._keepalive)

    def _close_in_background(self, connection: LibvirtConnection) -> None:
        run_in_thread(self._loop, connection.close, lambda _: None)

    def _call_and_convert_errors(
        self, function: Callable[[LibvirtConnection], T], connection: LibvirtConnection
    ) -> T | QmpError:
        """Call `function`; return its result, or the QmpError for libvirt's error. This method runs in a thread."""
        try:
            return function(connection)
        except self._api.libvirtError as error:
            return to_qmp_error(self._api, error, connection if connection.was_opened else None)
        except UnicodeDecodeError as error:  # libvirt's library decodes what libvirtd sends
            return UnreadableReplyError(f"libvirt's answer cannot be decoded: {error}")

    def _mark_hung(self, call: _PooledCall) -> None:
        """Count a call as hung and permit another call in its place, unless too many calls hang already."""
        if self.hung_calls < self._limits.max_hung:
            call.hung = call.connection.retired = True
            self.hung_calls += 1
            self._slots.release()

    def _finish_call(self, call: _PooledCall, outcome: Any) -> None:
        assert call.timer is not None
        call.timer.cancel()
        if call.hung:
            self.hung_calls -= 1
        else:
            self._slots.release()
        self._in_use.remove(call.connection)
        if call.connection.retired:
            self._close_in_background(call.connection)
        else:
            self._idle.append(call.connection)
        complete_future(call.outcome, outcome)
