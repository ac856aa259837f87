"""PCI devices, character devices, memory backends and TPMs: polled at attach and when a device is added or removed."""

from collections.abc import Iterable, Iterator
from sys import intern
from typing import Any

from agent.collectors.base import Collector, Replies, VmFacts, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.devices_and_displays import INVENTORY, TPM
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read = FieldReader(INVENTORY)
_read_tpm = FieldReader(TPM)

MAX_LISTED = 48
"""Maximum number of entries in one list, to keep the record small. The field `pci_devices` contains the number of all PCI devices."""

_MAX_BRIDGES = 16
"""Maximum number of PCI bridges above a bus."""
_MAX_TEXT = 96
"""Maximum length of a text in a list, in characters."""


def _collect(replies: Replies) -> Iterable[Sample]:
    buses, chardevs, backends = (list_of_objects_or_empty(require_type(reply, list)) for reply in replies)
    pci = [_pci_fields(device) for bus in buses for device in _pci_devices(bus.get("devices"))]
    fields = {
        "pci_devices": len(pci),
        "pci": pci[:MAX_LISTED],
        "chardevs": [_chardev_fields(chardev) for chardev in chardevs[:MAX_LISTED]],
        "memory": [_memory_backend_fields(backend) for backend in backends[:MAX_LISTED]],
    }
    return (Sample(INVENTORY, (), _read(fields)),)


def _pci_devices(devices: Any, bridges: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the devices of a PCI bus and of the buses behind its bridges. `bridges` is the number of bridges above the bus."""
    for device in list_of_objects_or_empty(devices) if bridges < _MAX_BRIDGES else ():
        yield device
        yield from _pci_devices(object_or_empty(device.get("pci_bridge")).get("devices"), bridges + 1)


def _pci_fields(device: dict[str, Any]) -> FieldValues:
    device_class, ids = object_or_empty(device.get("class_info")), object_or_empty(device.get("id"))
    bus, slot, function = (_number_or_zero(device.get(key)) for key in ("bus", "slot", "function"))
    vendor, product = (_number_or_zero(ids.get(key)) for key in ("vendor", "device"))
    return {
        "id": _interned_text(device.get("qdev_id")),
        "address": intern(f"{bus:02x}:{slot:02x}.{function:x}"),
        "class": _interned_text(device_class.get("desc")) or f"{_number_or_zero(device_class.get('class')):04x}",
        "device": intern(f"{vendor:04x}:{product:04x}"),
    }


def _chardev_fields(chardev: dict[str, Any]) -> FieldValues:
    """Return the fields of a character device. Leave out the connected peer, because each new peer would change the inventory."""
    target = _interned_text(chardev.get("filename")).removeprefix("disconnected:").split(" <->")[0]
    return {
        "label": _interned_text(chardev.get("label")),
        "leads_to": target,
        "open": chardev.get("frontend-open") is True,
    }


def _memory_backend_fields(backend: dict[str, Any]) -> FieldValues:
    nodes = backend.get("host-nodes")
    return {
        "id": _interned_text(backend.get("id")),
        "size_bytes": _number_or_zero(backend.get("size")),
        "policy": _interned_text(backend.get("policy")),
        "host_nodes": [node for node in nodes if type(node) is int][:8] if isinstance(nodes, list) else [],
        "prealloc": backend.get("prealloc") is True,
        "share": backend.get("share") is True,
        **{key: backend[key] for key in ("merge", "dump", "reserve") if type(backend.get(key)) is bool},
    }


def _interned_text(raw: Any) -> str:
    return intern(sanitize(text_or_empty(raw), _MAX_TEXT))  # interned, because most VMs have the same devices


def _number_or_zero(raw: Any) -> int:
    return raw if type(raw) is int and raw >= 0 else 0


def _collect_tpms(replies: Replies) -> Iterable[Sample]:
    for tpm in list_of_objects_or_empty(require_type(replies[0], list), MAX_LISTED):
        if name := text_or_empty(tpm.get("id")):
            yield Sample(TPM, (sanitize(name),), _read_tpm(tpm))


def _tpm_commands(facts: VmFacts) -> tuple[Command, ...]:
    return (Command("query-tpm"),) if facts.has_command("query-tpm") else ()  # QEMU may be built without TPM support


COLLECTOR = Collector(
    "inventory",
    (INVENTORY,),
    lambda _facts: (Command("query-pci"), Command("query-chardev"), Command("query-memdev")),
    _collect,
)
TPMS = Collector("tpm", (TPM,), _tpm_commands, _collect_tpms)
