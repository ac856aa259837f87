"""Transports to QEMU's monitors, one file each.

A transport discovers monitors and opens connections to them; scheduling, retries and back-off belong to the session package.
To add a transport, write its discoverer and its config entry, and list the entry in `ENTRIES`.
"""

from agent.monitors.base import (
    Discoverer,
    DiscovererConfig,
    DiscoveryListener,
    Monitor,
    MonitorConnection,
    MonitorPriority,
    StoragePoolLister,
)
from agent.monitors.dial import DialConfig, DialDiscoverer
from agent.monitors.dial_per_poll import DialPerPollDiscoverer
from agent.monitors.hotplug import DialPerPollConfig, HotplugDiscoverer
from agent.monitors.libvirt.config import LibvirtConfig
from agent.monitors.listen import ListenConfig, ListenDiscoverer, ListenTlsConfig

ENTRIES: tuple[type[DiscovererConfig], ...] = (DialConfig, DialPerPollConfig, LibvirtConfig, ListenConfig)
"""Types of the entries of the config's `monitors`. An entry that has no type's key is validated as the first type."""

__all__ = [
    "ENTRIES",
    "DialConfig",
    "DialDiscoverer",
    "DialPerPollConfig",
    "DialPerPollDiscoverer",
    "Discoverer",
    "DiscovererConfig",
    "DiscoveryListener",
    "HotplugDiscoverer",
    "LibvirtConfig",
    "ListenConfig",
    "ListenDiscoverer",
    "ListenTlsConfig",
    "Monitor",
    "MonitorConnection",
    "MonitorPriority",
    "StoragePoolLister",
]
