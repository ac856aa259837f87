"""Parses the kernel's description of a network interface with its SR-IOV virtual functions (rtnetlink, RTM_NEWLINK). Pure.

include/uapi/linux/{netlink,rtnetlink,if_link}.h define the layout of the messages. The kernel never changes the layout. Attributes that
are truncated, too short or unknown are left out.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_RTEXT_FILTER_VF: Final = 1
"""Flag that requests the virtual functions of the interface."""

_IFLA_ADDRESS, _IFLA_VFINFO_LIST, _IFLA_EXT_MASK = 1, 22, 29
_IFLA_VF_INFO, _IFLA_VF_MAC, _IFLA_VF_STATS = 1, 1, 8
_NESTED_OR_BIG_ENDIAN: Final = 0xC000
"""Flags in the type of an attribute."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_NUMBER = struct.Struct("=Q")
_VF_NUMBER = struct.Struct("=I")
_ERROR = struct.Struct("=i")

_COUNTERS: Final = {
    0: "rx_packets",
    1: "tx_packets",
    2: "rx_bytes",
    3: "tx_bytes",
    7: "rx_dropped",
    8: "tx_dropped",
}
"""The kernel's names of the counters by type of attribute (IFLA_VF_STATS_*)."""

_MAC_BYTES = 6
MAX_VIRTUAL_FUNCTIONS: Final = 4096
"""Maximum number of virtual functions of one interface. A message has room for a few hundred."""


@dataclass(frozen=True, slots=True)
class VirtualFunctionReading:
    """A virtual function, as reported by its physical function.

    Attributes:
        number: the number of the virtual function within its physical function.
        mac: the MAC address, such as `52:54:00:12:34:56`; empty if the device has no MAC address or is not Ethernet.
        counters: the counters by the kernel's names. `rx` counts packets that the virtual function received.
    """

    number: int
    mac: str
    counters: dict[str, int]


class NetlinkError(Exception):
    """The kernel refused the request, or its reply is not the expected message."""


def encode_link_request(index: int, sequence: int = 1) -> bytes:
    """Return the request for one interface with its virtual functions."""
    mask = _ATTRIBUTE.pack(8, _IFLA_EXT_MASK) + struct.pack("=I", _RTEXT_FILTER_VF)
    size = _HEADER.size + _LINK.size + len(mask)
    return _HEADER.pack(size, RTM_GETLINK, _NLM_F_REQUEST, sequence, 0) + _LINK.pack(0, 0, index, 0, 0) + mask


def parse_link_reply(data: bytes) -> list[VirtualFunctionReading]:
    """Return the virtual functions in the kernel's reply to `encode_link_request`.

    Raises:
        NetlinkError: the kernel refused the request, or the reply is not the expected message.
    """
    if len(data) < _HEADER.size:
        raise NetlinkError("the reply is too short")
    size, kind, *_ = _HEADER.unpack_from(data)
    if kind == NLMSG_ERROR and len(data) >= _HEADER.size + _ERROR.size:
        raise NetlinkError(f"the kernel refused the request: error {-_ERROR.unpack_from(data, _HEADER.size)[0]}")
    if kind != RTM_NEWLINK or not _HEADER.size + _LINK.size <= size <= len(data):
        raise NetlinkError("the reply is not the description of an interface")
    attributes = list(_parse_attributes(data[_HEADER.size + _LINK.size : size]))
    address = next((value for number, value in attributes if number == _IFLA_ADDRESS), b"")
    return [
        function
        for number, value in attributes
        if number == _IFLA_VFINFO_LIST
        for entry, content in _parse_attributes(value)
        if entry == _IFLA_VF_INFO and (function := _parse_function(content, len(address))) is not None
    ][:MAX_VIRTUAL_FUNCTIONS]


def _parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the content of each attribute, up to the first truncated attribute.

    Attributes begin at multiples of four bytes.
    """
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & ~_NESTED_OR_BIG_ENDIAN, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _parse_function(data: bytes, address_bytes: int) -> VirtualFunctionReading | None:
    """Return a virtual function; None if the attribute with the function's number and MAC address is missing."""
    number: int | None = None
    mac, counters = "", {}
    for kind, value in _parse_attributes(data):
        if kind == _IFLA_VF_MAC and len(value) >= _VF_NUMBER.size + _MAC_BYTES:
            number = _VF_NUMBER.unpack_from(value)[0]
            digits = value[_VF_NUMBER.size : _VF_NUMBER.size + _MAC_BYTES]
            mac = digits.hex(":") if address_bytes == _MAC_BYTES and any(digits) else ""
        elif kind == _IFLA_VF_STATS:
            counters = dict(_parse_counters(value))
    return VirtualFunctionReading(number, mac, counters) if number is not None else None


def _parse_counters(data: bytes) -> Iterator[tuple[str, int]]:
    for kind, value in _parse_attributes(data):
        if kind in _COUNTERS and len(value) == _NUMBER.size:
            yield _COUNTERS[kind], _NUMBER.unpack(value)[0]
