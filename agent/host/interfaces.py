"""Network interfaces that a process has open: taps, macvtaps, and virtual functions that VFIO passes through. The calls block.

The sources are fdinfo for taps, the names of device files for macvtaps, and VFIO's device files for virtual functions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.host.process import Process
from agent.host.sriov import find_passthrough_virtual_functions, passthrough_qdev_ids
from agent.host.types import VmHostInterface
from agent.model.record import sanitize

_MAX_DESCRIPTORS = 8192

_INTERFACE_NAME = re.compile(r"[^/\s]{1,15}")
"""Matches the names that the kernel accepts for an interface (IFNAMSIZ)."""

Nic = Mapping[str, Any]
"""QEMU's description of one network card of the guest: `device`, `mac`, `netdev`."""


def find_process_interfaces(process: Process, nics: Mapping[str, Nic]) -> tuple[VmHostInterface, ...]:
    """Return the interfaces that a process has open, sorted by name.

    Args:
        process: the process.
        nics: the guest's network cards by MAC address in lower case. A macvtap has the address of its card. The address of a tap that
            libvirt created differs from the card's address only in the first byte.

    Returns:
        An empty tuple if the agent has no permission to read the process's file descriptors.
    """
    same_netns = process.read_link("ns/net") == process.read_link("/proc/self/ns/net")
    targets = descriptor_targets(process)
    kinds = dict(_find_interfaces(process, targets, same_netns=same_netns))
    result = []
    for name, kind in sorted(kinds.items()):
        values = {"kind": kind, **(_nic_of_interface(process, name, nics) if same_netns else {})}
        result.append(VmHostInterface(name, values, directions_swapped=kind == "tap", same_netns=same_netns))
    return (*result, *_find_passed_through_functions(process, targets.values()))


def descriptor_targets(process: Process) -> dict[str, str]:
    """Return the target of each open descriptor of a process; empty without permission to read the targets."""
    descriptors = process.list_directory("fd")[:_MAX_DESCRIPTORS]
    return {descriptor: process.read_link(f"fd/{descriptor}") or "" for descriptor in descriptors}


def _find_passed_through_functions(process: Process, targets: Iterable[str]) -> Iterator[VmHostInterface]:
    """Yield the virtual functions whose physical functions are in the agent's network namespace.

    The process may be in another namespace.
    """
    functions = find_passthrough_virtual_functions(process, targets)
    ids = passthrough_qdev_ids((process.read_text_file("cmdline") or "").split("\0")) if functions else {}
    for vf in functions:
        values = {"kind": "vf", "host_address": vf.address}
        if vf.address in ids:
            values["device"] = sanitize(ids[vf.address])
        yield VmHostInterface(f"{vf.physical_interface}v{vf.number}", values, directions_swapped=False, vf=vf)


def _find_interfaces(process: Process, targets: Mapping[str, str], *, same_netns: bool) -> Iterator[tuple[str, str]]:
    """Yield the name and the kind, `tap` or `macvtap`, of each open interface. An interface with several queues occurs several times."""
    macvtaps: dict[str, str] | None = None
    for descriptor, target in targets.items():
        if target == "/dev/net/tun":
            lines = (process.read_text_file(f"fdinfo/{descriptor}") or "").splitlines()
            name = next((line.split()[1] for line in lines if line.startswith("iff:") and len(line.split()) == 2), "")
            if _INTERFACE_NAME.fullmatch(name):
                yield name, "tap"
        elif same_netns and re.fullmatch(r"/dev/tap\d+", target):  # the number is unique only in its network namespace
            macvtaps = _interface_names_by_index(process) if macvtaps is None else macvtaps
            if (index := target.removeprefix("/dev/tap")) in macvtaps:
                yield macvtaps[index], "macvtap"


def _interface_names_by_index(process: Process) -> dict[str, str]:
    """Return the names of the interfaces in the agent's network namespace by index. The index is a string."""
    directory = Path(process.root + "/sys/class/net")
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:
        return {}
    return {(process.read_text_file(f"/sys/class/net/{name}/ifindex") or "").strip(): name for name in names}


def _nic_of_interface(process: Process, name: str, nics: Mapping[str, Nic]) -> Mapping[str, Any]:
    """Return the guest's network card whose MAC address matches the interface's; empty if no card matches."""
    address = (process.read_text_file(f"/sys/class/net/{name}/address") or "").strip()
    for mac, nic in nics.items():
        if mac == address or (address.startswith("fe:") and mac[2:] == address[2:]):
            return nic
    return {}
