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
"""QEMU's block driver by the type of a disk in the XML. A disk of the type `network` has an attribute `protocol` with the driver."""

_MAX_DEPTH = 64
"""Maximum number of images to read from the backing chain of a disk."""

GUEST_AGENT_PORT = "org.qemu.guest_agent.0"
"""Name of the virtio serial port that guest agents use."""

MAX_XML_BYTES = 1 << 22
"""Maximum size of the XML, which is the maximum size of a string in libvirt's protocol."""


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One image in the backing chain of a disk.

    Attributes:
        index: libvirt's number of the image, which is part of the names of the image's block nodes; -1 if unknown. libvirt numbers images
            only if libvirt starts QEMU with -blockdev.
        format: the format's block driver, such as qcow2.
        protocol: the block driver of the storage below the format, such as file.
        path: the image's file, device, or name on a storage server; empty if unknown.
    """

    index: int
    format: str
    protocol: str
    path: str

    @property
    def format_node(self) -> str | None:
        """Name of the block node for the image's format; None if unknown. The guest's device or the image above uses this node."""
        return f"libvirt-{self.index}-format" if self.index >= 0 else None

    @property
    def storage_node(self) -> str | None:
        """Name of the block node for the image's storage, below the format node; None if unknown."""
        return f"libvirt-{self.index}-storage" if self.index >= 0 else None


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest.

    Attributes:
        alias: id of the disk's device in QEMU, such as virtio-disk0.
        target: libvirt's name of the disk, such as vda.
        read_only: whether the guest cannot write to the disk.
        layers: the images of the disk's backing chain; the guest writes to the first image.
        is_chain_complete: whether `layers` has all images of the backing chain.
    """

    alias: str
    target: str
    read_only: bool
    layers: tuple[ImageLayer, ...]
    is_chain_complete: bool


@dataclass(frozen=True, slots=True)
class DomainDevices:
    """The devices of a domain.

    Attributes:
        disks: the disks by target.
        balloon: id and QEMU's type of the balloon device; None without a balloon device.
        stats_interval_seconds: seconds between two polls of the guest's memory statistics by QEMU; 0 if QEMU does not poll.
        memory_devices: number of memory devices, such as DIMMs.
        guest_agent: id of the guest agent's port, and whether the guest has opened the port; None without a port.
    """

    disks: Mapping[str, Disk]
    balloon: tuple[str, str] | None
    stats_interval_seconds: int
    memory_devices: int = 0
    guest_agent: tuple[str, bool] | None = None

    def libvirt_disk_name_of_node(self, node: str) -> str | None:
        """Return the name by which libvirt sets the write threshold of a storage node, such as `vda[1]`; None if no disk has the node."""
        for disk in self.disks.values():
            for layer in disk.layers:
                if node == layer.storage_node:
                    return f"{disk.target}[{layer.index}]"
        return None


NO_DEVICES = DomainDevices({}, None, 0)


def parse_devices(xml: str) -> DomainDevices:
    """Return the devices in the XML of a running domain.

    Raises:
        ValueError: the XML cannot be parsed.
    """
    domain = parse_xml(xml, MAX_XML_BYTES)
    disks = {
        disk.target: disk for element in domain.iterfind("devices/disk") if (disk := _parse_disk(element)) is not None
    }
    balloon = domain.find("devices/memballoon")
    model = balloon.get("model", "none") if balloon is not None else "none"
    name = _child_attribute(balloon, "alias", "name") if balloon is not None else ""
    stats = balloon.find("stats") if balloon is not None else None
    return DomainDevices(
        disks,
        (name, _BALLOON_TYPES[model]) if name and model in _BALLOON_TYPES else None,
        _number_attribute(stats, "period") if stats is not None else 0,
        len(domain.findall("devices/memory")),
        _parse_guest_agent(domain),
    )


def _parse_guest_agent(domain: "Element") -> tuple[str, bool] | None:
    for channel in domain.iterfind("devices/channel"):
        if _child_attribute(channel, "target", "name") == GUEST_AGENT_PORT:
            return _child_attribute(channel, "alias", "name"), _child_attribute(
                channel, "target", "state"
            ) == "connected"
    return None


def _number_attribute(element: "Element", name: str, default: int = 0) -> int:
    text = element.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else default


def _child_attribute(parent: "Element", child: str, name: str) -> str:
    """Return an attribute of a child element; empty if the child or the attribute is absent."""
    element = parent.find(child)
    return element.get(name, "") if element is not None else ""


def _parse_disk(element: "Element") -> Disk | None:
    """Return the disk of a <disk> element; None if the element lacks the alias or the target."""
    alias, target = _child_attribute(element, "alias", "name"), _child_attribute(element, "target", "dev")
    if not alias or not target:
        return None
    layers, complete = _parse_layers(element)
    return Disk(alias, target, element.find("readonly") is not None, tuple(layers), complete)


def _parse_layers(disk: "Element") -> tuple[list[ImageLayer], bool]:
    """Return the images of a disk's backing chain, and whether the XML contains the whole chain.

    The <disk> element contains the first image. Each further image is in a `backingStore` element inside the element of the image
    above. An empty `backingStore` element marks the end of the chain.
    """
    layers: list[ImageLayer] = []
    element: Element | None = disk
    driver = _child_attribute(disk, "driver", "type")
    while element is not None and (source := element.find("source")) is not None and len(layers) < _MAX_DEPTH:
        protocol = source.get("protocol", "") or _PROTOCOLS.get(element.get("type", ""), "")
        path = source.get("file") or source.get("dev") or source.get("name") or source.get("dir") or ""
        layers.append(
            ImageLayer(
                _number_attribute(source, "index", _number_attribute(element, "index", -1)), driver, protocol, path
            )
        )
        element = element.find("backingStore")
        driver = _child_attribute(element, "format", "type") if element is not None else ""
    return layers, element is not None and element.find("source") is None
