"""Compares the addresses of monitors, config entries and sockets. Pure."""

from pathlib import PurePath
from urllib.parse import urlsplit

from agent.cli.doctor.argv import Socket
from agent.host.sockets import normalize_path
from agent.monitors import DiscovererConfig

_LOCAL = frozenset({"", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1"})  # noqa: S104 - compared, not bound


def table_key(address: str) -> str:
    """Return an address in the form of the socket table."""
    return f"tcp:{address.rpartition(':')[2]}" if address.startswith("tcp:") else normalize_path(address)


def dial_address(address: str) -> str:
    """Return the address at which the agent can connect to a monitor: the loopback address if it listens on all addresses."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return f"tcp:127.0.0.1:{port}" if address.startswith("tcp:") and host.strip("[]") in _LOCAL else address


def libvirt_instance(uri: str) -> str:
    """Return which libvirtd of this host a URI means, `qemu/system` or `qemu/session`, without its transport."""
    parts = urlsplit(uri)
    return parts.scheme.partition("+")[0] + parts.path


def leads_to(entry: DiscovererConfig, monitor: Socket, address: str) -> bool:
    """Return whether a config entry leads to a monitor."""
    return entry.inbound == monitor.connects and any(_matches(pattern, address) for pattern in entry.addresses)


def _matches(pattern: str, address: str) -> bool:
    """Return whether an address of the config is that of a monitor."""
    if not pattern.startswith("tcp:") or not address.startswith("tcp:"):
        return PurePath(normalize_path(address)).match(normalize_path(pattern)) if address else False
    hosts = {text.removeprefix("tcp:").rpartition(":")[0].strip("[]") for text in (pattern, address)}
    return table_key(pattern) == table_key(address) and (len(hosts) == 1 or hosts <= _LOCAL)
