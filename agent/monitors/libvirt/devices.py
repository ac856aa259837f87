"""The devices of a running domain, read from its XML. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.common.safe_xml import parse_xml

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_BALLOON_TYPES = {
    "virtio": "virtio-balloon-pci",
    "virtio-transitional": "virtio-balloon-pci-transitional",
    "virtio-non-transitional": "virtio-balloon-pci-non-transitional",
}
"""QEMU's device type by the balloon's model in the XML."""

_PROTOCOLS = {
    "file": "file",
    "block": "host_device",
    "dir": "vvfat",
    "nvme": "nvme",
    "vhostuser": "virtio-blk-vhost-user",
}
"""QEMU's block driver by the type of a disk's source in the XML; for the type `network` it is the source's protocol."""

_MAX_DEPTH = 64
"""Maximum number of layers that are read from a disk."""

MAX_XML_BYTES = 1 << 22
"""Maximum size of a string in libvirt's protocol, and so of the XML."""


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """An image of a disk.

    Attributes:
        index: libvirt's number of the image. libvirt derives the names of the block nodes from it. -1 if there is none (libvirt
            without -blockdev); then the names are unknown.
        format: the format's block driver, such as qcow2.
        protocol: the block driver of the storage below.
        path: location of the image.
    """

    index: int
    format: str
    protocol: str
    path: str

    @property
    def format_node(self) -> str | None:
        """Name of the block node of the image's format, which the guest or the layer above uses; None if unknown."""
        return f"libvirt-{self.index}-format" if self.index >= 0 else None

    @property
    def storage_node(self) -> str | None:
        """Name of the block node of the image's storage, below the format node; None if unknown."""
        return f"libvirt-{self.index}-storage" if self.index >= 0 else None


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk.

    Attributes:
        alias: its device's id in QEMU, such as virtio-disk0.
        target: libvirt's name of it, such as vda.
        read_only: whether the guest may not write to it.
        layers: its images; the guest writes to the first.
        complete: whether `layers` reaches the end of the chain.
    """

    alias: str
    target: str
    read_only: bool
    layers: tuple[ImageLayer, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a domain.

    Attributes:
        disks: by target.
        balloon: id and QEMU's type of the balloon device; None if there is none.
        period_seconds: interval at which QEMU polls the guest's memory statistics; 0 if it does not poll them.
        memory_devices: number of memory devices.
    """

    disks: Mapping[str, Disk]
    balloon: tuple[str, str] | None
    period_seconds: int
    memory_devices: int = 0

    def threshold_target(self, node: str) -> str | None:
        """Return libvirt's name of the image on a storage node, such as `vda[1]`; None if no disk has the node."""
        for disk in self.disks.values():
            for layer in disk.layers:
                if node == layer.storage_node:
                    return f"{disk.target}[{layer.index}]"
        return None


NO_DEVICES = Devices({}, None, 0)


def parse_devices(xml: str) -> Devices:
    """Return the devices in the XML of a running domain.

    Raises:
        ValueError: the XML cannot be parsed.
    """
    domain = parse_xml(xml, MAX_XML_BYTES)
    disks = {disk.target: disk for element in domain.iterfind("devices/disk") if (disk := _disk(element)) is not None}
    balloon = domain.find("devices/memballoon")
    model = balloon.get("model", "none") if balloon is not None else "none"
    name = _attribute(balloon, "alias", "name") if balloon is not None else ""
    stats = balloon.find("stats") if balloon is not None else None
    return Devices(
        disks,
        (name, _BALLOON_TYPES[model]) if name and model in _BALLOON_TYPES else None,
        _number(stats, "period") if stats is not None else 0,
        len(domain.findall("devices/memory")),
    )


def _number(element: "Element", name: str, default: int = 0) -> int:
    text = element.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else default


def _attribute(parent: "Element", child: str, name: str) -> str:
    """Return an attribute of a child element; empty if there is none."""
    element = parent.find(child)
    return element.get(name, "") if element is not None else ""


def _disk(element: "Element") -> Disk | None:
    """Return a disk; None if it has no name."""
    alias, target = _attribute(element, "alias", "name"), _attribute(element, "target", "dev")
    if not alias or not target:
        return None
    layers, complete = _layers(element)
    return Disk(alias, target, element.find("readonly") is not None, tuple(layers), complete)


def _layers(disk: "Element") -> tuple[list[ImageLayer], bool]:
    """Return a disk's images, and whether the list is complete.

    The first image is the disk's own. The others are nested in `backingStore` elements. An empty element marks the end of the chain.
    """
    layers: list[ImageLayer] = []
    element: Element | None = disk
    driver = _attribute(disk, "driver", "type")
    while element is not None and (source := element.find("source")) is not None and len(layers) < _MAX_DEPTH:
        protocol = source.get("protocol", "") or _PROTOCOLS.get(element.get("type", ""), "")
        path = source.get("file") or source.get("dev") or source.get("name") or source.get("dir") or ""
        layers.append(ImageLayer(_number(source, "index", _number(element, "index", -1)), driver, protocol, path))
        element = element.find("backingStore")
        driver = _attribute(element, "format", "type") if element is not None else ""
    return layers, element is not None and element.find("source") is None
