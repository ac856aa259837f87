"""What libvirt says unasked, on a connection of its own, handed over from its event thread."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from agent.monitors.libvirt.connection_pool import alive, denied, dial, in_thread, meaning, settle

MAX_SAID = 8192
"""What libvirt said and we have not taken yet; past it, it is dropped, and the connection begins anew."""


class EventConnection:
    """The connection on which libvirt says what happens."""

    def __init__(self, api: Any, qemu: Any, take: Callable[[tuple[Any, ...]], None]) -> None:
        self.api = api
        self.qemu = qemu
        self.ended = asyncio.Event()
        self.lost = 0
        """How much of what libvirt said was lost, which ends it: all is asked anew."""
        self._take = take
        self._inbox = EventInbox(self._taken, self._overrun)
        self._loop = asyncio.get_running_loop()
        self._connection: Any = None
        self._calling = threading.Lock()  # one call on it at a time, as in `wire`
        self._over = False

    async def open(self, uri: str, *, read_only: bool) -> tuple[tuple[int, int, int], bool]:
        """Connect and register; return QEMU's version, and whether the connection is read-only, as it is where no other is to be had.

        Raises:
            DeniedError: we may not connect, not even to read.
            WayLostError: nothing is there to connect to.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        in_thread(self._loop, lambda: self._open(uri, read_only=read_only), partial(settle, done))
        opened: tuple[tuple[int, int, int], bool] = await done
        return opened

    def close(self) -> None:
        """Close it, in its own time."""
        self._over = True
        in_thread(self._loop, self._close, lambda _: None)

    def _taken(self, what: tuple[Any, ...]) -> None:
        if what == ("closed",):
            self.ended.set()
        elif not self._over:
            self._take(what)

    def _overrun(self, lost: int) -> None:
        self.lost += lost
        self.ended.set()

    # In threads.

    def _open(self, uri: str, *, read_only: bool) -> Any:
        with self._calling:
            try:
                number, read_only = self._opened(uri, read_only=read_only)
            except self.api.libvirtError as error:
                return meaning(self.api, error)
        if self._over:
            self._close()
        return (number // 1_000_000, number // 1000 % 1000, number % 1000), read_only

    def _opened(self, uri: str, *, read_only: bool) -> tuple[int, bool]:
        connection, read_only = self._dial(uri, read_only=read_only)
        self._connection = connection
        put = self._inbox.put
        connection.registerCloseCallback(lambda _connection, _reason, _: put(("closed",)), None)
        connection.domainEventRegisterAny(None, self.api.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _life(put), None)
        read_only = read_only or not self._hears(connection)
        return connection.getVersion(), read_only

    def _hears(self, connection: Any) -> bool:
        """Ask for QEMU's events; return whether we may have them."""
        try:
            self.qemu.qemuMonitorEventRegister(connection, None, None, _event(self._inbox.put), None, 0)
        except self.api.libvirtError as error:
            if denied(self.api, error):
                return False
            raise
        return True

    def _dial(self, uri: str, *, read_only: bool) -> tuple[Any, bool]:
        try:
            return dial(self.api, uri, read_only=read_only), read_only
        except self.api.libvirtError as error:
            if read_only or not denied(self.api, error):
                raise
        return dial(self.api, uri, read_only=True), True

    def _close(self) -> None:
        with self._calling, contextlib.suppress(self.api.libvirtError):
            connection, self._connection = self._connection, None
            if connection is None:
                return
            if alive(connection):
                connection.unregisterCloseCallback()
                for number in list(getattr(connection, "domainEventCallbackID", ())):
                    connection.domainEventDeregisterAny(number)
                for number in list(getattr(connection, "qemuMonitorEventCallbackID", ())):
                    self.qemu.qemuMonitorEventDeregister(connection, number)
            connection.close()


def _life(put: Callable[[Any], None]) -> Callable[..., None]:
    def said(_connection: Any, domain: Any, event: int, detail: int, _: object) -> None:
        put(("life", domain.UUIDString(), event, detail))

    return said


def _event(put: Callable[[Any], None]) -> Callable[..., None]:
    def said(
        _connection: Any, domain: Any, name: str, seconds: int, micros: int, details: str | None, _: object
    ) -> None:
        try:
            data = orjson.loads(details) if details else {}
        except orjson.JSONDecodeError:
            data = {}
        time_ns = None if seconds < 0 else seconds * 1_000_000_000 + micros * 1000
        put(("event", domain.UUIDString(), name, time_ns, data if isinstance(data, dict) else {}))

    return said


class EventInbox:
    """What libvirt's event thread says, handed to the event loop in order; then `full` is told how much more it was than is kept."""

    def __init__(self, take: Callable[[Any], None], full: Callable[[int], object]) -> None:
        self._take = take
        self._full = full
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._said: deque[Any] = deque()

    def put(self, what: Any) -> None:
        """Hand something over; from any thread."""
        with self._lock:
            if len(self._said) >= MAX_SAID:
                self._dropped += 1
                return
            self._said.append(what)
            if len(self._said) > 1:
                return  # it is being fetched already
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._fetch)

    def _fetch(self) -> None:
        with self._lock:
            said, self._said = self._said, deque()
            dropped, self._dropped = self._dropped, 0
        for what in said:
            self._take(what)
        if dropped:
            self._full(dropped)
