"""The threshold tracker of a disk whose levels, slot or storage change."""

import json

import pytest

from agent.alerts.disk_levels import MAX_SIZE_BYTES, parse_disk_level
from agent.alerts.disk_threshold_types import (
    DetectedBy,
    DiskLayer,
    DiskThresholdPolicy,
    LevelResolvedReason,
    ThresholdMode,
)
from agent.alerts.threshold_tracker import MAX_EXCEEDED_LEVELS, ThresholdTracker

LIMIT = 1000
NODE = "storage"


def new_tracker(*levels: str, mode: ThresholdMode = ThresholdMode.ARM) -> ThresholdTracker:
    return ThresholdTracker(DiskThresholdPolicy(mode, tuple(map(parse_disk_level, levels or ("80%", "90%", "95%")))))


def disk_on_device(
    used: int, limit: int = LIMIT, slot: int = 0, path: str = "/dev/vg/lv"
) -> tuple[DiskLayer, DiskLayer, int]:
    """Return a qcow2 image on a logical volume: its format, its storage, and the highest write offset."""
    return DiskLayer("format", "qcow2", path, 8 * limit), DiskLayer(NODE, "host_device", path, limit, 0, slot), used


def disk_in_file(
    allocated: int, limit: int = LIMIT, slot: int = 0, path: str = "/a.qcow2"
) -> tuple[DiskLayer, DiskLayer, int]:
    """Return a qcow2 image in a file without holes."""
    return (
        DiskLayer("format", "qcow2", path, limit),
        DiskLayer(NODE, "file", path, allocated, allocated, slot),
        allocated,
    )


def poll_layers(
    tracker: ThresholdTracker, disk: tuple[DiskLayer, DiskLayer, int]
) -> list[tuple[str, bool, DetectedBy]]:
    return [(c.level.text, c.firing, c.detected_by) for c in tracker.on_layers(*disk, 0.0)]


def arm(tracker: ThresholdTracker) -> int:
    """Take the next threshold as set; return its value."""
    threshold = tracker.next_threshold()
    assert threshold is not None
    assert threshold[0] == NODE
    assert tracker.mark_next_threshold_as_set() == threshold
    return threshold[1]


def tracker_of_next_run(tracker: ThresholdTracker, *levels: str) -> ThresholdTracker:
    """Return the tracker of the next run, with other levels if given."""
    new = new_tracker(*levels)
    new.restore(json.loads(json.dumps(tracker.state_to_store())))
    return new


BY_LEVEL = DetectedBy.LEVEL


# --- Levels that change ---


def test_levels_are_identified_by_text_when_order_changes() -> None:
    tracker = new_tracker("80%", "used 900")
    assert poll_layers(tracker, disk_on_device(850)) == [("80%", True, BY_LEVEL)]
    assert poll_layers(tracker, disk_on_device(850, limit=2000)) == [("80%", False, BY_LEVEL)]
    assert poll_layers(tracker, disk_on_device(910, limit=2000)) == [("used 900", True, BY_LEVEL)]


def test_removed_levels_are_resolved_and_new_ones_reported() -> None:
    tracker = new_tracker("80%", "90%")
    assert [text for text, _, _ in poll_layers(tracker, disk_on_device(920))] == ["80%", "90%"]
    restored = tracker_of_next_run(tracker, "70%", "90%")
    assert poll_layers(restored, disk_on_device(920)) == [("70%", True, BY_LEVEL), ("80%", False, BY_LEVEL)]


def test_mode_off_resolves_exceeded_levels() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(850))
    restored = ThresholdTracker(DiskThresholdPolicy(ThresholdMode.OFF, tracker.policy.levels))
    restored.restore(tracker.state_to_store())
    assert poll_layers(restored, disk_on_device(850)) == [("80%", False, BY_LEVEL)]


def test_a_level_is_resolved_by_space_or_because_it_is_gone() -> None:
    tracker = new_tracker("70%", "80%")
    poll_layers(tracker, disk_on_device(850))
    (space,) = tracker.on_layers(*disk_on_device(850, limit=1100), 0.0)
    assert (space.level.text, space.resolved_by) == ("80%", LevelResolvedReason.SPACE)
    tracker.policy = DiskThresholdPolicy(ThresholdMode.ARM, ())
    (gone,) = tracker.on_layers(*disk_on_device(850), 0.0)
    assert (gone.level.text, gone.resolved_by) == ("70%", LevelResolvedReason.LEVEL_GONE)


def test_an_entry_restores_a_limited_number_of_exceeded_levels() -> None:
    tracker = new_tracker()
    tracker.restore({"exceeded": [5, *(f"used {number}" for number in range(2 * MAX_EXCEEDED_LEVELS))]})
    assert tracker.exceeded_level_count == MAX_EXCEEDED_LEVELS - 1, "5 is no level"


def test_an_unknown_size_resolves_nothing() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(850))
    assert poll_layers(tracker, disk_on_device(850, limit=0)) == []
    assert not tracker.on_poll(NODE, 850, 1.0)
    assert poll_layers(tracker, disk_on_device(850)) == []


def test_hysteresis_does_not_cause_layer_queries() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(805))
    poll_layers(tracker, disk_on_device(805, limit=1010))
    assert (tracker.exceeded_level_count, tracker.on_poll(NODE, 805, 1.0)) == (1, False)


# --- Thin disks ---


@pytest.mark.parametrize("driver", ["host_device", "file"])
def test_storage_without_a_format_layer_is_not_armed(driver: str) -> None:
    # libvirt omits the raw layer where it is not needed. A write offset is the guest's own then.
    form = DiskLayer(NODE, driver, "/x", LIMIT, 100)
    tracker = new_tracker()
    assert poll_layers(tracker, (form, form, 990)) == []
    assert tracker.next_threshold() is None
    assert tracker.usage.can_run_out_of_space is (driver == "file"), "a sparse file has levels"


def test_a_thin_file_that_fills_between_polls_is_reported() -> None:
    tracker = new_tracker()
    assert poll_layers(tracker, disk_in_file(100)) == []
    assert [text for text, _, _ in poll_layers(tracker, disk_in_file(LIMIT + 5))] == ["80%", "90%", "95%"]


def test_a_full_file_fires_until_a_preallocated_one_replaces_it() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_in_file(100))
    poll_layers(tracker, disk_in_file(LIMIT))
    restored = tracker_of_next_run(tracker)
    assert poll_layers(restored, disk_in_file(LIMIT)) == []
    assert restored.exceeded_level_count == 3
    assert {firing for _, firing, _ in poll_layers(restored, disk_in_file(LIMIT, path="/preallocated.qcow2"))} == {
        False
    }
    assert restored.exceeded_level_count == 0


# --- The slot ---


@pytest.mark.parametrize("slot", [-1, 1, MAX_SIZE_BYTES])
def test_any_unknown_value_in_the_slot_is_foreign(slot: int) -> None:
    # QEMU accepts a negative number as a value above 2^63, and reports it as negative.
    layer = DiskLayer.from_values(
        {"node": NODE, "driver": "host_device", "size_bytes": LIMIT, "write_threshold_bytes": slot}
    )
    tracker = new_tracker()
    poll_layers(tracker, (DiskLayer("format", "qcow2", "", LIMIT), layer, 0))
    assert (tracker.slot.is_foreign, tracker.next_threshold()) == (True, None)


@pytest.mark.parametrize("disk", [disk_on_device, disk_in_file])
def test_a_threshold_with_a_lost_response_is_ours(disk: object) -> None:
    assert callable(disk)
    tracker = new_tracker()
    poll_layers(tracker, disk(100))
    value = arm(tracker)
    tracker.on_command_done(done=False)
    assert tracker.next_threshold() is None, "the slot is read first"
    assert tracker.on_poll(NODE, 100, 1.0)
    poll_layers(tracker, disk(100, slot=value))
    assert (tracker.slot.is_foreign, tracker.slot.threshold) == (False, (NODE, value))


def test_a_refused_threshold_is_given_up_for_that_node() -> None:
    tracker = new_tracker()
    for _ in range(3):
        poll_layers(tracker, disk_on_device(100))
        arm(tracker)
        tracker.on_command_done(done=False)
    poll_layers(tracker, disk_on_device(100))
    assert tracker.next_threshold() is None
    form, storage, used = disk_on_device(100, path="/dev/vg/other")
    storage.node = "other"
    poll_layers(tracker, (form, storage, used))
    assert tracker.next_threshold() is not None


@pytest.mark.parametrize("disk", [disk_on_device, disk_in_file])
def test_a_reply_older_than_the_event_keeps_the_slot_ours(disk: object) -> None:
    assert callable(disk)
    tracker = new_tracker()
    poll_layers(tracker, disk(100))
    value = arm(tracker)
    tracker.on_command_done(done=True)
    levels = [c.level.text for c in tracker.on_event(NODE, value, 10)]
    assert levels == ["80%"]
    assert poll_layers(tracker, disk(790, slot=value)) == []
    assert not tracker.slot.is_foreign
    assert poll_layers(tracker, disk(810)) == []
    assert arm(tracker) == 900


def test_a_threshold_left_on_a_backing_file_is_still_ours() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(100))
    value = arm(tracker)
    poll_layers(
        tracker, (DiskLayer("format", "qcow2", "/new", 8000), DiskLayer("new", "host_device", "/new", LIMIT), 0)
    )
    assert tracker.slot.was_set_by_agent(NODE, value)
    assert list(tracker.on_event(NODE, value, 5)) == [], "a commit wrote to the old storage"
    poll_layers(tracker, disk_on_device(900, slot=value))
    assert (tracker.slot.is_foreign, tracker.slot.threshold) == (False, (NODE, value)), (
        "the old storage is in use again"
    )


def test_a_snapshot_is_not_a_missed_event() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(100))
    arm(tracker)
    crossings = poll_layers(
        tracker, (DiskLayer("format", "qcow2", "/new", 8000), DiskLayer("new", "host_device", "/new", LIMIT), 850)
    )
    assert crossings == [("80%", True, BY_LEVEL)]


# --- Files: an event has the write offset, not the allocated bytes ---


def test_a_files_event_reports_no_level_beyond_the_write() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_in_file(100))
    value = arm(tracker)
    assert value == 800
    form, storage, _ = disk_in_file(805, slot=value)  # the file system preallocates
    storage.size = 790
    assert poll_layers(tracker, (form, storage, 790)) == [("80%", True, BY_LEVEL)]
    assert list(tracker.on_event(NODE, value, 1)) == []


def test_a_files_event_after_a_discard_reports_nothing_false() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_in_file(700))
    value = arm(tracker)
    form, storage, _ = disk_in_file(700, slot=value)
    storage.allocated = 300  # the guest discarded; the file keeps its length
    poll_layers(tracker, (form, storage, 700))
    assert list(tracker.on_event(NODE, value, 10)) == []


def test_a_file_near_the_next_level_is_queried_early() -> None:
    tracker = new_tracker("used 500000", mode=ThresholdMode.OBSERVE)
    limit = 100_000_000
    poll_layers(tracker, disk_in_file(499_000, limit))
    assert not tracker.on_poll(NODE, 499_900, 1.0)
    assert tracker.on_poll(NODE, 500_100, 2.0), "well before it has grown by 1 % of its size"


# --- Restarts ---


def test_an_entry_before_the_first_poll_is_unchanged() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(850))
    arm(tracker)
    restored = tracker_of_next_run(tracker)
    assert restored.state_to_store() == tracker.state_to_store()


def test_an_event_before_the_first_poll_is_reported_by_it() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(100))
    value = arm(tracker)
    restored = tracker_of_next_run(tracker)
    assert restored.slot.was_set_by_agent(NODE, value)
    assert list(restored.on_event(NODE, value, 5)) == []
    assert poll_layers(restored, disk_on_device(805)) == [("80%", True, DetectedBy.MISSED)]


def test_a_reopened_image_keeps_its_usage() -> None:
    tracker = new_tracker()
    poll_layers(tracker, disk_on_device(850))
    restored = tracker_of_next_run(tracker)
    assert poll_layers(restored, disk_on_device(0)) == []
    assert restored.usage.used_bytes == 850
    assert [firing for _, firing, _ in poll_layers(restored, disk_on_device(0, path="/dev/vg/b"))] == [False]
    assert poll_layers(restored, disk_on_device(0)) == [], "an image that returns may be a new one"
    assert restored.usage.used_bytes == 0


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, "80", None])
def test_values_outside_qemus_range_are_not_restored(value: object) -> None:
    tracker = new_tracker()
    tracker.restore(
        {"threshold": [NODE, value], "own_thresholds": {NODE: value}, "highest_write": ["/dev/vg/lv", value]}
    )
    poll_layers(tracker, disk_on_device(100))
    assert (tracker.slot.threshold, tracker.usage.used_bytes) == (None, 100)
    assert arm(tracker) == 800
