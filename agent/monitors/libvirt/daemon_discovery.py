"""Discovery of all libvirt daemons of a host: system and session daemons, on the host and in containers such as KubeVirt's pods.

Each daemon has its own `LibvirtDiscoverer`, so a daemon that hangs affects no other daemon.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from agent.host.libvirt_daemons import (
    MAX_DAEMONS,
    LibvirtDaemon,
    LibvirtDaemonScanner,
    LibvirtDaemonScanResult,
    QemuPidsByUuid,
)
from agent.host.pools.libvirt import LibvirtStoragePool
from agent.model.record import sanitize
from agent.monitors.base import DiscoveryListener, Monitor, MonitorConnection
from agent.monitors.libvirt.connection_pool import HOST_LIMITS, SINGLE_DOMAIN_LIMITS
from agent.monitors.libvirt.discovery import LibvirtDiscoverer
from agent.qmp.errors import ConnectPermissionError, NotConnectedError, QmpError, StalledError

_log = logging.getLogger(__name__)

DAEMON_SCAN_INTERVAL_SECONDS = 0.5
"""Seconds between two scans for daemons."""
SCAN_TIMEOUT_SECONDS = 10.0
"""Seconds after which a scan counts as hung. A container's file system may hang."""
GRACE_SECONDS = 10.0
"""Seconds that the agent waits for an ended daemon to start again, before the agent removes the daemon's domains.

If no QEMU runs in the daemon's PID namespace, the agent removes the domains at once.
"""
RESTART_SECONDS = 10.0
"""Seconds until the discovery of a daemon restarts after an internal error."""
HOST_NAME = "host"
"""The name that stands for the host itself in the config key `containers`."""
MAX_NAMED_DAEMONS = 3
"""Maximum number of daemons whose names and errors are in the status."""

DaemonKey = tuple[int | None, str]
"""Identity of a daemon across restarts, see `LibvirtDaemon.key`."""


@dataclass(slots=True)
class _Daemon:
    """A daemon that the agent uses.

    Attributes:
        process: the daemon's process, as of the last scan that found the daemon.
        discoverer: finds the daemon's domains.
        task: runs the discoverer.
        has_status: whether the discoverer has reported a status.
        error: why discovery does not work; None if discovery works.
        limitation: what a working discovery cannot do, as a text for the operator; may be empty.
        missing_since: monotonic time of the first scan without the daemon; None if the last scan found the daemon.
    """

    process: LibvirtDaemon
    discoverer: LibvirtDiscoverer
    task: asyncio.Task[None] | None = None
    has_status: bool = False
    error: QmpError | None = None
    limitation: str = ""
    missing_since: float | None = field(default=None)


class _DaemonListener:
    """Forwards one daemon's domains to the listener of all daemons. Stores the daemon's status for the combined status of all daemons."""

    def __init__(self, daemons: "LibvirtDaemonDiscoverer", daemon: _Daemon, listener: DiscoveryListener) -> None:
        self._daemons = daemons
        self._daemon = daemon
        self._listener = listener

    def on_monitor_added(self, monitor: Monitor) -> None:
        self._listener.on_monitor_added(monitor)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        self._listener.on_monitor_removed(monitor)

    def on_discovery_status(self, _source: Monitor, error: QmpError | None, limitation: str = "") -> None:
        self._daemon.has_status, self._daemon.error, self._daemon.limitation = True, error, limitation
        self._daemons.report_status(self._listener)

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        self._listener.on_agent_refused_incoming_connection(address, reason)


class LibvirtDaemonDiscoverer:
    """Finds the daemons of libvirt on this host, and their running domains."""

    def __init__(
        self,
        containers: Sequence[str] = ("*",),
        *,
        read_only: bool = False,
        passthrough: bool = False,
        scanner: LibvirtDaemonScanner | None = None,
        scan_seconds: float = DAEMON_SCAN_INTERVAL_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Create a discoverer.

        Args:
            containers: patterns of the names of containers whose daemons are used; the host's name is `host`.
            read_only: use only read-only connections.
            passthrough: send commands to QEMU itself, which taints the domains.
            scanner: finds the daemons; by default, in /proc.
            scan_seconds: seconds between two scans.
            grace_seconds: seconds that the agent waits for an ended daemon to start again.
        """
        self._options = (*containers, *(["read-only"] if read_only else []), *(["passthrough"] if passthrough else []))
        self._read_only = read_only
        self._passthrough = passthrough
        self._containers = tuple(containers)
        self._scanner = scanner or LibvirtDaemonScanner()
        self._scan_seconds = scan_seconds
        self._grace_seconds = grace_seconds
        self._last_scan = LibvirtDaemonScanResult()
        self._qemu_index = QemuPidsByUuid()
        self._daemons: dict[DaemonKey, _Daemon] = {}
        self._status_source = Monitor("libvirt auto", ("libvirt", "auto", *self._options), self._refuse_to_open)
        self._reported_status: object = None

    def __repr__(self) -> str:
        return " ".join(("libvirt auto", *self._options))

    async def run(self, listener: DiscoveryListener) -> None:
        """Report the domains of all daemons to `listener` until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                if await self._scan_for_daemons(listener):
                    self._update_daemons(listener, tasks)
                    self.report_status(listener)
                await asyncio.sleep(self._scan_seconds)

    async def storage_pools(self) -> list[LibvirtStoragePool]:
        """Return the active storage pools of the daemons of the host itself. Daemons in containers have no storage pools.

        Raises:
            QmpError: a daemon failed to list its pools, and no other daemon has a pool.
        """
        pools: list[LibvirtStoragePool] = []
        errors: list[QmpError] = []
        for daemon in list(self._daemons.values()):
            if not daemon.process.container:
                try:
                    pools += await daemon.discoverer.storage_pools()
                except QmpError as error:
                    errors.append(error)
        if errors and not pools:
            raise errors[0]
        return pools

    def report_status(self, listener: DiscoveryListener) -> None:
        """Report the combined status of all daemons if the status has changed. Report nothing until each daemon has reported a status."""
        if not all(daemon.has_status for daemon in self._daemons.values()):
            return
        error, limitation = self._summarize_status()
        status = (type(error), str(error), limitation)
        if status != self._reported_status:
            self._reported_status = status
            listener.on_discovery_status(self._status_source, error, limitation)

    def _summarize_status(self) -> tuple[QmpError | None, str]:
        failed = {daemon.discoverer.name: daemon.error for daemon in self._daemons.values() if daemon.error is not None}
        parts = [] if self._daemons else ["no libvirt daemon runs on this host"]
        if failed:
            names = ", ".join(
                f"{sanitize(name)}: {error}" for name, error in sorted(failed.items())[:MAX_NAMED_DAEMONS]
            )
            parts.append(f"{len(failed)} of {len(self._daemons)} libvirt daemons cannot be reached: {names}")
        if self._last_scan.unreadable_daemons:
            parts.append(
                f"libvirt daemons in containers that cannot be inspected: {self._last_scan.unreadable_daemons} "
                "(the agent needs CAP_SYS_PTRACE)"
            )
        if self._last_scan.ignored_daemons:
            parts.append(f"libvirt daemons ignored: {self._last_scan.ignored_daemons} (the limit is {MAX_DAEMONS})")
        if read_only := sum(bool(daemon.limitation) for daemon in self._daemons.values()):
            parts.append(f"read-only libvirt daemons: {read_only}")
        text = "; ".join(parts)
        if failed and len(failed) == len(self._daemons):
            return type(next(iter(failed.values())))(text), ""
        if self._last_scan.unreadable_daemons and not self._daemons:
            return ConnectPermissionError(text), ""
        return None, text

    async def _scan_for_daemons(self, listener: DiscoveryListener) -> bool:
        """Scan for daemons in a thread. Return False if the scan failed."""
        scanning = asyncio.ensure_future(asyncio.to_thread(self._scanner.scan_proc))
        try:
            if not (await asyncio.wait({scanning}, timeout=SCAN_TIMEOUT_SECONDS))[0]:
                self._reported_status = None
                listener.on_discovery_status(
                    self._status_source, StalledError("the scan of /proc for libvirt hangs"), ""
                )
            self._last_scan = await scanning
        except OSError as error:
            self._reported_status = None
            listener.on_discovery_status(
                self._status_source, ConnectPermissionError(f"/proc cannot be read: {error.strerror}"), ""
            )
            return False
        return True

    def _update_daemons(self, listener: DiscoveryListener, tasks: asyncio.TaskGroup) -> None:
        now = time.monotonic()
        current = {key: process for key, process in self._last_scan.daemons.items() if self._is_selected(process)}
        for key, process in current.items():
            daemon = self._daemons.get(key)
            if daemon is None:
                daemon = self._daemons[key] = _Daemon(process, self._make_discoverer(process))
                daemon.task = tasks.create_task(self._run_daemon(daemon, listener), name=repr(daemon.discoverer))
            daemon.process, daemon.missing_since = process, None
            daemon.discoverer.uri = process.connection_uri
        for key in self._daemons.keys() - current.keys():
            daemon = self._daemons[key]
            daemon.missing_since = daemon.missing_since or now
            if now - daemon.missing_since >= self._grace_seconds or not self._has_qemus(daemon.process):
                del self._daemons[key]
                if daemon.task is not None:
                    daemon.task.cancel()
                daemon.discoverer.domains.remove_all_domains(listener)

    def _is_selected(self, process: LibvirtDaemon) -> bool:
        return any(fnmatchcase(process.container or HOST_NAME, pattern) for pattern in self._containers)

    def _make_discoverer(self, process: LibvirtDaemon) -> LibvirtDiscoverer:
        name = f"{process.container or 'libvirt'}:{process.socket}"
        if any(daemon.discoverer.name == name for daemon in self._daemons.values()):
            name = f"{name}@{process.mount_namespace}"
        return LibvirtDiscoverer(
            process.connection_uri,
            read_only=self._read_only,
            passthrough=self._passthrough,
            name=name,
            container=process.container,
            find_pid=lambda uuid, _: self._find_pid(process.pid_namespace, uuid),
            limits=SINGLE_DOMAIN_LIMITS if process.container else HOST_LIMITS,
        )

    def _find_pid(self, pid_namespace: int | None, uuid: str) -> int | None:
        """Return the process ID of a domain's QEMU; None if unknown. Scan again if the last scan missed the process. The call may block."""
        return self._last_scan.qemus.get((pid_namespace, uuid)) or self._qemu_index.pid_of_uuid(uuid)

    def _has_qemus(self, process: LibvirtDaemon) -> bool:
        """Return whether a QEMU runs in a daemon's pid namespace. The daemon itself may have ended."""
        return any(namespace == process.pid_namespace for namespace, _ in self._last_scan.qemus)

    async def _run_daemon(self, daemon: _Daemon, listener: DiscoveryListener) -> None:
        while True:
            try:
                await daemon.discoverer.run(_DaemonListener(self, daemon, listener))
            except Exception:  # noqa: BLE001 - a bug that one daemon triggers must not end the discovery of others
                _log.exception("%s: internal error; the agent reconnects", sanitize(daemon.discoverer.name))
            await asyncio.sleep(RESTART_SECONDS)

    async def _refuse_to_open(self, *_: object, **__: object) -> MonitorConnection:
        raise NotConnectedError("libvirt auto is not a VM")
