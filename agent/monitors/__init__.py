"""Ways of reaching monitors, one file each. A way says which monitors there are; connecting, waiting and retrying is the framework's."""

from agent.monitors.base import Found, Link, Monitor, Rank, Way
from agent.monitors.burst import Burst
from agent.monitors.dial import Dial
from agent.monitors.hotplug import Hotplug
from agent.monitors.libvirt import Libvirt
from agent.monitors.listen import Listen, ListenTerms, ListenTls

__all__ = [
    "Burst",
    "Dial",
    "Found",
    "Hotplug",
    "Libvirt",
    "Link",
    "Listen",
    "ListenTerms",
    "ListenTls",
    "Monitor",
    "Rank",
    "Way",
]
