"""Compares the addresses of monitors, config entries and sockets. Pure."""

from pathlib import PurePath
from urllib.parse import urlsplit

from agent.cli.doctor.argv import MonitorSocket
from agent.host.unix_and_tcp_sockets import replace_var_run
from agent.monitors import DiscovererConfig

_LOCAL = frozenset({"", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1"})  # noqa: S104 - compared, not bound


def socket_table_address(address: str) -> str:
    """Return an address in the form of agent.host.unix_and_tcp_sockets: `tcp:PORT`, or the normalized path of a Unix socket."""
    return f"tcp:{address.rpartition(':')[2]}" if address.startswith("tcp:") else replace_var_run(address)


def dial_address(address: str) -> str:
    """Return the address at which the agent connects to a monitor. For a monitor that listens on all addresses, use 127.0.0.1."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return f"tcp:127.0.0.1:{port}" if address.startswith("tcp:") and host.strip("[]") in _LOCAL else address


def libvirt_driver_and_path(uri: str) -> str:
    """Return which libvirtd of this host a URI names: `qemu/system` or `qemu/session`."""
    parts = urlsplit(uri)
    return parts.scheme.partition("+")[0] + parts.path


def entry_matches_monitor(entry: DiscovererConfig, monitor: MonitorSocket, address: str) -> bool:
    """Return whether a `monitors` entry of the agent's config leads to a monitor. `address` is the monitor's address."""
    return entry.inbound == monitor.connects and any(_address_matches(pattern, address) for pattern in entry.addresses)


def _address_matches(pattern: str, address: str) -> bool:
    """Return whether a monitor's address matches an address or a glob pattern in the config."""
    if not pattern.startswith("tcp:") or not address.startswith("tcp:"):
        return PurePath(replace_var_run(address)).match(replace_var_run(pattern)) if address else False
    hosts = {text.removeprefix("tcp:").rpartition(":")[0].strip("[]") for text in (pattern, address)}
    return socket_table_address(pattern) == socket_table_address(address) and (len(hosts) == 1 or hosts <= _LOCAL)
