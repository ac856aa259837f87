"""BLOCK_WRITE_THRESHOLD, which names a node, told as an alert, which names a disk. Pure.

QEMU unsets the threshold when it fires, so each event is one crossing: whoever armed it has been told once.
"""

from collections.abc import Iterable

from agent.catalogue.metrics import BLOCK, WRITE_THRESHOLD
from agent.catalogue.model import Reader, Sample
from agent.record import Record, Severity, Vm

_read = Reader(WRITE_THRESHOLD)

MAX_NODES = 4096
"""How many block nodes of one VM are known by disk."""

Place = tuple[str, str]
"""A disk and a layer of it: `format` is its top node, `storage` what lies under that, `node` one that belongs to no known disk."""


class WriteThresholds:
    """Turns the events of many VMs into alerts, by what the samples say of their disks."""

    def __init__(self) -> None:
        self._places: dict[Vm, dict[str, Place]] = {}
        self._counts: dict[Vm, dict[Place, int]] = {}

    def learn(self, vm: Vm, samples: Iterable[Sample]) -> None:
        """Take the disks of a VM as they are now."""
        places: dict[str, Place] = {}
        for sample in samples:
            if sample.family is BLOCK and len(places) < MAX_NODES:
                places[sample.values.get("storage_node", "")] = (sample.subject, "storage")
                places[sample.values.get("node", "")] = (sample.subject, "format")
        places.pop("", None)
        self._places[vm] = places

    def forget(self, vm: Vm) -> None:
        """Let a VM go."""
        self._places.pop(vm, None)
        self._counts.pop(vm, None)

    def exceeded(self, event: Record) -> tuple[Record, Sample]:
        """Return the alert that an event makes, and the sample that tells it in series."""
        values = _read(event.data["qemu"])
        place = self._places.get(event.vm, {}).get(event.subject, (event.subject, "node"))
        counts = self._counts.setdefault(event.vm, {})
        if place not in counts and len(counts) >= MAX_NODES:
            counts.clear()
        counts[place] = counts.get(place, 0) + 1
        device, layer = place
        data = {
            "alert": "write_threshold",
            "state": "firing",
            "learnt": "event",
            "device": device,
            "layer": layer,
            **values,
        }
        alert = Record("qemu.alert.write_threshold", event.vm, data, event.time_ns, device, Severity.WARNING)
        return alert, Sample(WRITE_THRESHOLD, place, values | {"alerts_total": counts[place]})
