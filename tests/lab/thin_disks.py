"""Thin disks for tests, and a QEMU's threshold slot as QEMU itself keeps it."""

from dataclasses import dataclass
from typing import Any

from agent.alerts.levels import parse_level
from agent.alerts.manager import AlertManager
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, DiskLayer, LevelCrossing, ThresholdMode, ThresholdPolicy
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_LAYER
from agent.model.record import Record, Vm
from agent.session.identity import who

GIB = 1 << 30
HOST = "host1"
VM = who(HOST, "/run/vm1.qmp", [{"UUID": "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"}, {"name": "vm1"}])
LEVELS = ("80%", "90%", "95%")


def plan(mode: ThresholdMode = ThresholdMode.ARM, *levels: str, hysteresis: float = 0.02) -> ThresholdPolicy:
    return ThresholdPolicy(mode, tuple(map(parse_level, levels or LEVELS)), hysteresis)


@dataclass
class Disk:
    """A qcow2 on a logical volume of 100 GiB, unless told otherwise; `write` does what QEMU does."""

    size: int = 100 * GIB
    offset: int = 0
    allocated: int = 0
    slot: int = 0
    node: str = "storage"
    driver: str = "host_device"
    above: str = "qcow2"
    path: str = "/dev/vg/lv"
    read_only: bool = False

    def write(self, to: int) -> dict[str, Any] | None:
        """Write up to there; return the event that QEMU sends of it, if any."""
        event = None
        if self.slot and to > self.slot:
            event = {"node-name": self.node, "amount-exceeded": to - self.slot, "write-threshold": self.slot}
            self.slot = 0
        self.offset = max(self.offset, to)
        return event

    def layers(self) -> tuple[DiskLayer, DiskLayer]:
        """Return its format and its storage."""
        storage_size = self.size if self.driver == "host_device" else max(self.offset, self.allocated)
        form = DiskLayer("format", self.above, self.path, self.size, self.allocated, 0, self.read_only)
        return form, DiskLayer(
            self.node, self.driver, self.path, storage_size, self.allocated, self.slot, self.read_only
        )

    def samples(self, device: str = "disk0") -> list[Sample]:
        """Return what the collector of layers says of it."""
        made = []
        for name, layer in zip(("format", "storage"), self.layers(), strict=True):
            values = {"node": layer.node, "driver": layer.driver, "path": layer.path, "size_bytes": layer.size}
            values |= {
                "allocated_bytes": layer.allocated,
                "write_threshold_bytes": layer.slot,
                "read_only": layer.read_only,
            }
            made.append(Sample(BLOCK_LAYER, (device, name), values))
        return made

    def statistics(self, device: str = "disk0") -> Sample:
        """Return what the collector of statistics says of it."""
        values = {"node": "format", "storage_node": self.node, "storage_write_highest_offset_bytes": self.offset}
        return Sample(BLOCK, (device,), values)


def look(guard: ThresholdTracker, disk: Disk, now: float = 0.0) -> list[LevelCrossing]:
    """Have a guard see the layers as they are."""
    return list(guard.layers(*disk.layers(), disk.offset, now))


def arm(guard: ThresholdTracker, disk: Disk) -> int:
    """Do what a guard wants in QEMU; return the value that was set, or 0."""
    wanted = guard.wanted()
    if wanted is None:
        return 0
    guard.armed = wanted
    node, disk.slot = wanted
    assert node == disk.node
    return disk.slot


def fire(guard: ThresholdTracker, event: dict[str, Any] | None) -> list[LevelCrossing]:
    """Have a guard hear an event."""
    assert event is not None
    return list(guard.fired(event["node-name"], event["write-threshold"], event["amount-exceeded"]))


def told(crossings: list[LevelCrossing]) -> list[tuple[str, DetectedBy, bool]]:
    return [(crossing.rung.text, crossing.detected_by, crossing.firing) for crossing in crossings]


def alert_manager(mode: ThresholdMode = ThresholdMode.ARM, *levels: str) -> AlertManager:
    return AlertManager(HOST, lambda _vm, _disk: plan(mode, *levels))


def crossed(data: dict[str, Any] | None, vm: Vm = VM, time_ns: int = 5) -> Record:
    """Return the record of a threshold's event."""
    body = {"event": "BLOCK_WRITE_THRESHOLD", "category": "block", "qemu": data}
    return Record("qemu.event.block_write_threshold", vm, body, time_ns, (data or {}).get("node-name", ""))
