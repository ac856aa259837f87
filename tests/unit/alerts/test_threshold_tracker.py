"""The threshold tracker of one thin disk: it reports each level once, and keeps foreign thresholds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.alerts.disk_threshold_types import DetectedBy, ThresholdMode
from agent.alerts.threshold_tracker import ThresholdTracker
from tests.lab.thin_disks import GIB, LEVELS, Disk, arm, fire, policy, poll_layers, summary

EVENT, LEVEL, MISSED = DetectedBy.EVENT, DetectedBy.LEVEL, DetectedBy.MISSED


def polled_tracker(disk: Disk, mode: ThresholdMode = ThresholdMode.ARM) -> ThresholdTracker:
    """Return a tracker after the first poll of a disk."""
    tracker = ThresholdTracker(policy(mode))
    poll_layers(tracker, disk)
    return tracker


# --- Thin disks ---


@pytest.mark.parametrize(
    ("disk", "thin"),
    [
        (Disk(), True),
        (Disk(format_driver="raw"), False),  # a plain logical volume is fully allocated
        (Disk(read_only=True), False),
        (Disk(size=0), False),
        (Disk(driver="file", allocated=GIB), True),
        (Disk(driver="file", allocated=100 * GIB), False),
        (Disk(driver="file", format_driver="raw", allocated=GIB), True),  # a sparse file
    ],
)
def test_only_a_thin_disk_has_levels(disk: Disk, thin: bool) -> None:  # noqa: FBT001 - a table
    tracker = polled_tracker(disk)
    assert tracker.usage.can_run_out_of_space is thin
    assert bool(tracker.applicable_levels) is thin
    assert (tracker.next_threshold() is not None) is (thin and disk.format_driver != "raw")


def test_a_disk_before_the_first_poll_has_no_levels() -> None:
    tracker = ThresholdTracker(policy())
    assert (
        tracker.usage.can_run_out_of_space,
        tracker.applicable_levels,
        tracker.next_threshold(),
        tracker.usage.time_to_full,
    ) == (
        False,
        (),
        None,
        None,
    )


def test_a_disk_with_mode_off_is_left_alone() -> None:
    tracker = polled_tracker(Disk(offset=99 * GIB), ThresholdMode.OFF)
    assert (tracker.applicable_levels, tracker.next_threshold(), tracker.exceeded_level_count) == ((), None, 0)


# --- Levels ---


def test_each_level_is_reported_once_as_usage_grows() -> None:
    disk, tracker = Disk(), polled_tracker(Disk(), ThresholdMode.OBSERVE)
    crossings = []
    for percent in (10, 80, 81, 85, 91, 92, 96, 99, 100):
        disk.write(percent * GIB)
        crossings += poll_layers(tracker, disk)
    assert summary(crossings) == [(level, LEVEL, True) for level in LEVELS]
    assert [crossing.is_highest_of_several_levels for crossing in crossings] == [False, False, True]
    assert [crossing.used for crossing in crossings] == [81 * GIB, 91 * GIB, 96 * GIB]


def test_skipped_levels_are_all_reported_lowest_first() -> None:
    disk, tracker = Disk(), polled_tracker(Disk(), ThresholdMode.OBSERVE)
    disk.write(99 * GIB)
    assert summary(poll_layers(tracker, disk)) == [(level, LEVEL, True) for level in LEVELS]
    assert poll_layers(tracker, disk) == []


def test_hysteresis_keeps_a_level_from_flapping() -> None:
    disk = Disk(driver="file", allocated=10 * GIB)
    tracker = polled_tracker(disk, ThresholdMode.OBSERVE)
    crossings = []
    for allocated in (81, 79, 81, 79, 78, 81):
        disk.allocated = allocated * GIB
        crossings += poll_layers(tracker, disk)
    assert summary(crossings) == [("80%", LEVEL, True), ("80%", LEVEL, False), ("80%", LEVEL, True)]


def test_extending_a_disk_resolves_its_levels() -> None:
    disk, tracker = Disk(offset=96 * GIB), ThresholdTracker(policy())
    assert len(poll_layers(tracker, disk)) == 3
    disk.size = 200 * GIB
    assert summary(poll_layers(tracker, disk)) == [(level, LEVEL, False) for level in reversed(LEVELS)]
    assert tracker.next_threshold() == ("storage", 160 * GIB)


# --- Arming ---


def test_each_fired_threshold_is_followed_by_the_next() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    for number, level in enumerate((80, 90, 95)):
        assert arm(tracker, disk) == level * GIB
        assert tracker.next_threshold() is None
        event = disk.write(level * GIB + 4096)
        assert summary(fire(tracker, event)) == [(LEVELS[number], EVENT, True)]
        assert tracker.usage.offset == level * GIB + 4096
    assert tracker.next_threshold() is None
    assert poll_layers(tracker, disk) == []


def test_one_write_can_exceed_several_levels() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    assert summary(fire(tracker, disk.write(99 * GIB))) == [(level, EVENT, True) for level in LEVELS]


def test_observe_mode_sets_nothing() -> None:
    disk = Disk()
    tracker = polled_tracker(disk, ThresholdMode.OBSERVE)
    assert tracker.next_threshold() is None
    disk.write(81 * GIB)
    assert tracker.on_poll(disk.node, disk.offset, 1)


@pytest.mark.parametrize(("node", "threshold"), [("storage", 79 * GIB), ("other", 80 * GIB)])
def test_an_event_of_another_threshold_is_not_ours(node: str, threshold: int) -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    assert list(tracker.on_event(node, threshold, 1)) == []
    assert tracker.slot.threshold == ("storage", 80 * GIB)


def test_a_write_during_arming_is_detected_by_level() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    wanted = tracker.next_threshold()
    assert wanted is not None
    disk.write(85 * GIB)  # before QEMU sets it
    assert arm(tracker, disk)
    assert tracker.on_poll(disk.node, disk.offset, 1)
    assert summary(poll_layers(tracker, disk)) == [("80%", LEVEL, True)]


def test_a_lost_event_is_reported_as_missed() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    disk.write(81 * GIB)  # the event is lost
    assert summary(poll_layers(tracker, disk)) == [("80%", MISSED, True)]
    assert arm(tracker, disk) == 90 * GIB


def test_a_cleared_threshold_is_set_again() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    disk.slot = 0
    assert poll_layers(tracker, disk) == []
    assert arm(tracker, disk) == 80 * GIB


def test_a_foreign_threshold_is_left_alone_and_levels_are_compared() -> None:
    disk = Disk(slot=12345)
    tracker = polled_tracker(disk)
    assert tracker.slot.is_foreign
    disk.slot = 0  # it fired; its client may set another
    disk.write(81 * GIB)
    assert summary(poll_layers(tracker, disk)) == [("80%", LEVEL, True)]
    assert tracker.next_threshold() is None


def test_a_threshold_that_overwrote_ours_is_left_alone() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    disk.slot = 5 * GIB
    poll_layers(tracker, disk)
    assert (tracker.slot.is_foreign, tracker.slot.threshold, tracker.next_threshold()) == (True, None, None)


def test_a_level_value_in_the_slot_is_ours() -> None:
    disk = Disk(slot=80 * GIB)
    tracker = polled_tracker(disk)
    assert (tracker.slot.is_foreign, tracker.slot.threshold) == (False, ("storage", 80 * GIB))
    assert summary(fire(tracker, disk.write(81 * GIB))) == [("80%", EVENT, True)]


def test_the_storage_of_a_new_snapshot_is_armed() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    arm(tracker, disk)
    disk.node, disk.slot, disk.path, disk.offset = "overlay", 0, "/dev/vg/lv2", 0
    assert tracker.on_poll(disk.node, 0, 1)
    assert poll_layers(tracker, disk) == []
    assert arm(tracker, disk) == 80 * GIB


# --- Files: usage is what is allocated ---


def test_a_files_threshold_is_relative_to_its_end() -> None:
    disk = Disk(driver="file", allocated=10 * GIB, offset=12 * GIB)
    tracker = polled_tracker(disk)
    assert (tracker.usage.used_bytes_measure, tracker.usage.limit, tracker.usage.used_bytes) == (
        "allocated",
        100 * GIB,
        10 * GIB,
    )
    assert arm(tracker, disk) == 12 * GIB + 70 * GIB
    disk.allocated = 81 * GIB
    assert summary(fire(tracker, disk.write(83 * GIB))) == [("80%", EVENT, True)]


def test_a_sparse_raw_file_is_not_armed() -> None:
    assert polled_tracker(Disk(driver="file", format_driver="raw", allocated=GIB)).next_threshold() is None


def test_a_file_is_queried_again_after_it_grew_by_a_share() -> None:
    disk = Disk(driver="file", allocated=GIB, offset=10 * GIB)
    tracker = polled_tracker(disk)
    assert not tracker.on_poll(disk.node, 11 * GIB, 1)
    assert tracker.on_poll(disk.node, 11 * GIB + 1, 2)


# --- Growth ---


def test_growth_rate_covers_the_last_ten_minutes() -> None:
    disk = Disk()
    tracker = polled_tracker(disk)
    assert (tracker.usage.growth.rate, tracker.usage.time_to_full) == (None, None)
    for minute in range(31):
        tracker.on_poll(disk.node, minute * GIB, minute * 60.0)
    assert tracker.usage.growth.rate == pytest.approx(GIB / 60)
    assert tracker.usage.time_to_full == pytest.approx(70 * 60)
    for minute in range(31, 60):
        tracker.on_poll(disk.node, 30 * GIB, minute * 60.0)
    assert (tracker.usage.growth.rate, tracker.usage.time_to_full) == (0, None)


# --- Restarts ---


def test_an_entry_restores_levels_and_the_armed_threshold() -> None:
    disk = Disk()
    first = polled_tracker(disk)
    arm(first, disk)
    fire(first, disk.write(81 * GIB))
    arm(first, disk)
    second = ThresholdTracker(policy())
    second.restore(first.state_to_store())
    assert poll_layers(second, disk) == []
    assert (second.exceeded_level_count, second.slot.threshold) == (1, ("storage", 90 * GIB))
    third = ThresholdTracker(policy())
    third.restore(first.state_to_store())
    disk.write(91 * GIB)  # while no agent ran
    assert summary(poll_layers(third, disk)) == [("90%", MISSED, True)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(st.sampled_from(["exceeded", "threshold", "highest_write"]), v, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_a_tracker_ignores_invalid_entries(kept: object) -> None:
    tracker = ThresholdTracker(policy())
    tracker.restore(kept)
    poll_layers(tracker, Disk(offset=85 * GIB))
    assert tracker.exceeded_level_count == 1


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write_event_lost", "poll", "poll_layers", "arm", "clear"]), st.integers(1, 100)
    ),
    max_size=40,
)


@given(steps)
def test_each_exceeded_level_is_reported_once_in_any_order(script: list[tuple[str, int]]) -> None:
    disk = Disk()
    tracker, crossings = polled_tracker(disk), []
    for now, (step, percent) in enumerate(script):
        match step:
            case "write" | "write_event_lost":
                event = disk.write(percent * GIB)
                if event is not None and step == "write":
                    crossings += fire(tracker, event)
            case "poll" if tracker.on_poll(disk.node, disk.offset, now):
                crossings += poll_layers(tracker, disk, now)
            case "poll_layers":
                crossings += poll_layers(tracker, disk, now)
            case "arm":
                arm(tracker, disk)
            case "clear":
                disk.slot = 0
    crossings += poll_layers(tracker, disk, 1000)
    exceeded = [level.text for level in tracker.applicable_levels if disk.offset > level.bytes]
    assert [crossing.level.text for crossing in crossings] == exceeded
    assert not tracker.slot.is_foreign
