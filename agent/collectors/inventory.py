"""What a VM is made of. Asked at attach and when a device came or went."""

from collections.abc import Iterable, Iterator
from typing import Any

from agent.collectors.base import Collector, Facts, Replies, require_type
from agent.collectors.untrusted import as_list_of_objects, as_object, as_text
from agent.model.family import Sample, Values
from agent.model.metrics.inventory import INVENTORY, TPM
from agent.model.reader import Reader
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read = Reader(INVENTORY)
_read_tpm = Reader(TPM)

MAX_LISTED = 48
"""Entries of one list: such a record stays small, and what a VM of hundreds of devices has is told by their number."""

_MAX_BRIDGES = 16
_MAX_TEXT = 96


def _collect(replies: Replies) -> Iterable[Sample]:
    buses, chardevs, backends = (as_list_of_objects(require_type(answer, list)) for answer in replies)
    pci = [_pci(device) for bus in buses for device in _devices(bus.get("devices"))]
    told = {
        "pci_devices": len(pci),
        "pci": pci[:MAX_LISTED],
        "chardevs": [_chardev(one) for one in chardevs[:MAX_LISTED]],
        "memory": [_backend(one) for one in backends[:MAX_LISTED]],
    }
    return (Sample(INVENTORY, (), _read(told)),)


def _devices(devices: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a bus' devices, and what is behind its bridges."""
    for device in as_list_of_objects(devices) if depth < _MAX_BRIDGES else ():
        yield device
        yield from _devices(as_object(device.get("pci_bridge")).get("devices"), depth + 1)


def _pci(device: dict[str, Any]) -> Values:
    kind, ids = as_object(device.get("class_info")), as_object(device.get("id"))
    bus, slot, function = (_number(device.get(key)) for key in ("bus", "slot", "function"))
    vendor, product = (_number(ids.get(key)) for key in ("vendor", "device"))
    return {
        "id": _text(device.get("qdev_id")),
        "address": f"{bus:02x}:{slot:02x}.{function:x}",
        "class": _text(kind.get("desc")) or f"{_number(kind.get('class')):04x}",
        "device": f"{vendor:04x}:{product:04x}",
    }


def _chardev(one: dict[str, Any]) -> Values:
    """Tell where it leads, without who is connected at this moment: that would be another inventory each time."""
    leads = _text(one.get("filename")).removeprefix("disconnected:").split(" <->")[0]
    return {"label": _text(one.get("label")), "leads_to": leads, "open": one.get("frontend-open") is True}


def _backend(one: dict[str, Any]) -> Values:
    nodes = one.get("host-nodes")
    return {
        "id": _text(one.get("id")),
        "size_bytes": _number(one.get("size")),
        "policy": _text(one.get("policy")),
        "host_nodes": [n for n in nodes if type(n) is int][:8] if isinstance(nodes, list) else [],
        "prealloc": one.get("prealloc") is True,
        "share": one.get("share") is True,
    }


def _text(raw: Any) -> str:
    return sanitize(as_text(raw), _MAX_TEXT)


def _number(raw: Any) -> int:
    return raw if type(raw) is int and raw >= 0 else 0


def _tpms(replies: Replies) -> Iterable[Sample]:
    for tpm in as_list_of_objects(require_type(replies[0], list), MAX_LISTED):
        if name := as_text(tpm.get("id")):
            yield Sample(TPM, (sanitize(name),), _read_tpm(tpm))


def _asks_tpm(facts: Facts) -> tuple[Command, ...]:
    return (Command("query-tpm"),) if facts.has_command("query-tpm") else ()  # a QEMU may be built without


COLLECTOR = Collector(
    "inventory",
    (INVENTORY,),
    lambda _facts: (Command("query-pci"), Command("query-chardev"), Command("query-memdev")),
    _collect,
)
TPMS = Collector("tpm", (TPM,), _asks_tpm, _tpms)
