"""Addresses and traffic of the guest's network interfaces, without the loopback interface."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.guest.base import MAX_SUBJECTS, MAX_TEXT, GuestCollector, TimedGuestReply, require_value
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_ADDRESS, GUEST_INTERFACE
from agent.model.record import sanitize

_read_traffic = FieldReader(GUEST_INTERFACE)
_read_addresses = FieldReader(GUEST_ADDRESS)

_MAX_INTERFACES = 512
"""Maximum number of interfaces to read from a reply. A host of containers has hundreds of interfaces."""
_MAX_ADDRESSES = 32
"""Maximum number of addresses of one interface."""
_MAX_ADDRESSES_OF_GUEST = 512
"""Maximum number of addresses to read from a reply. The agent takes about 5 us to parse an address."""

_Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, FieldValues]


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    seen: set[str] = set()
    unread = _MAX_ADDRESSES_OF_GUEST
    for interface in list_of_objects_or_empty(require_value(exchanges[0], list), _MAX_INTERFACES):
        name = sanitize(text_or_empty(interface.get("name")), MAX_TEXT)
        if not name or name in seen:
            continue
        entries = list_of_objects_or_empty(interface.get("ip-addresses"), min(_MAX_ADDRESSES, unread))
        unread -= len(entries)
        addresses = [address for entry in entries if (address := _parse_address(entry)) is not None]
        if any(address.is_loopback for address, _ in addresses):
            continue
        seen.add(name)
        if traffic := _read_traffic(interface):
            yield Sample(GUEST_INTERFACE, (name,), traffic)
        if addresses:
            listed = {"addresses": [values for _, values in addresses]}
            yield Sample(GUEST_ADDRESS, (name,), _read_addresses(interface | _first_by_version(addresses) | listed))
        if len(seen) >= MAX_SUBJECTS:
            return


def _parse_address(entry: dict[str, Any]) -> _Address | None:
    """Return an IP address and its values. Leave out an invalid prefix length. Return None if the address itself is invalid."""
    try:
        address = ipaddress.ip_address(text_or_empty(entry.get("ip-address")).partition("%")[0])
    except ValueError:
        return None
    prefix = entry.get("prefix")
    known = {"prefix": prefix} if type(prefix) is int and 0 <= prefix <= address.max_prefixlen else {}
    return address, {"address": address.compressed, **known}


def _first_by_version(addresses: Iterable[_Address]) -> FieldValues:
    """Return the first IPv4 and the first IPv6 address that is not link-local, as `ipv4` and `ipv6`."""
    first: FieldValues = {}
    for address, _ in addresses:
        if not address.is_link_local:
            first.setdefault(f"ipv{address.version}", address.compressed)
    return first


COLLECTOR = GuestCollector("network", (GUEST_INTERFACE, GUEST_ADDRESS), ("guest-network-get-interfaces",), _collect)
