"""Size of the guest's memory, and its memory devices: polled at attach and after an event that changes them."""

from collections.abc import Iterable, Iterator
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import MEMORY, MEMORY_DEVICE
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read = FieldReader(MEMORY)
_read_device = FieldReader(MEMORY_DEVICE)

_MAX_DEVICES = 256  # QEMU has 256 slots


def _collect(replies: Replies) -> Iterable[Sample]:
    summary, devices = require_type(replies[0], dict), require_type(replies[1], list)
    return [Sample(MEMORY, (), _read(summary)), *_device_samples(devices)]


def _device_samples(devices: list[Any]) -> Iterator[Sample]:
    """Yield a sample for each memory device. The label is the device's id, or the id of its memory backend if the device has no id."""
    for device in list_of_objects_or_empty(devices, _MAX_DEVICES):
        data = object_or_empty(device.get("data"))
        if name := text_or_empty(data.get("id")) or text_or_empty(data.get("memdev")):
            address = data.get("addr", data.get("memaddr"))
            fields = {"address": address} if type(address) is int else {}
            yield Sample(MEMORY_DEVICE, (sanitize(name),), _read_device(device | fields))


COLLECTOR = Collector(
    "memory",
    (MEMORY, MEMORY_DEVICE),
    lambda _facts: (Command("query-memory-size-summary"), Command("query-memory-devices")),
    _collect,
)
