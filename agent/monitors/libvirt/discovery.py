"""Discovery of the domains of one libvirtd; each running domain is a monitor.

Discovery reads libvirt's list of running domains every 30 s. libvirt's lifecycle events trigger a read at once.
"""

import asyncio
import time
from collections.abc import Mapping
from enum import Enum, auto
from math import inf
from typing import Any

from agent.common.backoff import back_off
from agent.monitors.base import DiscoveryListener, Monitor, MonitorConnection
from agent.monitors.libvirt.client_library import LibraryMissingError, load_library
from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.domain_registry import DomainRegistry, RunningDomain
from agent.monitors.libvirt.event_connection import EventConnection, Message
from agent.monitors.libvirt.executors import LibvirtHost
from agent.monitors.libvirt.lifecycle import LifecycleEvent
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.qmp.errors import (
    CommandError,
    DeniedError,
    NotConnectedError,
    QmpError,
    StalledError,
    TransportLostError,
    UnreadableReplyError,
)

LIST_SECONDS = 30.0
RESPONSE_SECONDS = 5.0
"""Timeout of calls that libvirtd answers without QEMU. After it, libvirtd counts as hung."""
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 10.0

READ_ONLY_NOTE = "read-only: of QEMU's events only STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"

_FIRST = asyncio.FIRST_COMPLETED


class DaemonState(Enum):
    """State of libvirtd, as the discoverer last saw it."""

    CONNECTING = auto()
    """No attempt to connect has finished yet."""
    REACHABLE = auto()
    HUNG = auto()
    """libvirtd accepts connections but does not answer in time."""
    LOST = auto()
    DENIED = auto()

    def after_failure(self, error: QmpError, *, connected: bool) -> "DaemonState":
        """Return the state after an attempt to connect failed, or after the connection ended (`connected`)."""
        if connected:
            return DaemonState.LOST
        if isinstance(error, DeniedError):
            return DaemonState.DENIED
        return (
            self if self is DaemonState.HUNG else DaemonState.LOST
        )  # an attempt on a hung libvirtd fails by keepalive


_ERROR_TYPES: Mapping[DaemonState, type[QmpError]] = {
    DaemonState.CONNECTING: TransportLostError,
    DaemonState.HUNG: StalledError,
    DaemonState.LOST: TransportLostError,
    DaemonState.DENIED: DeniedError,
}
"""In each state but REACHABLE, the error that is raised when a domain is opened."""


class LibvirtDiscoverer:
    """Finds domains at a URI such as `qemu:///system`."""

    def __init__(self, uri: str, *, read_only: bool = False, passthrough: bool = False) -> None:
        """Create a discoverer.

        Args:
            uri: libvirt's URI of the daemon.
            read_only: use only read-only connections.
            passthrough: send commands to QEMU itself, which taints the domains.
        """
        self.uri = uri
        self._read_only = read_only
        self._passthrough = passthrough
        key = ("libvirt", uri, read_only, passthrough)
        self._source = Monitor(uri, key, self._open_source)
        self.domains = DomainRegistry(uri, key, self._require_host)
        self._host: LibvirtHost | None = None
        self._state = DaemonState.CONNECTING
        self._reason = f"{uri} was not reached yet"
        self._reported: object = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        options = [name for name, on in (("read-only", self._read_only), ("passthrough", self._passthrough)) if on]
        return " ".join(("libvirt", self.uri, *options))

    async def run(self, listener: DiscoveryListener) -> None:
        """Report domains to `listener` until cancelled."""
        try:
            api, qemu = load_library()
        except LibraryMissingError as error:
            self._report(listener, DeniedError(str(error)))
            await asyncio.Event().wait()
            return
        pool, attempt = ConnectionPool(api, self.uri), 0
        while True:
            self._changed.clear()
            events, connected_at = EventConnection(api, qemu, self._on_message), inf
            try:
                self._host = await self._connect(events, pool, listener)
                self._state, connected_at = DaemonState.REACHABLE, time.monotonic()
                await self._follow(events, self._host, listener)
            except QmpError as error:
                self._disconnect(error)
                self._report(listener, error)
            except BaseException:
                self._disconnect(TransportLostError("the agent stops"))
                raise
            finally:
                events.close()
            attempt = 0 if time.monotonic() - connected_at > MAX_RETRY_SECONDS else attempt + 1
            await asyncio.sleep(back_off(attempt, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS))

    def refresh(self) -> None:
        """Read the list of domains now."""
        self._changed.set()

    async def _connect(self, events: EventConnection, pool: ConnectionPool, listener: DiscoveryListener) -> LibvirtHost:
        """Connect without a deadline; a libvirtd that does not answer in time is reported as hung."""
        opening = asyncio.ensure_future(events.open(self.uri, read_only=self._read_only))
        try:
            if not (await asyncio.wait({opening}, timeout=RESPONSE_SECONDS))[0]:
                self._on_hung(listener)
            version, read_only = await opening
        finally:
            opening.cancel()
        pool.read_only = read_only
        stats = StatsBatcher(events.api, pool)
        passthrough = self._passthrough and not read_only
        return LibvirtHost(events.api, events.qemu, pool, stats, version, read_only, passthrough)

    async def _follow(self, events: EventConnection, host: LibvirtHost, listener: DiscoveryListener) -> None:
        """List the domains periodically and at each lifecycle event, until the connection ends.

        Raises:
            TransportLostError: the connection ended.
        """
        while True:
            self._changed.clear()
            listing = asyncio.ensure_future(host.pool.run(lambda connection: _list_running(connection.handle())))
            ended = asyncio.ensure_future(events.ended.wait())
            try:
                if not (await asyncio.wait({listing, ended}, timeout=RESPONSE_SECONDS, return_when=_FIRST))[0]:
                    self._on_hung(listener)
                    await asyncio.wait({listing, ended}, return_when=_FIRST)
                if ended.done():
                    overflow = f": {events.dropped} events exceeded the queue" if events.dropped else ""
                    raise TransportLostError(f"the connection to {self.uri} ended{overflow}")
                self._state = DaemonState.REACHABLE
                try:
                    self.domains.update(listing.result(), listener)
                except (
                    CommandError,
                    UnreadableReplyError,
                ) as error:  # the list cannot be read, but the connections to the domains still work
                    self._report(listener, error)
                else:
                    self._report(listener, None, READ_ONLY_NOTE if host.read_only else "")
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, ended}, timeout=LIST_SECONDS, return_when=_FIRST)
                changed.cancel()
            finally:
                listing.cancel()
                ended.cancel()

    def _on_hung(self, listener: DiscoveryListener) -> None:
        self._state, self._reason = DaemonState.HUNG, f"libvirtd at {self.uri} does not answer"
        self._report(listener, StalledError(self._reason))

    def _report(self, listener: DiscoveryListener, error: QmpError | None, note: str = "") -> None:
        status = (type(error), str(error), note)
        if status != self._reported:
            self._reported = status
            listener.on_status(self._source, error, note)

    def _disconnect(self, error: QmpError) -> None:
        """Note that libvirtd is gone, and end the connections to its domains, because their state is unknown now."""
        state = self._state.after_failure(error, connected=self._host is not None)
        if state is not DaemonState.HUNG:
            self._reason = str(error)
        self._state = state
        if self._host is not None:
            self._host.pool.retire()
            self._host = None
            self.domains.end_all(TransportLostError(str(error)))

    def _require_host(self) -> LibvirtHost:
        """Return the connected libvirtd.

        Raises:
            QmpError: there is none.
        """
        if self._state is not DaemonState.REACHABLE:
            raise _ERROR_TYPES[self._state](self._reason)
        assert self._host is not None, "a reachable libvirtd is connected"
        return self._host

    def _on_message(self, message: Message) -> None:
        self.domains.on_message(message)
        if isinstance(message, LifecycleEvent):
            self.refresh()

    async def _open_source(self, *_: Any, **__: Any) -> MonitorConnection:
        raise NotConnectedError(f"{self.uri} is not a VM")


def _list_running(handle: Any) -> list[RunningDomain]:
    """Return the running domains. Blocks."""
    domains = handle.listAllDomains(1)  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
    return [RunningDomain(domain.ID(), domain.UUIDString(), domain.name()) for domain in domains if domain.ID() != -1]
