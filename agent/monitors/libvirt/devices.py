"""What a domain has, out of the XML that libvirt gives of it. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.common.safe_xml import parse_xml

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_TYPES = {"virtio": "virtio-balloon-pci", "virtio-transitional": "virtio-balloon-pci-transitional"}
_TYPES |= {"virtio-non-transitional": "virtio-balloon-pci-non-transitional"}

_PROTOCOLS = {
    "file": "file",
    "block": "host_device",
    "dir": "vvfat",
    "nvme": "nvme",
    "vhostuser": "virtio-blk-vhost-user",
}
"""The block driver that a disk's source takes, by its type in the XML; that of `network` is its protocol."""

_MAX_DEPTH = 64

MAX_XML_BYTES = 1 << 22
"""Size of the largest XML that libvirt's protocol carries in one string."""


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """An image of a disk.

    Attributes:
        index: libvirt's number of it, by which it names the image's block nodes; -1 where it has none.
        format: the format's driver, such as qcow2.
        protocol: the driver of what it lies on.
        path: where it lies.
    """

    index: int
    format: str
    protocol: str
    path: str

    @property
    def format_node(self) -> str:
        """The block node that the guest, or the layer above, sees."""
        return f"libvirt-{self.index}-format"

    @property
    def storage_node(self) -> str:
        """The block node that it lies on."""
        return f"libvirt-{self.index}-storage"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk.

    Attributes:
        alias: its device's id in QEMU, such as virtio-disk0.
        target: libvirt's name of it, such as vda.
        read_only: whether the guest may not write to it.
        layers: its images, the one that is written to first.
    """

    alias: str
    target: str
    read_only: bool
    layers: tuple[ImageLayer, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """What a domain has.

    Attributes:
        disks: by target.
        balloon: the id of its balloon device, and the device's type in QEMU; None where it has none.
        period_seconds: how often the balloon's guest is asked for its statistics; 0 is never.
        memory_devices: how many there are.
    """

    disks: Mapping[str, Disk]
    balloon: tuple[str, str] | None
    period_seconds: int
    memory_devices: int = 0

    def place(self, node: str) -> str | None:
        """Return what libvirt calls the image of a storage node, such as `vda[1]`; None where no disk has it."""
        for disk in self.disks.values():
            for layer in disk.layers:
                if node == layer.storage_node:
                    return f"{disk.target}[{layer.index}]"
        return None


def devices(xml: str) -> Devices:
    """Read the XML of a domain that runs.

    Raises:
        ValueError: it is none.
    """
    domain = parse_xml(xml, MAX_XML_BYTES)
    disks = {disk.target: disk for element in domain.iterfind("devices/disk") if (disk := _disk(element)) is not None}
    found = domain.find("devices/memballoon")
    model = found.get("model", "none") if found is not None else "none"
    alias = found.find("alias") if found is not None else None
    period = found.find("stats") if found is not None else None
    return Devices(
        disks,
        (alias.get("name", ""), _TYPES[model]) if alias is not None and model in _TYPES else None,
        _number(period, "period") if period is not None else 0,
        len(domain.findall("devices/memory")),
    )


def _number(element: "Element", name: str, otherwise: int = 0) -> int:
    text = element.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else otherwise


def _disk(element: "Element") -> Disk | None:
    target, alias = element.find("target"), element.find("alias")
    if target is None or alias is None:
        return None
    return Disk(
        alias.get("name", ""),
        target.get("dev", ""),
        element.find("readonly") is not None,
        tuple(_layers(element)),
    )


def _layers(element: "Element") -> Iterator[ImageLayer]:
    """Yield a disk's images: its own, then each `backingStore` inside the one before."""
    kind = element.find("driver")
    at: Element | None = element
    for _ in range(_MAX_DEPTH):
        if at is None or (source := at.find("source")) is None:
            return
        form = kind.get("type", "") if kind is not None else ""
        protocol = source.get("protocol", "") or _PROTOCOLS.get(at.get("type", ""), "")
        path = source.get("file") or source.get("dev") or source.get("name") or source.get("dir") or ""
        yield ImageLayer(_number(source, "index", _number(at, "index", -1)), form, protocol, path)
        at = at.find("backingStore")
        kind = at.find("format") if at is not None else None
