"""Values that QEMU does not report: they are absent, and not 0."""

from agent.alerts.space_metrics import space_figures
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, DiskLayer, ThresholdMode
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_LAYER
from tests.lab.thin_disks import GIB, VM, Disk, alert_manager, policy, poll_layers, summary


def without(sample: Sample, *fields: str) -> DiskLayer:
    return DiskLayer.from_values({name: value for name, value in sample.values.items() if name not in fields})


def test_a_file_whose_allocation_is_unknown_changes_no_level_and_has_no_usage() -> None:
    tracker = ThresholdTracker(policy(ThresholdMode.OBSERVE))
    disk = Disk(allocated=85 * GIB, driver="file", path="/images/a.qcow2")
    assert summary(poll_layers(tracker, disk)) == [("80%", DetectedBy.LEVEL, True)]
    form, storage = (without(sample, "allocated_bytes") for sample in disk.layer_samples())
    assert list(tracker.on_layers(form, storage, disk.offset, 10.0)) == []
    assert "used_bytes" not in space_figures(tracker.usage)
    assert tracker.exceeded_levels == 1
    disk.allocated = 10 * GIB
    assert summary(poll_layers(tracker, disk, 20.0)) == [("80%", DetectedBy.LEVEL, False)]


def test_no_threshold_is_set_while_the_slot_is_unknown() -> None:
    manager, disk = alert_manager(), Disk(offset=50 * GIB)
    manager.on_attached(VM)
    unknown = [
        Sample(sample.family, sample.labels, {k: v for k, v in sample.values.items() if k != "write_threshold_bytes"})
        for sample in disk.layer_samples()
    ]
    families = (BLOCK, BLOCK_LAYER)
    manager.on_samples(VM, [disk.counter_sample(), *unknown], 1.0, 1, families=families)
    assert manager.pending_commands(VM) == []
    manager.on_samples(VM, [disk.counter_sample(), *disk.layer_samples()], 2.0, 2, families=families)
    assert len(manager.pending_commands(VM)) == 1
