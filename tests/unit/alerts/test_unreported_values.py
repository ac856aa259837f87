"""Values that QEMU does not report: they are absent, and not 0."""

from agent.alerts.disk_space_values import disk_space_values
from agent.alerts.disk_threshold_types import DetectedBy, DiskLayer, ThresholdMode
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.collectors.base import MAX_SAMPLES
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
    assert "used_bytes" not in disk_space_values(tracker.usage)
    assert tracker.exceeded_level_count == 1
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
    manager.on_disk_samples(VM, [disk.counter_sample(), *unknown], 1.0, 1, families=families)
    assert manager.threshold_commands.pop_pending_commands(VM) == []
    manager.on_disk_samples(VM, [disk.counter_sample(), *disk.layer_samples()], 2.0, 2, families=families)
    assert len(manager.threshold_commands.pop_pending_commands(VM)) == 1


def test_a_disk_beyond_the_samples_of_a_truncated_reply_is_not_unplugged() -> None:
    manager, disk = alert_manager(ThresholdMode.OBSERVE), Disk(offset=85 * GIB)
    manager.on_attached(VM)
    families = (BLOCK, BLOCK_LAYER)
    fired, _ = manager.on_disk_samples(VM, [disk.counter_sample(), *disk.layer_samples()], 1.0, 1, families=families)
    assert [alert.record.data["state"] for alert in fired] == ["firing"]
    others = [
        sample
        for number in range(MAX_SAMPLES // 2)
        for sample in Disk(path="/dev/vg/b", node="b").layer_samples(f"other{number}")
    ]
    assert manager.on_disk_samples(VM, others, 2.0, 2, families=families)[0] == []
    (resolved, *_), _ = manager.on_disk_samples(VM, others[:-2], 3.0, 3, families=families)
    assert resolved.record.data["resolved_by"] == "unplugged"
