"""Virtual functions (SR-IOV) of network devices that VFIO passes through to a process, from sysfs. The calls block."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import orjson

from agent.host.process import Process
from agent.host.types import VirtualFunctionLocation

MAX_PCI_DEVICES = 64
"""Maximum number of PCI devices to check for one process."""

_VFIO_GROUP_PATH = re.compile(r"/dev/vfio/(?:noiommu-)?([0-9]{1,9})")
_VFIO_DEVICE_PATH = re.compile(r"/dev/vfio/devices/(vfio[0-9]{1,9})")  # with iommufd
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_VIRTFN_LINK = re.compile(r"virtfn([0-9]{1,5})")
_INTERFACE_NAME = re.compile(r"[^/\s]{1,15}")


def find_passthrough_virtual_functions(process: Process, targets: Iterable[str]) -> list[VirtualFunctionLocation]:
    """Return the virtual functions of network devices that a process has open through VFIO.

    Args:
        process: the process.
        targets: the targets of the process's open descriptors.
    """
    located = (locate_virtual_function(process, address) for address in passthrough_addresses(process, targets))
    return [vf for vf in located if vf is not None]


def passthrough_addresses(process: Process, targets: Iterable[str]) -> list[str]:
    """Return the addresses of the PCI devices that a process has open through VFIO, at most `MAX_PCI_DEVICES`.

    All devices of an IOMMU group belong to the process that has the group open.

    Args:
        process: the process.
        targets: the targets of the process's open descriptors.
    """
    return sorted({address for target in targets for address in _pci_addresses(process, target)})[:MAX_PCI_DEVICES]


def _pci_addresses(process: Process, target: str) -> Iterator[str]:
    """Yield the PCI addresses behind one open descriptor."""
    if group := _VFIO_GROUP_PATH.fullmatch(target):
        names = process.list_directory(f"/sys/kernel/iommu_groups/{group[1]}/devices")
    elif device := _VFIO_DEVICE_PATH.fullmatch(target):
        names = [(process.read_link(f"/sys/class/vfio-dev/{device[1]}/device") or "").rpartition("/")[2]]
    else:
        return
    yield from (name for name in names if _PCI_ADDRESS.fullmatch(name))


def locate_virtual_function(process: Process, address: str) -> VirtualFunctionLocation | None:
    """Return the location of a virtual function; None if its physical function has no network interface, or several."""
    physical = f"/sys/bus/pci/devices/{address}/physfn"
    interfaces = [name for name in process.list_directory(f"{physical}/net") if _INTERFACE_NAME.fullmatch(name)]
    if len(interfaces) != 1:
        return None
    for name in process.list_directory(physical):
        match = _VIRTFN_LINK.fullmatch(name)
        if match is not None and (process.read_link(f"{physical}/{name}") or "").rpartition("/")[2] == address:
            return VirtualFunctionLocation(interfaces[0], int(match[1]), address)
    return None


def passthrough_qdev_ids(argv: Sequence[str]) -> dict[str, str]:
    """Return the ids of the PCI devices that QEMU's command line passes through, by PCI address. Hot-plugged devices are missing."""
    ids = {}
    for option, value in pairwise(argv):
        if option in ("-device", "--device"):
            properties = _device_properties(value)
            if properties.get("driver", "").startswith("vfio-pci") and "host" in properties and "id" in properties:
                ids[full_pci_address(properties["host"])] = properties["id"]
    return ids


def full_pci_address(address: str) -> str:
    """Return a PCI address with its domain. QEMU's option may omit the domain."""
    return (address if address.count(":") > 1 else f"0000:{address}").lower()


def _device_properties(value: str) -> dict[str, str]:
    """Parse the argument of `-device`, which is JSON or `DRIVER,KEY=VALUE,...`. Return its properties."""
    if value.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return {key: text for key, text in orjson.loads(value).items() if isinstance(text, str)}
    driver, *rest = value.split(",")
    pairs = (part.partition("=") for part in rest)
    return {"driver": driver} | {key: text for key, equals, text in pairs if equals}
