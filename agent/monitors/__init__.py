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
)
from agent.monitors.burst import BurstDiscoverer
from agent.monitors.dial import DialConfig, DialDiscoverer
from agent.monitors.hotplug import BurstConfig, HotplugDiscoverer
from agent.monitors.libvirt.config import LibvirtConfig
from agent.monitors.listen import ListenConfig, ListenDiscoverer, ListenTlsConfig

ENTRIES: tuple[type[DiscovererConfig], ...] = (DialConfig, BurstConfig, LibvirtConfig, ListenConfig)
"""Types of the entries of the config's `monitors`. An entry that has no type's key is validated as the first type."""

__all__ = [
    "ENTRIES",
    "BurstConfig",
    "BurstDiscoverer",
    "DialConfig",
    "DialDiscoverer",
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
]
