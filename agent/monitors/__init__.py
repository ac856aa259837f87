"""Ways of reaching monitors, one file each. A way says which monitors there are; connecting, waiting and retrying is the framework's.

To add one: write its file, the entry of the config and the way that it makes, and name the entry in `ENTRIES`.
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
"""What an entry of the config's `monitors` may be; one that has none of their keys is taken for the first."""

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
