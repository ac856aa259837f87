"""Interfaces between transports and sessions: monitors, connections to them, and discovery."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

from agent.common.config_types import ConfigSection
from agent.host.pools.libvirt import LibvirtStoragePool
from agent.qga.channel import OpenGuestChannel
from agent.qmp.client import CommandResult, Connect, QmpClient
from agent.qmp.commands import AllowList, Command, OptInQemuChange
from agent.qmp.errors import QmpError
from agent.qmp.protocol import Event, Greeting, SkippedQmpMessages


class MonitorConnection(Protocol):
    """A connection that executes QMP commands on one VM. `QmpClient` is the implementation over a QMP socket."""

    @property
    def greeting(self) -> Greeting | None:
        """QEMU's greeting; None until it has arrived."""

    @property
    def ended_future(self) -> asyncio.Future[QmpError]:
        """A future that completes when the connection ends; the result is the cause."""

    @property
    def peer_pid(self) -> int | None:
        """Process ID of the QEMU; None if unknown."""

    @property
    def can_probe(self) -> bool:
        """True if the connection supports out-of-band commands. The agent probes a stalled QEMU with an out-of-band command."""

    @property
    def receives_events(self) -> bool:
        """True if the agent receives every event while the connection is up."""

    @property
    def skipped_invalid_message_counts(self) -> SkippedQmpMessages:
        """Total numbers of messages that the agent skipped. A new object replaces the old object when a number grows."""

    async def execute(self, commands: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Execute commands within `deadline` seconds; raises what `QmpClient.execute` raises."""

    async def wait_idle(self) -> None:
        """Wait without a deadline until all replies have arrived."""

    async def probe_out_of_band(self, *, deadline: float) -> bool:
        """Return whether QEMU answers an out-of-band command within `deadline` seconds."""

    def close(self) -> None:
        """End the connection now."""

    def close_for_preferred_monitor(self) -> None:
        """End the connection now, because a monitor of better priority leads to the same VM."""


EventCallback = Callable[[Event], None]


class ConnectionOpener(Protocol):
    """Opens a connection to one monitor."""

    def __call__(self, allow: AllowList, on_event: EventCallback, *, deadline: float) -> Awaitable[MonitorConnection]:
        """Connect within `deadline` seconds; raises what `QmpClient.open` raises."""


def qmp_opener(connect: Connect) -> ConnectionOpener:
    """Return an opener of a permanent QMP connection; `connect` opens a transport to the socket."""
    return partial(QmpClient.open, connect)


class MonitorPriority(IntEnum):
    """Preference among the monitors of one VM. The agent uses the monitor with the lowest value, and keeps the others in standby."""

    DEDICATED = 0
    """A monitor for the agent alone: all events, all commands."""
    MANAGER = 10
    """Access through the VM's manager, such as libvirt: all events, and the commands that the manager supports."""
    SHARED = 20
    """A monitor that the agent shares with another client: one short connection for each poll, no events."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """One monitor that the agent may connect to.

    Attributes:
        name: the monitor's address, as in the config.
        key: identity of the monitor. A new socket at the same path has another key.
        open: opens a connection to the monitor.
        priority: preference among the monitors of the same VM.
        inbound: whether QEMU connects to the agent. The agent keeps an inbound connection open in standby, too, because QEMU would
            reconnect at once.
        shared_address: the agent's address, which several VMs connect to; empty unless `inbound`. Unlike `name`, the address has no
            part that changes when a VM restarts, such as a process ID.
        open_guest_channel: opens a connection to the VM's guest agent over the VM's manager; None if the monitor has no manager.
    """

    name: str
    key: tuple[object, ...]
    open: ConnectionOpener
    priority: MonitorPriority = MonitorPriority.DEDICATED
    inbound: bool = False
    shared_address: str = ""
    open_guest_channel: OpenGuestChannel | None = None


class DiscoveryListener(Protocol):
    """Receives the monitors that a discoverer finds, and the discoverer's status. No method may block or raise."""

    def on_monitor_added(self, monitor: Monitor) -> None:
        """Handle a new monitor."""

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Handle a monitor that no longer exists. The agent keeps an open connection to this monitor until the connection ends."""

    def on_discovery_status(self, source: Monitor, error: QmpError | None, limitation: str = "") -> None:
        """Handle a change of the discoverer's own state.

        Args:
            source: a placeholder `Monitor` without a VM, which stands for the discoverer in lists of monitors.
            error: why discovery does not work; None if discovery works.
            limitation: what discovery cannot do, as a text for the operator; empty without a limitation.
        """

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        """Handle a connection that the agent refused at its `listen` address. A metric has the reason as a label."""


class Discoverer(Protocol):
    """Finds the monitors of one entry of the config."""

    async def run(self, listener: DiscoveryListener) -> None:
        """Report monitors to `listener` until cancelled."""


@runtime_checkable
class StoragePoolLister(Protocol):
    """A discoverer that can list storage pools, because the VMs' manager is libvirt."""

    async def storage_pools(self) -> Sequence[LibvirtStoragePool]:
        """Return the active storage pools.

        Raises:
            QmpError: the pools cannot be listed.
        """


@runtime_checkable
class DomainXmlReader(Protocol):
    """A connection to a VM whose manager is libvirt."""

    @property
    def libvirt_container_name(self) -> str:
        """Name of the container that the VM's libvirt runs in; empty on the host itself."""

    async def read_domain_xml(self, *, deadline: float) -> str:
        """Return libvirt's XML of the domain; empty if libvirt does not return it within `deadline` seconds."""


class AllowedChanges(Protocol):
    """The keys of the config's `allow` section that discoverers need."""

    @property
    def libvirt_passthrough(self) -> bool:
        """True if the agent may send commands to QEMU through libvirt, which taints the domain."""


class DiscovererConfig(ConfigSection):
    """An entry of the config's `monitors`. The entry's first key names the transport; the key's value is the address."""

    inbound: ClassVar[bool] = False
    """True if QEMU connects to the agent."""

    @classmethod
    def transport_config_key(cls) -> str:
        """Return the key that names the transport."""
        return next(iter(cls.model_fields))

    def __str__(self) -> str:
        return f"{self.transport_config_key()}: {getattr(self, self.transport_config_key())}"

    @abstractmethod
    def build_discoverer(self, allow: AllowedChanges) -> Discoverer:
        """Return the discoverer. Two discoverers with the same settings have the same `repr`."""

    @property
    def addresses(self) -> Sequence[str]:
        """Addresses of the monitors' sockets, in the form of the config key `dial`; empty for libvirt, which connects itself."""
        return ()

    @property
    def required_qemu_changes(self) -> frozenset[OptInQemuChange]:
        """Changes to QEMU that the agent makes to connect over this transport."""
        return frozenset()
