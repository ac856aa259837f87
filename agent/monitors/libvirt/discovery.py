"""Discovery of the domains of one libvirtd. The agent connects to each running domain as to a QMP monitor.

Discovery reads libvirt's list of running domains every 30 s. libvirt's lifecycle events trigger a read at once.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from agent.common.backoff import retry_delay
from agent.host.libvirt_daemons import QemuPidsByUuid
from agent.host.pools.libvirt import LibvirtStoragePool
from agent.monitors.base import DiscoveryListener, Monitor, MonitorConnection
from agent.monitors.libvirt.connection_pool import HOST_LIMITS, CallLimits, ConnectionPool
from agent.monitors.libvirt.domain_connection import read_pid_file
from agent.monitors.libvirt.domain_registry import DomainRegistry, FindPid, RunningDomain
from agent.monitors.libvirt.event_connection import EventConnection, LibvirtEvent
from agent.monitors.libvirt.executors import ConnectedLibvirtd
from agent.monitors.libvirt.libvirt_python import LibraryMissingError, load_library
from agent.monitors.libvirt.lifecycle import LifecycleEvent
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.monitors.libvirt.storage_pools import list_storage_pools
from agent.qmp.errors import (
    CommandError,
    ConnectPermissionError,
    NotConnectedError,
    QmpError,
    StalledError,
    TransportLostError,
    UnreadableReplyError,
)

RELIST_SECONDS = 30.0
"""Seconds between two reads of libvirt's list of running domains."""
RESPONSE_SECONDS = 5.0
"""Timeout in seconds of calls that libvirtd answers without QEMU. A libvirtd that exceeds this timeout counts as hung."""
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 10.0
"""Maximum wait in seconds between two attempts to connect to libvirtd."""
PID_FILE_DIRECTORY = Path("/run/libvirt/qemu")
"""Directory of the pid files, NAME.pid for each domain. The system libvirtd of this host writes these files."""

READ_ONLY_NOTE = "read-only: only the events STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"


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
    """libvirtd does not permit the agent's user to connect."""

    def after_failure(self, error: QmpError, *, connected: bool) -> "DaemonState":
        """Return the state after a failure.

        Args:
            error: the cause.
            connected: True if an established connection ended, False if an attempt to connect failed.
        """
        if connected:
            return DaemonState.LOST
        if isinstance(error, ConnectPermissionError):
            return DaemonState.DENIED
        # An attempt to connect to a hung libvirtd fails when keepalive ends the connection.
        return self if self is DaemonState.HUNG else DaemonState.LOST


_ERROR_TYPES: Mapping[DaemonState, type[QmpError]] = {
    DaemonState.CONNECTING: TransportLostError,
    DaemonState.HUNG: StalledError,
    DaemonState.LOST: TransportLostError,
    DaemonState.DENIED: ConnectPermissionError,
}
"""Type of the error for a call that needs libvirtd, by libvirtd's state. The state REACHABLE has no error."""


class LibvirtDiscoverer:
    """Finds the running domains of the libvirtd at a URI such as `qemu:///system`."""

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool = False,
        passthrough: bool = False,
        name: str = "",
        container: str = "",
        find_pid: FindPid | None = None,
        limits: CallLimits = HOST_LIMITS,
        max_retry_seconds: float = MAX_RETRY_SECONDS,
        delay_before_retry: Callable[[int, float, float], float] = retry_delay,
    ) -> None:
        """Create a discoverer.

        Args:
            uri: libvirt's URI of the daemon.
            read_only: use only read-only connections.
            passthrough: send commands to QEMU itself, which taints the domains.
            name: the libvirtd's name, which stays the same if the URI changes; by default, the URI.
            container: name of the container that the libvirtd runs in; empty on the host itself.
            find_pid: finds the process ID of a domain's QEMU; by default, in the pid files of the system libvirtd, or by the domain's UUID.
            limits: limits of the calls to the libvirtd.
            max_retry_seconds: maximum wait between two attempts to connect, in seconds. A connection that lasts longer resets the
                number of failed attempts.
            delay_before_retry: returns the seconds to wait, like `agent.common.backoff.retry_delay`.
        """
        self.uri = uri
        """libvirt's URI of the daemon. A new URI applies to the next attempt to connect."""
        self.name = name or uri
        self._max_retry_seconds = max_retry_seconds
        self._retry_delay = delay_before_retry
        self._read_only = read_only
        self._passthrough = passthrough
        self._container = container
        self._limits = limits
        key = ("libvirt", self.name, read_only, passthrough)
        self._status_source = Monitor(self.name, key, self._refuse_to_open)
        self.domains = DomainRegistry(
            self.name, key, self._require_daemon, find_pid or partial(_pid_of_domain, uri, QemuPidsByUuid())
        )
        self._daemon: ConnectedLibvirtd | None = None
        self._state = DaemonState.CONNECTING
        self._unreachable_reason = f"{uri} has not been reached yet"
        self._reported_status: object = None
        self._list_outdated = asyncio.Event()

    def __repr__(self) -> str:
        options = [name for name, on in (("read-only", self._read_only), ("passthrough", self._passthrough)) if on]
        return " ".join(("libvirt", self.name, *options))

    async def run(self, listener: DiscoveryListener) -> None:
        """Report domains to `listener` until cancelled."""
        try:
            api, qemu = load_library()
        except LibraryMissingError as error:
            self._report_status(listener, ConnectPermissionError(str(error)))
            await asyncio.Event().wait()
            return
        pool, attempt = ConnectionPool(api, self.uri, limits=self._limits), 0
        while True:
            self._list_outdated.clear()
            pool.uri = self.uri
            events, connected_at = EventConnection(api, qemu, self._on_libvirt_event), inf
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

    async def storage_pools(self) -> list[LibvirtStoragePool]:
        """Return libvirtd's active storage pools. A read-only connection is enough.

        Raises:
            QmpError: libvirtd cannot be reached, or does not support storage pools.
        """
        daemon = self._require_daemon()
        return await daemon.pool.call_with_connection(
            lambda connection: list_storage_pools(daemon.api, connection.vir_connect())
        )

    def refresh(self) -> None:
        """Make discovery read libvirt's list of running domains now, without waiting for the interval."""
        self._list_outdated.set()

    async def _connect(
        self, events: EventConnection, pool: ConnectionPool, listener: DiscoveryListener
    ) -> ConnectedLibvirtd:
        """Connect to libvirtd. If libvirtd does not answer in time, report that libvirtd hangs.

        The attempt continues until libvirtd answers, or until the keepalive timeout ends the attempt.
        """
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
        return ConnectedLibvirtd(events.api, events.qemu, pool, stats, read_only, passthrough, self._container)

    async def _list_domains_until_disconnect(
        self, events: EventConnection, daemon: ConnectedLibvirtd, listener: DiscoveryListener
    ) -> None:
        """Read the list of domains at an interval and after each lifecycle event, until the connection ends.

        Raises:
            TransportLostError: the connection ended.
        """
        while True:
            self._list_outdated.clear()
            listing = asyncio.ensure_future(
                daemon.pool.call_with_connection(lambda connection: _list_running_domains(connection.vir_connect()))
            )
            ended = asyncio.ensure_future(events.ended.wait())
            try:
                if not (
                    await asyncio.wait({listing, ended}, timeout=RESPONSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                )[0]:
                    self._on_hung(listener)
                    await asyncio.wait({listing, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    overflow = (
                        f": the queue of events was full, {events.dropped_events} events dropped"
                        if events.dropped_events
                        else ""
                    )
                    raise TransportLostError(f"the connection to {self.uri} ended{overflow}")
                self._state = DaemonState.REACHABLE
                try:
                    self.domains.update_domains(listing.result(), listener)
                except (CommandError, UnreadableReplyError) as error:
                    self._report_status(listener, error)  # the connections to the domains still work
                else:
                    self._report_status(listener, None, READ_ONLY_NOTE if daemon.read_only else "")
                changed = asyncio.ensure_future(self._list_outdated.wait())
                await asyncio.wait({changed, ended}, timeout=RELIST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            finally:
                listing.cancel()
                ended.cancel()

    def _on_hung(self, listener: DiscoveryListener) -> None:
        self._state, self._unreachable_reason = DaemonState.HUNG, f"libvirtd at {self.uri} does not answer"
        self._report_status(listener, StalledError(self._unreachable_reason))

    def _report_status(self, listener: DiscoveryListener, error: QmpError | None, limitation: str = "") -> None:
        status = (type(error), str(error), limitation)
        if status != self._reported_status:
            self._reported_status = status
            listener.on_discovery_status(self._status_source, error, limitation)

    def _handle_connection_failure(self, error: QmpError) -> None:
        """Set the state after a failure. End the connections to the domains, because the domains' events no longer arrive."""
        state = self._state.after_failure(error, connected=self._daemon is not None)
        if state is not DaemonState.HUNG:
            self._unreachable_reason = str(error)
        self._state = state
        if self._daemon is not None:
            self._daemon.pool.replace_connections()
            self._daemon = None
            self.domains.end_all_connections(TransportLostError(str(error)))

    def _require_daemon(self) -> ConnectedLibvirtd:
        """Return the connected libvirtd.

        Raises:
            QmpError: the agent is not connected to libvirtd, or libvirtd hangs.
        """
        if self._state is not DaemonState.REACHABLE:
            raise _ERROR_TYPES[self._state](self._unreachable_reason)
        assert self._daemon is not None, "a reachable libvirtd is connected"
        return self._daemon

    def _on_libvirt_event(self, event: LibvirtEvent) -> None:
        self.domains.forward_event(event)
        if isinstance(event, LifecycleEvent):
            self.refresh()

    async def _refuse_to_open(self, *_: Any, **__: Any) -> MonitorConnection:
        raise NotConnectedError(f"{self.uri} is not a VM")


def _pid_of_domain(uri: str, index: QemuPidsByUuid, uuid: str, name: str) -> int | None:
    """Return the process ID of a domain's QEMU; None if libvirtd is on another host or the ID is unknown. The call blocks.

    Only the system libvirtd's pid files are read. The pid files of another libvirtd may be in another mount namespace.
    Without a pid file, search /proc for the domain's UUID.
    """
    if not re.match(r"qemu(\+unix)?:///", uri):
        return None
    is_system = uri.partition("///")[2].startswith("system") and "socket=" not in uri
    return (read_pid_file(PID_FILE_DIRECTORY, name) if is_system else None) or index.pid_of_uuid(uuid)


def _list_running_domains(handle: Any) -> list[RunningDomain]:
    """Return the running domains; `handle` is libvirt's connection object. The call blocks."""
    domains = handle.listAllDomains(1)  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
    return [RunningDomain(domain.ID(), domain.UUIDString(), domain.name()) for domain in domains if domain.ID() != -1]
