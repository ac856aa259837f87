"""Discovery of the domains of one libvirtd; each running domain is a monitor.

Discovery reads libvirt's list of running domains every 30 s. libvirt's lifecycle events trigger a read at once.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from math import inf
from typing import Any

from agent.common.backoff import back_off
from agent.host.pools.libvirt import StoragePool
from agent.monitors.base import DiscoveryListener, Monitor, MonitorConnection
from agent.monitors.libvirt.client_library import LibraryMissingError, load_library
from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.domain_registry import DomainRegistry, RunningDomain
from agent.monitors.libvirt.event_connection import EventConnection, Message
from agent.monitors.libvirt.executors import LibvirtDaemon
from agent.monitors.libvirt.lifecycle import LifecycleEvent
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.monitors.libvirt.storage_pools import list_storage_pools
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
"""Interval between two reads of libvirt's list of running domains."""
RESPONSE_SECONDS = 5.0
"""Timeout of calls for which libvirtd does not need QEMU. A libvirtd that exceeds it counts as hung."""
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 10.0
"""Maximum wait between two attempts to connect to libvirtd."""

READ_ONLY_NOTE = "read-only: of QEMU's events only STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"


class DaemonState(Enum):
    """State of libvirtd at the discoverer's last call."""

    CONNECTING = auto()
    """No attempt to connect has finished yet."""
    REACHABLE = auto()
    HUNG = auto()
    """libvirtd accepts connections but does not answer in time."""
    LOST = auto()
    """libvirtd refuses connections, or the connection ended."""
    DENIED = auto()
    """libvirtd does not let the agent's user connect."""

    def after_failure(self, error: QmpError, *, connected: bool) -> "DaemonState":
        """Return the state after a failure.

        Args:
            error: the cause.
            connected: whether an established connection ended; if not, an attempt to connect failed.
        """
        if connected:
            return DaemonState.LOST
        if isinstance(error, DeniedError):
            return DaemonState.DENIED
        # An attempt to connect to a hung libvirtd fails when keepalive ends the connection.
        return self if self is DaemonState.HUNG else DaemonState.LOST


_ERROR_TYPES: Mapping[DaemonState, type[QmpError]] = {
    DaemonState.CONNECTING: TransportLostError,
    DaemonState.HUNG: StalledError,
    DaemonState.LOST: TransportLostError,
    DaemonState.DENIED: DeniedError,
}
"""The exception that opening a domain raises in each state. In the state REACHABLE a domain can be opened."""


class LibvirtDiscoverer:
    """Finds the running domains of the libvirtd at a URI such as `qemu:///system`."""

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool = False,
        passthrough: bool = False,
        max_retry_seconds: float = MAX_RETRY_SECONDS,
        retry_delay: Callable[[int, float, float], float] = back_off,
    ) -> None:
        """Create a discoverer.

        Args:
            uri: libvirt's URI of the daemon.
            read_only: use only read-only connections.
            passthrough: send commands to QEMU itself, which taints the domains.
            max_retry_seconds: maximum wait between two attempts to connect. A connection that lasts longer than this resets the
                number of failed attempts.
            retry_delay: returns the seconds to wait, as `back_off` does.
        """
        self.uri = uri
        self._max_retry_seconds = max_retry_seconds
        self._retry_delay = retry_delay
        self._read_only = read_only
        self._passthrough = passthrough
        key = ("libvirt", uri, read_only, passthrough)
        self._status_source = Monitor(uri, key, self._refuse_to_open)
        self.domains = DomainRegistry(uri, key, self._require_daemon)
        self._daemon: LibvirtDaemon | None = None
        self._state = DaemonState.CONNECTING
        self._reason = f"{uri} was not reached yet"
        self._reported: object = None
        self._list_outdated = asyncio.Event()

    def __repr__(self) -> str:
        options = [name for name, on in (("read-only", self._read_only), ("passthrough", self._passthrough)) if on]
        return " ".join(("libvirt", self.uri, *options))

    async def run(self, listener: DiscoveryListener) -> None:
        """Report domains to `listener` until cancelled."""
        try:
            api, qemu = load_library()
        except LibraryMissingError as error:
            self._report_status(listener, DeniedError(str(error)))
            await asyncio.Event().wait()
            return
        pool, attempt = ConnectionPool(api, self.uri), 0
        while True:
            self._list_outdated.clear()
            events, connected_at = EventConnection(api, qemu, self._on_message), inf
            try:
                self._daemon = await self._connect(events, pool, listener)
                self._state, connected_at = DaemonState.REACHABLE, time.monotonic()
                await self._list_domains_until_disconnect(events, self._daemon, listener)
            except QmpError as error:
                self._handle_connection_failure(error)
                self._report_status(listener, error)
            except BaseException:
                self._handle_connection_failure(TransportLostError("the agent stops"))
                raise
            finally:
                events.close()
            attempt = 0 if time.monotonic() - connected_at > self._max_retry_seconds else attempt + 1
            await asyncio.sleep(self._retry_delay(attempt, FIRST_RETRY_SECONDS, self._max_retry_seconds))

    async def storage_pools(self) -> list[StoragePool]:
        """Return libvirtd's active storage pools. A read-only connection is enough.

        Raises:
            QmpError: libvirtd cannot be reached, or has no storage pools.
        """
        daemon = self._require_daemon()
        return await daemon.pool.run(lambda connection: list_storage_pools(daemon.api, connection.handle()))

    def refresh(self) -> None:
        """Read the list of running domains again, without waiting for the interval."""
        self._list_outdated.set()

    async def _connect(
        self, events: EventConnection, pool: ConnectionPool, listener: DiscoveryListener
    ) -> LibvirtDaemon:
        """Connect, and report libvirtd as hung if it does not answer in time. There is no deadline; keepalive ends the attempt."""
        opening = asyncio.ensure_future(events.open(self.uri, read_only=self._read_only))
        try:
            if not (await asyncio.wait({opening}, timeout=RESPONSE_SECONDS))[0]:
                self._on_hung(listener)
            read_only = await opening
        finally:
            opening.cancel()
        pool.read_only = read_only
        stats = StatsBatcher(events.api, pool)
        passthrough = self._passthrough and not read_only
        return LibvirtDaemon(events.api, events.qemu, pool, stats, read_only, passthrough)

    async def _list_domains_until_disconnect(
        self, events: EventConnection, daemon: LibvirtDaemon, listener: DiscoveryListener
    ) -> None:
        """Read the list of domains at an interval and after each lifecycle event, until the connection ends.

        Raises:
            TransportLostError: the connection ended.
        """
        while True:
            self._list_outdated.clear()
            listing = asyncio.ensure_future(daemon.pool.run(lambda connection: _list_running(connection.handle())))
            ended = asyncio.ensure_future(events.ended.wait())
            try:
                if not (
                    await asyncio.wait({listing, ended}, timeout=RESPONSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                )[0]:
                    self._on_hung(listener)
                    await asyncio.wait({listing, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    overflow = (
                        f": the queue of events was full, {events.dropped} events dropped" if events.dropped else ""
                    )
                    raise TransportLostError(f"the connection to {self.uri} ended{overflow}")
                self._state = DaemonState.REACHABLE
                try:
                    self.domains.update(listing.result(), listener)
                except (CommandError, UnreadableReplyError) as error:
                    self._report_status(listener, error)  # the connections to the domains still work
                else:
                    self._report_status(listener, None, READ_ONLY_NOTE if daemon.read_only else "")
                changed = asyncio.ensure_future(self._list_outdated.wait())
                await asyncio.wait({changed, ended}, timeout=LIST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            finally:
                listing.cancel()
                ended.cancel()

    def _on_hung(self, listener: DiscoveryListener) -> None:
        self._state, self._reason = DaemonState.HUNG, f"libvirtd at {self.uri} does not answer"
        self._report_status(listener, StalledError(self._reason))

    def _report_status(self, listener: DiscoveryListener, error: QmpError | None, note: str = "") -> None:
        status = (type(error), str(error), note)
        if status != self._reported:
            self._reported = status
            listener.on_status(self._status_source, error, note)

    def _handle_connection_failure(self, error: QmpError) -> None:
        """Enter the state after a failure, and end the connections to the domains, because their state is unknown now."""
        state = self._state.after_failure(error, connected=self._daemon is not None)
        if state is not DaemonState.HUNG:
            self._reason = str(error)
        self._state = state
        if self._daemon is not None:
            self._daemon.pool.retire()
            self._daemon = None
            self.domains.end_all_connections(TransportLostError(str(error)))

    def _require_daemon(self) -> LibvirtDaemon:
        """Return the libvirtd.

        Raises:
            QmpError: the agent is not connected to it, or it hangs.
        """
        if self._state is not DaemonState.REACHABLE:
            raise _ERROR_TYPES[self._state](self._reason)
        assert self._daemon is not None, "a reachable libvirtd is connected"
        return self._daemon

    def _on_message(self, message: Message) -> None:
        self.domains.forward_event(message)
        if isinstance(message, LifecycleEvent):
            self.refresh()

    async def _refuse_to_open(self, *_: Any, **__: Any) -> MonitorConnection:
        raise NotConnectedError(f"{self.uri} is not a VM")


def _list_running(handle: Any) -> list[RunningDomain]:
    """Return the running domains; `handle` is libvirt's connection object. The call blocks."""
    domains = handle.listAllDomains(1)  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
    return [RunningDomain(domain.ID(), domain.UUIDString(), domain.name()) for domain in domains if domain.ID() != -1]
