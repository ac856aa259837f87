"""The running domains of one libvirtd: their monitors and the connections to them."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.monitors.base import DiscoveryListener, EventCallback, Monitor, MonitorConnection, MonitorPriority
from agent.monitors.libvirt.domain import DomainConnection, pid_of
from agent.monitors.libvirt.event_connection import DomainEvent, Message
from agent.monitors.libvirt.executors import LibvirtHost
from agent.monitors.libvirt.lifecycle import QMP_EVENTS, STOPPED, DomainMigrationPhase, LifecycleEvent
from agent.qmp.commands import AllowList
from agent.qmp.errors import MigratedAwayError, NotConnectedError, QmpError
from agent.qmp.protocol import Event

PID_FILES = Path("/run/libvirt/qemu")


class RunningDomain(NamedTuple):
    """An entry of libvirt's list of running domains. A domain gets a new ID at each start."""

    id: int
    uuid: str
    name: str


class DomainRegistry:
    """Reports domains as monitors, opens connections to them, and routes libvirt's messages to the connections."""

    def __init__(self, uri: str, key: tuple[object, ...], require_host: Callable[[], LibvirtHost]) -> None:
        """Create a registry without domains.

        Args:
            uri: libvirt's URI of the daemon.
            key: first part of the key of each domain's monitor.
            require_host: returns the connected libvirtd, or raises QmpError if there is none.
        """
        self._uri = uri
        self._key = key
        self._require_host = require_host
        self._monitors: dict[tuple[object, ...], Monitor] = {}
        self._connections: dict[str, DomainConnection] = {}
        self._phases: dict[str, DomainMigrationPhase] = {}
        self._missing: set[str] = set()
        """Domains that the last list did not contain, but that still have a connection."""

    def update(self, running: Iterable[RunningDomain], listener: DiscoveryListener) -> None:
        """Report the difference between the running domains and the last list to `listener`."""
        current = {(*self._key, domain.id, domain.uuid): domain for domain in running}
        for key in self._monitors.keys() - current.keys():
            listener.on_monitor_removed(self._monitors.pop(key))
        missing = self._connections.keys() - {domain.uuid for domain in current.values()}
        for uuid in missing & self._missing:
            self._connections.pop(uuid).end(NotConnectedError("the domain ended"))
        self._missing = missing  # a lifecycle event with the reason may still arrive before the next list
        for key in current.keys() - self._monitors.keys():
            _, uuid, name = current[key]
            open_ = partial(self.open, uuid, name)
            monitor = self._monitors[key] = Monitor(f"{self._uri}#{name}", key, open_, MonitorPriority.MANAGER)
            listener.on_monitor_added(monitor)

    async def open(
        self,
        uuid: str,
        name: str,
        allow: AllowList,
        on_event: EventCallback,
        *,
        deadline: float,  # noqa: ARG002 - ConnectionOpener's signature
    ) -> MonitorConnection:
        """Return a connection to a domain.

        Raises:
            QmpError: libvirtd cannot be reached now.
        """
        connection = DomainConnection(
            self._require_host(), uuid, name, allow, on_event, self._pid(name), partial(self._phase, uuid)
        )
        self._connections[uuid] = connection
        connection.ended.add_done_callback(lambda _: self._forget(uuid, connection))
        return connection

    def end_all(self, cause: QmpError) -> None:
        """End all connections; the monitors stay."""
        self._phases.clear()
        for connection in list(self._connections.values()):
            connection.end(cause)
        self._connections.clear()

    def on_message(self, message: Message) -> None:
        """Route a message from libvirt."""
        match message:
            case DomainEvent(uuid, event):
                if (connection := self._connections.get(uuid)) is not None:
                    connection.on_event(event)
            case LifecycleEvent():
                self._on_lifecycle(message)

    def _on_lifecycle(self, event: LifecycleEvent) -> None:
        phase = self._phase(event.uuid).after(event)
        if phase is DomainMigrationPhase.NONE:
            self._phases.pop(event.uuid, None)
        else:
            self._phases[event.uuid] = phase
        connection = self._connections.get(event.uuid)
        if connection is None:
            return
        if not connection.receives_events and event.type in QMP_EVENTS:
            connection.on_event(Event(QMP_EVENTS[event.type], {}, None))
        if event.type == STOPPED:
            error = MigratedAwayError if event.migrated_away else NotConnectedError
            self._forget(event.uuid, connection)
            connection.end(error(event.stop_reason))

    def _phase(self, uuid: str) -> DomainMigrationPhase:
        return self._phases.get(uuid, DomainMigrationPhase.NONE)

    def _forget(self, uuid: str, connection: DomainConnection) -> None:
        if self._connections.get(uuid) is connection:
            del self._connections[uuid]

    def _pid(self, name: str) -> int | None:
        """Return the process ID of a domain on this host."""
        return pid_of(PID_FILES, name) if re.match(r"qemu(\+unix)?:///system", self._uri) else None
