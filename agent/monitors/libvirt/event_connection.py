"""A connection to libvirtd for events. Passes QEMU's events and libvirt's lifecycle events from libvirt's thread to the event loop."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from agent.common.daemon_thread import complete_future, run_in_thread
from agent.monitors.libvirt.libvirt_python import (
    is_connection_alive,
    is_denied,
    open_connection,
    to_qmp_error,
)
from agent.monitors.libvirt.lifecycle import LifecycleEvent
from agent.qmp.protocol import Event

MAX_PENDING = 8192
"""Maximum number of events that wait for the event loop. Further events are dropped, and the agent reconnects."""


@dataclass(frozen=True, slots=True)
class DomainQemuEvent:
    """An event that a domain's QEMU emitted; `uuid` identifies the domain."""

    uuid: str
    event: Event


LibvirtEvent = DomainQemuEvent | LifecycleEvent


class _ConnectionClosed:
    """Reported in place of an event when libvirt has closed the connection."""


class EventConnection:
    """The connection to libvirtd on which libvirt reports events."""

    def __init__(self, api: Any, qemu: Any, on_event: Callable[[LibvirtEvent], None]) -> None:
        """Create a connection that is not open yet.

        Args:
            api: the module libvirt.
            qemu: the module libvirt_qemu.
            on_event: called on the event loop with each event, in order; must not block or raise.
        """
        self.api = api
        self.qemu = qemu
        self.ended = asyncio.Event()
        self.dropped_events = 0
        """Number of dropped events. A drop ends the connection, so that the agent reconnects and queries everything again."""
        self._on_event = on_event
        self._inbox = ThreadSafeEventQueue(self._deliver, self._on_overflow)
        self._loop = asyncio.get_running_loop()
        self._handle: Any = None
        self._call_lock = threading.Lock()  # one call at a time, see connection_pool
        self._closing = False

    async def open(self, uri: str, *, read_only: bool) -> bool:
        """Connect and register for events.

        Returns:
            True if the connection is read-only, either as requested or because libvirt permits the agent no other connection.

        Raises:
            ConnectPermissionError: not even a read-only connection is permitted.
            TransportLostError: libvirtd cannot be reached.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        run_in_thread(self._loop, lambda: self._open(uri, read_only=read_only), partial(complete_future, done))
        is_read_only: bool = await done
        return is_read_only

    def close(self) -> None:
        """Close the connection in the background."""
        self._closing = True
        run_in_thread(self._loop, self._close, lambda _: None)

    def _deliver(self, event: LibvirtEvent | _ConnectionClosed) -> None:
        if isinstance(event, _ConnectionClosed):
            self.ended.set()
        elif not self._closing:
            self._on_event(event)

    def _on_overflow(self, dropped: int) -> None:
        self.dropped_events += dropped
        self.ended.set()

    # The methods below run in threads.

    def _open(self, uri: str, *, read_only: bool) -> Any:
        with self._call_lock:
            try:
                read_only = self._connect_and_register(uri, read_only=read_only)
            except self.api.libvirtError as error:
                return to_qmp_error(self.api, error)
        if self._closing:
            self._close()
        return read_only

    def _connect_and_register(self, uri: str, *, read_only: bool) -> bool:
        handle, read_only = self._connect(uri, read_only=read_only)
        self._handle = handle
        put = self._inbox.put
        handle.registerCloseCallback(lambda _connection, _reason, _: put(_ConnectionClosed()), None)
        handle.domainEventRegisterAny(None, self.api.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _lifecycle_callback(put), None)
        return read_only or not self._register_events(handle)

    def _register_events(self, handle: Any) -> bool:
        """Register for QEMU's events; return False if libvirt does not permit the registration."""
        try:
            self.qemu.qemuMonitorEventRegister(handle, None, None, _event_callback(self._inbox.put), None, 0)
        except self.api.libvirtError as error:
            if is_denied(self.api, error):
                return False
            raise
        return True

    def _connect(self, uri: str, *, read_only: bool) -> tuple[Any, bool]:
        try:
            return open_connection(self.api, uri, read_only=read_only), read_only
        except self.api.libvirtError as error:
            if read_only or not is_denied(self.api, error):
                raise
        return open_connection(self.api, uri, read_only=True), True

    def _close(self) -> None:
        with self._call_lock, contextlib.suppress(self.api.libvirtError):
            handle, self._handle = self._handle, None
            if handle is None:
                return
            if is_connection_alive(handle):
                handle.unregisterCloseCallback()
                for number in list(getattr(handle, "domainEventCallbackID", ())):
                    handle.domainEventDeregisterAny(number)
                for number in list(getattr(handle, "qemuMonitorEventCallbackID", ())):
                    self.qemu.qemuMonitorEventDeregister(handle, number)
            handle.close()


def _lifecycle_callback(put: Callable[[Any], None]) -> Callable[..., None]:
    def on_lifecycle(_connection: Any, domain: Any, event: int, detail: int, _: object) -> None:
        put(LifecycleEvent(domain.UUIDString(), event, detail))

    return on_lifecycle


def _event_callback(put: Callable[[Any], None]) -> Callable[..., None]:
    def on_event(
        _connection: Any, domain: Any, name: str, seconds: int, micros: int, details: str | None, _: object
    ) -> None:
        try:
            data = orjson.loads(details) if details else {}
        except orjson.JSONDecodeError:
            data = {}
        time_ns = None if seconds < 0 else seconds * 1_000_000_000 + micros * 1000
        put(DomainQemuEvent(domain.UUIDString(), Event(name, data if isinstance(data, dict) else {}, time_ns)))

    return on_event


class ThreadSafeEventQueue:
    """A bounded queue of events from libvirt's event thread to the event loop. Keeps the order of events, and counts dropped events."""

    def __init__(self, deliver: Callable[[Any], None], on_overflow: Callable[[int], object]) -> None:
        """Create an empty queue.

        Args:
            deliver: called on the event loop with each event.
            on_overflow: called on the event loop with the number of events that were dropped.
        """
        self._deliver = deliver
        self._on_overflow = on_overflow
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: deque[Any] = deque()

    def put(self, event: Any) -> None:
        """Enqueue an event, or drop and count it if the queue is full. Any thread may call this method."""
        with self._lock:
            if len(self._pending) >= MAX_PENDING:
                self._dropped += 1
                return
            self._pending.append(event)
            if len(self._pending) > 1:
                return  # a flush is scheduled already
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._flush_pending)

    def _flush_pending(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, deque()
            dropped, self._dropped = self._dropped, 0
        for event in pending:
            self._deliver(event)
        if dropped:
            self._on_overflow(dropped)
