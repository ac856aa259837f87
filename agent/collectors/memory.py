"""How much memory a VM has, and in what devices. Asked at attach and when an event says that it changed."""

from collections.abc import Iterable, Iterator
from typing import Any

from agent.collectors.base import Answers, Collector, expect
from agent.collectors.untrusted import objects, text, within
from agent.model.family import Reader, Sample
from agent.model.metrics.memory import MEMORY, MEMORY_DEVICE
from agent.model.record import clean
from agent.qmp.commands import Ask

_read = Reader(MEMORY)
_read_device = Reader(MEMORY_DEVICE)

_MAX_DEVICES = 256  # QEMU has 256 slots


def _collect(answers: Answers) -> Iterable[Sample]:
    summary, devices = expect(answers[0], dict), expect(answers[1], list)
    return [Sample(MEMORY, (), _read(summary)), *_devices(devices)]


def _devices(devices: list[Any]) -> Iterator[Sample]:
    """Yield the devices by their ids, those without one by the memory under them."""
    for device in objects(devices, _MAX_DEVICES):
        data = within(device.get("data"))
        if name := text(data.get("id")) or text(data.get("memdev")):
            yield Sample(MEMORY_DEVICE, (clean(name),), _read_device(device))


COLLECTOR = Collector(
    "memory",
    (MEMORY, MEMORY_DEVICE),
    lambda _facts: (Ask("query-memory-size-summary"), Ask("query-memory-devices")),
    _collect,
)
