"""Ways of reaching monitors, one file each. A way says which monitors there are; connecting, waiting and retrying is the framework's.

To add one: write its file, the entry of the config and the way that it makes, and name the entry in `ENTRIES`.
"""

from agent.monitors.base import Found, Link, Monitor, Rank, Way, WayConfig
from agent.monitors.burst import Burst
from agent.monitors.dial import Dial, DialConfig
from agent.monitors.hotplug import BurstConfig, Hotplug
from agent.monitors.libvirt.config import LibvirtConfig
from agent.monitors.listen import Listen, ListenConfig, ListenTlsConfig

ENTRIES: tuple[type[WayConfig], ...] = (DialConfig, BurstConfig, LibvirtConfig, ListenConfig)
"""What an entry of the config's `monitors` may be; one that has none of their keys is taken for the first."""

__all__ = [
    "ENTRIES",
    "Burst",
    "BurstConfig",
    "Dial",
    "DialConfig",
    "Found",
    "Hotplug",
    "LibvirtConfig",
    "Link",
    "Listen",
    "ListenConfig",
    "ListenTlsConfig",
    "Monitor",
    "Rank",
    "Way",
    "WayConfig",
]
