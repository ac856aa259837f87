"""Which network interfaces a process has open: its taps by what fdinfo says, its macvtaps by their devices' names. Blocks."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.host.process import Process
from agent.host.types import Interface

_MAX_DESCRIPTORS = 8192

_NAME = re.compile(r"[^/\s]{1,15}")
"""What the kernel lets an interface be called (IFNAMSIZ)."""

Nic = Mapping[str, Any]
"""What QEMU says of one of the guest's network cards: `device`, `mac`, `netdev`."""


def interfaces_of(process: Process, nics: Mapping[str, Nic]) -> tuple[Interface, ...]:
    """Return the interfaces that a process has open, by name; none where its descriptors may not be looked at.

    Args:
        process: it.
        nics: the guest's network cards by MAC address, in lower case. A macvtap has its card's address, and a tap, by libvirt's custom,
            one that differs in the first byte only.
    """
    near = process.link("ns/net") == process.link("/proc/self/ns/net")
    kinds = dict(_open(process, near=near))
    made = []
    for name, kind in sorted(kinds.items()):
        values = {"kind": kind, **(_card(process, name, nics) if near else {})}
        made.append(Interface(name, values, swapped=kind == "tap", near=near))
    return tuple(made)


def _open(process: Process, *, near: bool) -> Iterator[tuple[str, str]]:
    macvtaps: dict[str, str] | None = None
    for descriptor in process.names("fd")[:_MAX_DESCRIPTORS]:
        target = process.link(f"fd/{descriptor}") or ""
        if target == "/dev/net/tun":
            lines = (process.read(f"fdinfo/{descriptor}") or "").splitlines()
            name = next((line.split()[1] for line in lines if line.startswith("iff:") and len(line.split()) == 2), "")
            if _NAME.fullmatch(name):
                yield name, "tap"
        elif near and re.fullmatch(r"/dev/tap\d+", target):  # numbered by the network that it is in
            macvtaps = _by_index(process) if macvtaps is None else macvtaps
            if (index := target.removeprefix("/dev/tap")) in macvtaps:
                yield macvtaps[index], "macvtap"


def _by_index(process: Process) -> dict[str, str]:
    """Return the names of our network's interfaces by their index."""
    folder = Path(process.root + "/sys/class/net")
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    return {(process.read(f"/sys/class/net/{name}/ifindex") or "").strip(): name for name in names}


def _card(process: Process, name: str, nics: Mapping[str, Nic]) -> Mapping[str, Any]:
    """Return the guest's card that an interface is for, where their addresses say so."""
    address = (process.read(f"/sys/class/net/{name}/address") or "").strip()
    for mac, nic in nics.items():
        if mac == address or (address.startswith("fe:") and mac[2:] == address[2:]):
            return nic
    return {}
