"""The running domains of one libvirtd, with their monitors and the agent's connections."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from agent.monitors.base import DiscoveryListener, EventCallback, Monitor, MonitorConnection, MonitorPriority
from agent.monitors.libvirt.domain_connection import DomainConnection
from agent.monitors.libvirt.event_connection import DomainQemuEvent, LibvirtEvent
from agent.monitors.libvirt.executors import ConnectedLibvirtd
from agent.monitors.libvirt.guest_info import MAX_GUEST_CALLS, open_guest_channel
from agent.monitors.libvirt.lifecycle import QMP_EVENT_BY_LIFECYCLE_TYPE, STOPPED, LibvirtMigrationPhase, LifecycleEvent
from agent.qga.channel import GuestChannel
from agent.qga.errors import GuestChannelError
from agent.qmp.commands import AllowList
from agent.qmp.errors import MigratedAwayError, NotConnectedError, QmpError
from agent.qmp.protocol import Event

FindPid = Callable[[str, str], int | None]
"""Returns the process ID of a domain's QEMU on this host, by the domain's UUID and name; None if unknown. The call may block."""

FIND_PID_SECONDS = 3.0
"""Timeout in seconds of the search for a domain's QEMU. Reading a hung process's files in /proc may hang, too."""


class RunningDomain(NamedTuple):
    """An entry of libvirt's list of running domains. A domain gets a new ID at each start."""

    id: int
    uuid: str
    name: str


class DomainRegistry:
    """Reports domains as monitors, opens connections to domains, and passes libvirt's events to these connections."""

    def __init__(
        self, name: str, key: tuple[object, ...], require_daemon: Callable[[], ConnectedLibvirtd], find_pid: FindPid
    ) -> None:
        """Create a registry without domains.

        Args:
            name: the libvirtd's name, such as its URI; the first part of each domain's `Monitor.name`.
            key: the first part of each domain's `Monitor.key`.
            require_daemon: returns the libvirtd; raises QmpError if the agent is not connected to libvirtd.
            find_pid: finds the process ID of a domain's QEMU.
        """
        self._name = name
        self._key = key
        self._find_pid = find_pid
        self._require_daemon = require_daemon
        self._monitors: dict[tuple[object, ...], Monitor] = {}
        self._connections: dict[str, DomainConnection] = {}
        self._migration_phases: dict[str, LibvirtMigrationPhase] = {}
        self._guest_calls = asyncio.Semaphore(MAX_GUEST_CALLS)
        self._missing_in_last_list: set[str] = set()
        """UUIDs of domains that have a connection but are missing in the last list."""

    def update_domains(self, running: Iterable[RunningDomain], listener: DiscoveryListener) -> None:
        """Report new and ended domains to `listener`; `running` is libvirt's list of running domains."""
        current = {(*self._key, domain.id, domain.uuid): domain for domain in running}
        for key in self._monitors.keys() - current.keys():
            listener.on_monitor_removed(self._monitors.pop(key))
        missing = self._connections.keys() - {domain.uuid for domain in current.values()}
        for uuid in missing & self._missing_in_last_list:
            self._connections.pop(uuid).end(NotConnectedError("the domain ended"))
        # The connections of missing domains end at the next list, so that libvirt's event with the reason can arrive first.
        self._missing_in_last_list = missing
        for key in current.keys() - self._monitors.keys():
            _, uuid, name = current[key]
            open_ = partial(self.open_connection, uuid, name)
            open_guest_channel = partial(self.open_guest_channel, uuid)
            monitor = self._monitors[key] = Monitor(
                f"{self._name}#{name}", key, open_, MonitorPriority.MANAGER, open_guest_channel=open_guest_channel
            )
            listener.on_monitor_added(monitor)

    async def open_connection(
        self,
        uuid: str,
        name: str,
        allow: AllowList,
        on_event: EventCallback,
        *,
        deadline: float,
    ) -> MonitorConnection:
        """Return a connection to a domain.

        Raises:
            QmpError: the agent is not connected to libvirtd, or libvirtd hangs.
        """
        pid: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(deadline, FIND_PID_SECONDS)):
                pid = await asyncio.to_thread(self._find_pid, uuid, name)
        connection = DomainConnection(
            self._require_daemon(),
            uuid,
            name,
            allow,
            on_event,
            pid,
            partial(self._migration_phase, uuid),
        )
        self._connections[uuid] = connection
        connection.ended_future.add_done_callback(lambda _: self._forget_connection(uuid, connection))
        await connection.read_version(deadline)
        return connection

    async def open_guest_channel(self, uuid: str) -> GuestChannel:
        """Return a connection to a domain's guest agent.

        Raises:
            GuestChannelError: the agent is not connected to libvirtd, or the connection is read-only.
        """
        try:
            return open_guest_channel(self._require_daemon(), uuid, self._guest_calls)
        except QmpError as error:
            raise GuestChannelError(str(error)) from error

    def remove_all_domains(self, listener: DiscoveryListener) -> None:
        """Report all domains as removed, because their libvirtd has ended permanently."""
        self.end_all_connections(NotConnectedError("libvirtd has ended"))
        self.update_domains((), listener)

    def end_all_connections(self, cause: QmpError) -> None:
        """End the connections to all domains. Keep the domains' monitors, so that the agent reconnects to the domains."""
        self._migration_phases.clear()
        for connection in list(self._connections.values()):
            connection.end(cause)
        self._connections.clear()

    def forward_event(self, event: LibvirtEvent) -> None:
        """Forward an event of QEMU or a lifecycle event from libvirtd to the connection of its domain."""
        match event:
            case DomainQemuEvent(uuid, qemu_event):
                if (connection := self._connections.get(uuid)) is not None:
                    connection.on_event(qemu_event)
            case LifecycleEvent():
                self._on_lifecycle(event)

    def _on_lifecycle(self, event: LifecycleEvent) -> None:
        phase = self._migration_phase(event.uuid).after(event)
        if phase is LibvirtMigrationPhase.NONE:
            self._migration_phases.pop(event.uuid, None)
        else:
            self._migration_phases[event.uuid] = phase
        connection = self._connections.get(event.uuid)
        if connection is None:
            return
        if not connection.receives_events and event.type in QMP_EVENT_BY_LIFECYCLE_TYPE:
            connection.on_event(Event(QMP_EVENT_BY_LIFECYCLE_TYPE[event.type], {}, None))
        if event.type == STOPPED:
            error = MigratedAwayError if event.is_migrated_or_saved else NotConnectedError
            self._forget_connection(event.uuid, connection)
            connection.end(error(event.stop_reason))

    def _migration_phase(self, uuid: str) -> LibvirtMigrationPhase:
        return self._migration_phases.get(uuid, LibvirtMigrationPhase.NONE)

    def _forget_connection(self, uuid: str, connection: DomainConnection) -> None:
        if self._connections.get(uuid) is connection:
            del self._connections[uuid]
