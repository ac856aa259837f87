"""An encoder of the kernel's description of a network interface with virtual functions, written from the headers of Linux 6.1.

tests/unit/host/test_guest_host_recordings.py compares it with the reply of a real kernel.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

COUNTERS: Final = (
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "broadcast",
    "multicast",
    None,
    "rx_dropped",
    "tx_dropped",
)
"""Names of the counters in the order of their attributes, IFLA_VF_STATS_*. One number is for padding."""


class SentFunction(NamedTuple):
    """A virtual function as the kernel would send it."""

    number: int
    mac: bytes
    counters: Mapping[str, int]


def attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute, padded to a multiple of four bytes."""
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def function(vf: SentFunction) -> bytes:
    """Return IFLA_VF_INFO of a virtual function, with the attributes that rtnl_fill_vfinfo writes."""
    number = struct.pack("=I", vf.number)
    parts = [
        attribute(1, number + vf.mac.ljust(32, b"\0")),  # IFLA_VF_MAC
        attribute(13, bytes(32)),  # IFLA_VF_BROADCAST
        attribute(2, number + struct.pack("=II", 100, 0)),  # IFLA_VF_VLAN
        attribute(6, number + struct.pack("=II", 0, 0)),  # IFLA_VF_RATE
        attribute(3, number + struct.pack("=I", 0)),  # IFLA_VF_TX_RATE
        attribute(4, number + struct.pack("=I", 1)),  # IFLA_VF_SPOOFCHK
        attribute(5, number + struct.pack("=I", 0)),  # IFLA_VF_LINK_STATE
        attribute(7, number + struct.pack("=I", 0xFFFFFFFF)),  # IFLA_VF_RSS_QUERY_EN, which the driver does not have
        attribute(9, number + struct.pack("=I", 0)),  # IFLA_VF_TRUST
        attribute(12, attribute(1, number + struct.pack("=II", 100, 0) + b"\x81\0\0\0")),  # IFLA_VF_VLAN_LIST: 802.1Q
    ]
    counters = b"".join(
        attribute(kind, struct.pack("=Q", vf.counters[name]))
        for kind, name in enumerate(COUNTERS)
        if name is not None and name in vf.counters
    )
    return attribute(1, b"".join((*parts, attribute(8, counters))))


def link_reply(
    functions: Sequence[SentFunction], address: bytes = bytes.fromhex("3cecef000001"), missing_bytes: int = 0
) -> bytes:
    """Return RTM_NEWLINK of a physical function.

    Args:
        functions: its virtual functions.
        address: its link-layer address.
        missing_bytes: how many bytes the end of the list of virtual functions lacks.
    """
    flags = 0x1043  # up, broadcast, running, multicast
    listed = b"".join(map(function, functions))
    body = struct.pack("=BBHiII", 0, 0, 1, 7, flags, 0)
    body += attribute(3, b"ens1f0\0") + attribute(13, struct.pack("=I", 1000)) + attribute(4, struct.pack("=I", 1500))
    body += attribute(1, address) + attribute(21, struct.pack("=I", len(functions)))
    body += attribute(22, listed[: len(listed) - missing_bytes])
    return struct.pack("=IHHII", 16 + len(body), 16, 0, 1, 0) + body


_SHOWN: Final = {"RX": ("rx_bytes", "rx_packets", "", "", "rx_dropped"), "TX": ("tx_bytes", "tx_packets", "tx_dropped")}
"""The columns that ip-link(8) prints for a virtual function. Those without a name are not read by the agent."""


def functions_in_ip_output(text: str) -> list[tuple[int, str, dict[str, int]]]:
    """Return the number, the address and the counters of each virtual function in the output of `ip -statistics -details link`."""
    functions = []
    for part in re.split(r"^ +vf ", text, flags=re.MULTILINE)[1:]:
        number, address = re.findall(r"^(\d+) +link/ether ([0-9a-f:]+)", part)[0]
        counters: dict[str, int] = {}
        for direction, names in _SHOWN.items():
            line = re.findall(rf"{direction}: bytes.*\n(.*)", part)[0]
            counters |= dict(zip(names, map(int, line.split()), strict=True))
        functions.append((int(number), address, {name: count for name, count in counters.items() if name}))
    return functions
