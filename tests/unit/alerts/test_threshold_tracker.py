"""One thin disk: every rung is told once, however it is detected, and nobody else's threshold is touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, ThresholdMode
from tests.lab.thin_disks import GIB, LEVELS, Disk, arm, fire, policy, poll_layers, summary

EVENT, LEVEL, MISSED = DetectedBy.EVENT, DetectedBy.LEVEL, DetectedBy.MISSED


def seen_tracker(disk: Disk, mode: ThresholdMode = ThresholdMode.ARM) -> ThresholdTracker:
    """Return a tracker that has seen a disk for the first time."""
    tracker = ThresholdTracker(policy(mode))
    poll_layers(tracker, disk)
    return tracker


# --- What can fill ---


@pytest.mark.parametrize(
    ("disk", "thin"),
    [
        (Disk(), True),
        (Disk(format_driver="raw"), False),  # a logical volume as it is: all of it is the guest's from the start
        (Disk(read_only=True), False),
        (Disk(size=0), False),
        (Disk(driver="file", allocated=GIB), True),
        (Disk(driver="file", allocated=100 * GIB), False),
        (Disk(driver="file", format_driver="raw", allocated=GIB), True),  # a sparse file
    ],
)
def test_only_a_disk_that_can_fill_has_a_ladder(disk: Disk, thin: bool) -> None:  # noqa: FBT001 - a table
    tracker = seen_tracker(disk)
    assert tracker.thin is thin
    assert bool(tracker.levels) is thin
    assert (tracker.next_threshold() is not None) is (thin and disk.format_driver != "raw")


def test_a_disk_that_was_not_looked_at_yet_has_none() -> None:
    tracker = ThresholdTracker(policy())
    assert (tracker.thin, tracker.levels, tracker.next_threshold(), tracker.time_to_full) == (False, (), None, None)


def test_a_disk_of_which_nothing_is_wanted_is_left_alone() -> None:
    tracker = seen_tracker(Disk(offset=99 * GIB), ThresholdMode.OFF)
    assert (tracker.levels, tracker.next_threshold(), tracker.exceeded_levels) == ((), None, 0)


# --- Levels ---


def test_every_rung_is_told_once_on_the_way_up_and_the_last_is_the_top() -> None:
    disk, tracker = Disk(), seen_tracker(Disk(), ThresholdMode.OBSERVE)
    crossings = []
    for percent in (10, 80, 81, 85, 91, 92, 96, 99, 100):
        disk.write(percent * GIB)
        crossings += poll_layers(tracker, disk)
    assert summary(crossings) == [(level, LEVEL, True) for level in LEVELS]
    assert [crossing.is_highest for crossing in crossings] == [False, False, True]
    assert [crossing.used for crossing in crossings] == [81 * GIB, 91 * GIB, 96 * GIB]


def test_rungs_that_were_leapt_over_are_all_told_the_lowest_first() -> None:
    disk, tracker = Disk(), seen_tracker(Disk(), ThresholdMode.OBSERVE)
    disk.write(99 * GIB)
    assert summary(poll_layers(tracker, disk)) == [(level, LEVEL, True) for level in LEVELS]
    assert poll_layers(tracker, disk) == []


def test_a_disk_that_wavers_about_a_rung_is_told_once_and_resolved_once_it_is_well_below() -> None:
    disk = Disk(driver="file", allocated=10 * GIB)
    tracker = seen_tracker(disk, ThresholdMode.OBSERVE)
    crossings = []
    for allocated in (81, 79, 81, 79, 78, 81):
        disk.allocated = allocated * GIB
        crossings += poll_layers(tracker, disk)
    assert summary(crossings) == [("80%", LEVEL, True), ("80%", LEVEL, False), ("80%", LEVEL, True)]


def test_a_disk_that_was_made_larger_resolves_what_no_longer_holds() -> None:
    disk, tracker = Disk(offset=96 * GIB), ThresholdTracker(policy())
    assert len(poll_layers(tracker, disk)) == 3
    disk.size = 200 * GIB
    assert summary(poll_layers(tracker, disk)) == [(level, LEVEL, False) for level in reversed(LEVELS)]
    assert tracker.next_threshold() == ("storage", 160 * GIB)


# --- Arming ---


def test_the_next_rung_is_set_and_when_it_fires_the_one_after_it() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    for number, level in enumerate((80, 90, 95)):
        assert arm(tracker, disk) == level * GIB
        assert tracker.next_threshold() is None
        event = disk.write(level * GIB + 4096)
        assert summary(fire(tracker, event)) == [(LEVELS[number], EVENT, True)]
        assert tracker.offset == level * GIB + 4096
    assert tracker.next_threshold() is None
    assert poll_layers(tracker, disk) == []


def test_one_write_past_several_rungs_tells_them_all() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    assert summary(fire(tracker, disk.write(99 * GIB))) == [(level, EVENT, True) for level in LEVELS]


def test_observing_sets_nothing() -> None:
    disk = Disk()
    tracker = seen_tracker(disk, ThresholdMode.OBSERVE)
    assert tracker.next_threshold() is None
    disk.write(81 * GIB)
    assert tracker.on_poll(disk.node, disk.offset, 1)


@pytest.mark.parametrize(("node", "threshold"), [("storage", 79 * GIB), ("other", 80 * GIB)])
def test_an_event_of_another_threshold_is_not_ours(node: str, threshold: int) -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    assert list(tracker.on_event(node, threshold, 1)) == []
    assert tracker.slot.threshold == ("storage", 80 * GIB)


def test_a_write_that_passed_the_rung_while_it_was_being_set_is_seen_by_its_level() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    wanted = tracker.next_threshold()
    assert wanted is not None
    disk.write(85 * GIB)  # before QEMU has set it
    assert arm(tracker, disk)
    assert tracker.on_poll(disk.node, disk.offset, 1)
    assert summary(poll_layers(tracker, disk)) == [("80%", LEVEL, True)]


def test_a_threshold_that_fired_unheard_is_missed_and_the_next_is_set() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    disk.write(81 * GIB)  # its event is lost
    assert summary(poll_layers(tracker, disk)) == [("80%", MISSED, True)]
    assert arm(tracker, disk) == 90 * GIB


def test_a_threshold_that_somebody_cleared_is_set_again() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    disk.slot = 0
    assert poll_layers(tracker, disk) == []
    assert arm(tracker, disk) == 80 * GIB


def test_somebody_elses_threshold_is_left_alone_and_levels_are_compared_instead() -> None:
    disk = Disk(slot=12345)
    tracker = seen_tracker(disk)
    assert tracker.slot.is_foreign
    disk.slot = 0  # it fired; whoever set it will set another
    disk.write(81 * GIB)
    assert summary(poll_layers(tracker, disk)) == [("80%", LEVEL, True)]
    assert tracker.next_threshold() is None


def test_a_threshold_that_somebody_put_over_ours_is_left_alone() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    disk.slot = 5 * GIB
    poll_layers(tracker, disk)
    assert (tracker.slot.is_foreign, tracker.slot.threshold, tracker.next_threshold()) == (True, None, None)


def test_a_rungs_own_value_in_the_slot_is_ours_from_a_run_that_could_not_remember() -> None:
    disk = Disk(slot=80 * GIB)
    tracker = seen_tracker(disk)
    assert (tracker.slot.is_foreign, tracker.slot.threshold) == (False, ("storage", 80 * GIB))
    assert summary(fire(tracker, disk.write(81 * GIB))) == [("80%", EVENT, True)]


def test_after_a_snapshot_the_new_storage_is_looked_at_and_armed() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    arm(tracker, disk)
    disk.node, disk.slot, disk.path, disk.offset = "overlay", 0, "/dev/vg/lv2", 0
    assert tracker.on_poll(disk.node, 0, 1)
    assert poll_layers(tracker, disk) == []
    assert arm(tracker, disk) == 80 * GIB


# --- Files, of which what is allocated counts ---


def test_a_files_threshold_lies_as_far_past_its_end_as_the_rung_lies_past_what_is_allocated() -> None:
    disk = Disk(driver="file", allocated=10 * GIB, offset=12 * GIB)
    tracker = seen_tracker(disk)
    assert (tracker.measure, tracker.limit, tracker.used) == ("allocated", 100 * GIB, 10 * GIB)
    assert arm(tracker, disk) == 12 * GIB + 70 * GIB
    disk.allocated = 81 * GIB
    assert summary(fire(tracker, disk.write(83 * GIB))) == [("80%", EVENT, True)]


def test_a_sparse_raw_file_is_not_armed_since_an_offset_says_nothing_of_it() -> None:
    assert seen_tracker(Disk(driver="file", format_driver="raw", allocated=GIB)).next_threshold() is None


def test_a_file_is_looked_at_again_when_it_was_written_a_share_further() -> None:
    disk = Disk(driver="file", allocated=GIB, offset=10 * GIB)
    tracker = seen_tracker(disk)
    assert not tracker.on_poll(disk.node, 11 * GIB, 1)
    assert tracker.on_poll(disk.node, 11 * GIB + 1, 2)


# --- Growth ---


def test_how_fast_it_grows_and_when_it_is_full_are_of_the_last_ten_minutes() -> None:
    disk = Disk()
    tracker = seen_tracker(disk)
    assert (tracker.growth_rate, tracker.time_to_full) == (None, None)
    for minute in range(31):
        tracker.on_poll(disk.node, minute * GIB, minute * 60.0)
    assert tracker.growth_rate == pytest.approx(GIB / 60)
    assert tracker.time_to_full == pytest.approx(70 * 60)
    for minute in range(31, 60):
        tracker.on_poll(disk.node, 30 * GIB, minute * 60.0)
    assert (tracker.growth_rate, tracker.time_to_full) == (0, None)


# --- Over restarts ---


def test_what_was_told_is_not_told_again_after_a_restart_and_what_was_armed_is_known() -> None:
    disk = Disk()
    first = seen_tracker(disk)
    arm(first, disk)
    fire(first, disk.write(81 * GIB))
    arm(first, disk)
    second = ThresholdTracker(policy())
    second.restore(first.to_note())
    assert poll_layers(second, disk) == []
    assert (second.exceeded_levels, second.slot.threshold) == (1, ("storage", 90 * GIB))
    third = ThresholdTracker(policy())
    third.restore(first.to_note())
    disk.write(91 * GIB)  # while nobody watched
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
def test_whatever_was_kept_a_guard_works(kept: object) -> None:
    tracker = ThresholdTracker(policy())
    tracker.restore(kept)
    poll_layers(tracker, Disk(offset=85 * GIB))
    assert tracker.exceeded_levels == 1


steps = st.lists(
    st.tuples(st.sampled_from(["write", "lost write", "poll", "look", "arm", "clear"]), st.integers(1, 100)),
    max_size=40,
)


@given(steps)
def test_whatever_happens_every_rung_that_is_passed_is_told_just_once(script: list[tuple[str, int]]) -> None:
    disk = Disk()
    tracker, fired = seen_tracker(disk), []
    for now, (step, percent) in enumerate(script):
        match step:
            case "write" | "lost write":
                event = disk.write(percent * GIB)
                if event is not None and step == "write":
                    fired += fire(tracker, event)
            case "poll" if tracker.on_poll(disk.node, disk.offset, now):
                fired += poll_layers(tracker, disk, now)
            case "look":
                fired += poll_layers(tracker, disk, now)
            case "arm":
                arm(tracker, disk)
            case "clear":
                disk.slot = 0
    fired += poll_layers(tracker, disk, 1000)
    passed = [level.text for level in tracker.levels if disk.offset > level.bytes]
    assert [crossing.level.text for crossing in fired] == passed
    assert not tracker.slot.is_foreign
