"""Addresses and traffic of the guest's network interfaces, without the loopback interface."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.guest.base import MAX_SUBJECTS, MAX_TEXT, Exchange, GuestCollector, expect
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.model.family import Sample, Values
from agent.model.metrics.guest import GUEST_ADDRESS, GUEST_INTERFACE
from agent.model.reader import FieldReader
from agent.model.record import sanitize

_read_traffic = FieldReader(GUEST_INTERFACE)
_read_addresses = FieldReader(GUEST_ADDRESS)

_MAX_ADDRESSES = 32


def _collect(exchanges: Sequence[Exchange]) -> Iterable[Sample]:
    seen: set[str] = set()
    for interface in as_list_of_objects(expect(exchanges[0], list)):
        name = sanitize(as_text(interface.get("name")), MAX_TEXT)
        addresses = _parse_addresses(interface)
        if not name or name in seen or any(ipaddress.ip_address(a["address"]).is_loopback for a in addresses):
            continue
        seen.add(name)
        if traffic := _read_traffic(interface):
            yield Sample(GUEST_INTERFACE, (name,), traffic)
        if addresses:
            yield Sample(
                GUEST_ADDRESS,
                (name,),
                _read_addresses(interface | _first_by_version(addresses) | {"addresses": addresses}),
            )
        if len(seen) >= MAX_SUBJECTS:
            return


def _parse_addresses(interface: dict[str, Any]) -> list[Values]:
    """Return the valid IP addresses of an interface, each with its prefix length if that is valid."""
    addresses = []
    for entry in as_list_of_objects(interface.get("ip-addresses"), _MAX_ADDRESSES):
        try:
            address = ipaddress.ip_address(as_text(entry.get("ip-address")).partition("%")[0])
        except ValueError:
            continue
        prefix = entry.get("prefix")
        known = {"prefix": prefix} if type(prefix) is int and 0 <= prefix <= address.max_prefixlen else {}
        addresses.append({"address": address.compressed, **known})
    return addresses


def _first_by_version(addresses: list[Values]) -> Values:
    """Return the first IPv4 and the first IPv6 address that are not link-local, as `ipv4` and `ipv6`."""
    first: Values = {}
    for entry in addresses:
        address = ipaddress.ip_address(entry["address"])
        if not address.is_link_local:
            first.setdefault(f"ipv{address.version}", address.compressed)
    return first


COLLECTOR = GuestCollector("network", (GUEST_INTERFACE, GUEST_ADDRESS), ("guest-network-get-interfaces",), _collect)
