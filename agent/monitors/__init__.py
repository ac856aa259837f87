"""Transports to QEMU's monitors, one file each.

Start at `base`, which has the interfaces, and at `dial`, the simplest transport. The package may import agent.collectors and the packages
below it, but neither agent.alerts nor agent.delivery.

A transport discovers monitors and opens connections to them. The session package polls over these connections, and reconnects after
failures. To add a transport, write its discoverer and its config entry, and list the entry in `MONITOR_CONFIG_TYPES`.
"""

from agent.monitors.base import (
    Discoverer,
    DiscovererConfig,
    DiscoveryListener,
    DomainXmlReader,
    Monitor,
    MonitorConnection,
    MonitorPriority,
    StoragePoolLister,
)
from agent.monitors.dial import DialConfig, DialDiscoverer
from agent.monitors.dial_per_poll import DialPerPollDiscoverer
from agent.monitors.libvirt.config import LibvirtConfig
from agent.monitors.listen import ListenConfig, ListenDiscoverer, ListenTlsConfig
from agent.monitors.own_monitor import DialPerPollConfig, OwnMonitorAddingDiscoverer

MONITOR_CONFIG_TYPES: tuple[type[DiscovererConfig], ...] = (DialConfig, DialPerPollConfig, LibvirtConfig, ListenConfig)
"""Types of the entries in the config's `monitors`. An entry that has the key of no type is validated as the first type."""

__all__ = [
    "MONITOR_CONFIG_TYPES",
    "DialConfig",
    "DialDiscoverer",
    "DialPerPollConfig",
    "DialPerPollDiscoverer",
    "Discoverer",
    "DiscovererConfig",
    "DiscoveryListener",
    "DomainXmlReader",
    "LibvirtConfig",
    "ListenConfig",
    "ListenDiscoverer",
    "ListenTlsConfig",
    "Monitor",
    "MonitorConnection",
    "MonitorPriority",
    "OwnMonitorAddingDiscoverer",
    "StoragePoolLister",
]
