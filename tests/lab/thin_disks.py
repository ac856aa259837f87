"""A model of a thin disk with QEMU's write-threshold slot, for tests of alerts."""

from dataclasses import dataclass
from typing import Any

from agent.alerts.disk_levels import parse_disk_level
from agent.alerts.disk_threshold_types import (
    DetectedBy,
    DiskLayer,
    DiskLevelCrossing,
    DiskThresholdPolicy,
    ThresholdMode,
)
from agent.alerts.engine import AlertEngine
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Record, Vm
from agent.session.identity_and_features import identify

GIB = 1 << 30
HOST = "host1"
VM = identify(HOST, "/run/vm1.qmp", [{"UUID": "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"}, {"name": "vm1"}])
LEVELS = ("80%", "90%", "95%")


def policy(mode: ThresholdMode = ThresholdMode.ARM, *levels: str, hysteresis: float = 0.02) -> DiskThresholdPolicy:
    return DiskThresholdPolicy(mode, tuple(map(parse_disk_level, levels or LEVELS)), hysteresis)


@dataclass
class Disk:
    """A thin disk: by default qcow2 on a logical volume of 100 GiB. `write` behaves like QEMU."""

    size: int = 100 * GIB
    offset: int = 0
    allocated: int = 0
    slot: int = 0
    node: str = "storage"
    driver: str = "host_device"
    format_node: str = "format"
    format_driver: str = "qcow2"
    path: str = "/dev/vg/lv"
    read_only: bool = False
    corrupt: bool = False

    def write(self, end: int) -> dict[str, Any] | None:
        """Write up to the offset `end`. Return the data of QEMU's event if the write exceeds the threshold, else None."""
        event = None
        if self.slot and end > self.slot:
            event = {"node-name": self.node, "amount-exceeded": end - self.slot, "write-threshold": self.slot}
            self.slot = 0
        self.offset = max(self.offset, end)
        return event

    def layers(self) -> tuple[DiskLayer, DiskLayer]:
        """Return the format layer and the storage layer."""
        storage_size = self.size if self.driver == "host_device" else max(self.offset, self.allocated)
        form = DiskLayer(self.format_node, self.format_driver, self.path, self.size, self.allocated, 0, self.read_only)
        return form, DiskLayer(
            self.node, self.driver, self.path, storage_size, self.allocated, self.slot, self.read_only
        )

    def layer_samples(self, device: str = "disk0") -> list[Sample]:
        """Return the samples that the `nodes` collector would make of a disk."""
        samples = []
        for name, layer in zip(("format", "storage"), self.layers(), strict=True):
            values = {"node": layer.node, "driver": layer.driver, "path": layer.path, "size_bytes": layer.size}
            values |= {
                "allocated_bytes": layer.allocated,
                "write_threshold_bytes": layer.write_threshold,
                "read_only": layer.read_only,
                "corrupt": self.corrupt and name == "format",
            }
            samples.append(Sample(BLOCK_LAYER, (device, name), values))
        return samples

    def counter_sample(self, device: str = "disk0") -> Sample:
        """Return the sample of the `block` collector."""
        values = {
            "node": self.format_node,
            "storage_node": self.node,
            "storage_write_highest_offset_bytes": self.offset,
        }
        return Sample(BLOCK, (device,), values)


def poll_layers(tracker: ThresholdTracker, disk: Disk, now: float = 0.0) -> list[DiskLevelCrossing]:
    """Pass the disk's present layers to a tracker, and return the levels that were crossed."""
    return list(tracker.on_layers(*disk.layers(), disk.offset, now))


def arm(tracker: ThresholdTracker, disk: Disk) -> int:
    """Set the tracker's next threshold in the disk's slot. Return the threshold in bytes; 0 if the tracker sets none."""
    threshold = tracker.mark_next_threshold_as_set()
    if threshold is None:
        return 0
    node, disk.slot = threshold
    assert node == disk.node
    return disk.slot


def fire(tracker: ThresholdTracker, event: dict[str, Any] | None) -> list[DiskLevelCrossing]:
    """Pass a BLOCK_WRITE_THRESHOLD event to a tracker, and return the levels that were crossed."""
    assert event is not None
    return list(tracker.on_event(event["node-name"], event["write-threshold"], event["amount-exceeded"]))


def summary(crossings: list[DiskLevelCrossing]) -> list[tuple[str, DetectedBy, bool]]:
    return [(crossing.level.text, crossing.detected_by, crossing.firing) for crossing in crossings]


def alert_manager(mode: ThresholdMode = ThresholdMode.ARM, *levels: str) -> AlertEngine:
    return AlertEngine(HOST, lambda _vm, _disk: policy(mode, *levels))


def threshold_record(data: dict[str, Any] | None, vm: Vm = VM, time_ns: int = 5) -> Record:
    """Return the record of a BLOCK_WRITE_THRESHOLD event."""
    body = {"event": "BLOCK_WRITE_THRESHOLD", "category": "block", "qemu": data}
    return Record("qemu.event.block_write_threshold", vm, body, time_ns, (data or {}).get("node-name", ""))
