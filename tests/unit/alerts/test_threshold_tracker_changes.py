"""One disk's guard where the ladder, the slot or the disk changes under it; what is plain is in tests/unit."""

import json

import pytest

from agent.alerts.levels import MAX_BYTES, parse_level
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, DiskLayer, ThresholdMode, ThresholdPolicy

LIMIT = 1000
NODE = "storage"


def guard(*levels: str, mode: ThresholdMode = ThresholdMode.ARM) -> ThresholdTracker:
    return ThresholdTracker(ThresholdPolicy(mode, tuple(map(parse_level, levels or ("80%", "90%", "95%")))))


def device(used: int, limit: int = LIMIT, slot: int = 0, path: str = "/dev/vg/lv") -> tuple[DiskLayer, DiskLayer, int]:
    """Return a qcow2 on a logical volume: its format, its storage, and how far that was written."""
    return DiskLayer("format", "qcow2", path, 8 * limit), DiskLayer(NODE, "host_device", path, limit, 0, slot), used


def file(allocated: int, limit: int = LIMIT, slot: int = 0, path: str = "/a.qcow2") -> tuple[DiskLayer, DiskLayer, int]:
    """Return a qcow2 on a file that has no holes."""
    return (
        DiskLayer("format", "qcow2", path, limit),
        DiskLayer(NODE, "file", path, allocated, allocated, slot),
        allocated,
    )


def look(one: ThresholdTracker, disk: tuple[DiskLayer, DiskLayer, int]) -> list[tuple[str, bool, DetectedBy]]:
    return [(c.level.text, c.firing, c.detected_by) for c in one.on_layers(*disk, 0.0)]


def order(one: ThresholdTracker) -> int:
    """Take what the guard wants set; return the value."""
    wanted = one.next_threshold()
    assert wanted is not None
    assert wanted[0] == NODE
    assert one.take_command() == wanted
    return wanted[1]


def restarted(one: ThresholdTracker, *levels: str) -> ThresholdTracker:
    """Return a guard of the next run, which may have other levels."""
    new = guard(*levels)
    new.restore(json.loads(json.dumps(one.to_note())))
    return new


LEVEL = DetectedBy.LEVEL


# --- The ladder changes ---


def test_levels_that_change_their_order_as_the_disk_grows_are_resolved_by_what_they_are() -> None:
    one = guard("80%", "used 900")
    assert look(one, device(850)) == [("80%", True, LEVEL)]
    assert look(one, device(850, limit=2000)) == [("80%", False, LEVEL)]
    assert look(one, device(910, limit=2000)) == [("used 900", True, LEVEL)]


def test_levels_that_the_config_has_no_more_are_resolved_and_new_ones_told() -> None:
    one = guard("80%", "90%")
    assert [text for text, _, _ in look(one, device(920))] == ["80%", "90%"]
    two = restarted(one, "70%", "90%")
    assert look(two, device(920)) == [("70%", True, LEVEL), ("80%", False, LEVEL)]


def test_a_disk_of_which_nothing_is_wanted_any_more_resolves_what_was_told() -> None:
    one = guard()
    look(one, device(850))
    two = ThresholdTracker(ThresholdPolicy(ThresholdMode.OFF, one.policy.levels))
    two.restore(one.to_note())
    assert look(two, device(850)) == [("80%", False, LEVEL)]


def test_a_size_that_is_not_known_for_once_resolves_nothing() -> None:
    one = guard()
    look(one, device(850))
    assert look(one, device(850, limit=0)) == []
    assert not one.on_poll(NODE, 850, 1.0)
    assert look(one, device(850)) == []


def test_a_rung_that_is_held_by_the_hysteresis_does_not_have_the_layers_asked_at_each_poll() -> None:
    one = guard()
    look(one, device(805))
    look(one, device(805, limit=1010))
    assert (one.exceeded_levels, one.on_poll(NODE, 805, 1.0)) == (1, False)


# --- What can fill ---


@pytest.mark.parametrize("driver", ["host_device", "file"])
def test_a_guest_that_writes_to_the_storage_itself_is_not_armed(driver: str) -> None:
    # libvirt leaves the raw layer out where it is not needed: then a write's offset is the guest's own.
    form = DiskLayer(NODE, driver, "/x", LIMIT, 100)
    one = guard()
    assert look(one, (form, form, 990)) == []
    assert one.next_threshold() is None
    assert one.thin is (driver == "file"), "a sparse file has a level all the same"


def test_a_thin_file_that_fills_up_between_two_looks_is_told() -> None:
    one = guard()
    assert look(one, file(100)) == []
    assert [text for text, _, _ in look(one, file(LIMIT + 5))] == ["80%", "90%", "95%"]


def test_a_full_file_is_still_told_of_after_a_restart_and_resolved_when_it_is_replaced_by_a_full_one() -> None:
    one = guard()
    look(one, file(100))
    look(one, file(LIMIT))
    two = restarted(one)
    assert look(two, file(LIMIT)) == []
    assert two.exceeded_levels == 3
    assert {firing for _, firing, _ in look(two, file(LIMIT, path="/preallocated.qcow2"))} == {False}
    assert two.exceeded_levels == 0


# --- The slot ---


@pytest.mark.parametrize("slot", [-1, 1, MAX_BYTES])
def test_any_value_in_the_slot_is_somebodys(slot: int) -> None:
    # QEMU takes a negative number as one past 2^63, and shows it as a negative number.
    layer = DiskLayer.from_values(
        {"node": NODE, "driver": "host_device", "size_bytes": LIMIT, "write_threshold_bytes": slot}
    )
    one = guard()
    look(one, (DiskLayer("format", "qcow2", "", LIMIT), layer, 0))
    assert (one.slot.is_foreign, one.next_threshold()) == (True, None)


@pytest.mark.parametrize("disk", [device, file])
def test_a_threshold_whose_answer_was_lost_is_ours_all_the_same(disk: object) -> None:
    assert callable(disk)
    one = guard()
    look(one, disk(100))
    value = order(one)
    one.on_command_done(done=False)
    assert one.next_threshold() is None, "it is looked at first"
    assert one.on_poll(NODE, 100, 1.0)
    look(one, disk(100, slot=value))
    assert (one.slot.is_foreign, one.slot.threshold) == (False, (NODE, value))


def test_a_threshold_that_is_refused_again_and_again_is_given_up_until_the_storage_is_another() -> None:
    one = guard()
    for _ in range(3):
        look(one, device(100))
        order(one)
        one.on_command_done(done=False)
    look(one, device(100))
    assert one.next_threshold() is None
    form, storage, used = device(100, path="/dev/vg/other")
    storage.node = "other"
    look(one, (form, storage, used))
    assert one.next_threshold() is not None


@pytest.mark.parametrize("disk", [device, file])
def test_an_answer_from_before_the_event_does_not_make_the_slot_somebody_elses(disk: object) -> None:
    assert callable(disk)
    one = guard()
    look(one, disk(100))
    value = order(one)
    one.on_command_done(done=True)
    crossed = [c.level.text for c in one.on_event(NODE, value, 10)]
    assert crossed == ["80%"]
    assert look(one, disk(790, slot=value)) == []
    assert not one.slot.is_foreign
    assert look(one, disk(810)) == []
    assert order(one) == 900


def test_the_threshold_that_is_left_on_a_snapshots_old_storage_is_still_known_as_ours() -> None:
    one = guard()
    look(one, device(100))
    value = order(one)
    look(one, (DiskLayer("format", "qcow2", "/new", 8000), DiskLayer("new", "host_device", "/new", LIMIT), 0))
    assert one.slot.owns(NODE, value)
    assert list(one.on_event(NODE, value, 5)) == [], "a commit wrote to the old one"
    look(one, device(900, slot=value))
    assert (one.slot.is_foreign, one.slot.threshold) == (False, (NODE, value)), "it is the storage again"


def test_a_snapshot_is_no_missed_event() -> None:
    one = guard()
    look(one, device(100))
    order(one)
    found = look(one, (DiskLayer("format", "qcow2", "/new", 8000), DiskLayer("new", "host_device", "/new", LIMIT), 850))
    assert found == [("80%", True, LEVEL)]


# --- Files: an event says how far it was written, not what is allocated ---


def test_a_files_event_tells_no_rung_that_lies_past_what_was_written() -> None:
    one = guard()
    look(one, file(100))
    value = order(one)
    assert value == 800
    form, storage, _ = file(805, slot=value)  # the file system allocates ahead
    storage.size = 790
    assert look(one, (form, storage, 790)) == [("80%", True, LEVEL)]
    assert list(one.on_event(NODE, value, 1)) == []


def test_a_files_event_after_a_discard_tells_nothing_that_is_not_so() -> None:
    one = guard()
    look(one, file(700))
    value = order(one)
    form, storage, _ = file(700, slot=value)
    storage.allocated = 300  # the guest discarded, and the file is as long as it was
    look(one, (form, storage, 700))
    assert list(one.on_event(NODE, value, 10)) == []


def test_a_file_is_looked_at_when_what_was_written_may_have_brought_it_over_the_next_rung() -> None:
    one = guard("used 500000", mode=ThresholdMode.OBSERVE)
    limit = 100_000_000
    look(one, file(499_000, limit))
    assert not one.on_poll(NODE, 499_900, 1.0)
    assert one.on_poll(NODE, 500_100, 2.0), "long before it has grown by a hundredth of its size"


# --- Over restarts ---


def test_what_has_not_been_looked_at_yet_is_remembered_as_it_was() -> None:
    one = guard()
    look(one, device(850))
    order(one)
    two = restarted(one)
    assert two.to_note() == one.to_note()


def test_an_event_that_comes_before_the_first_look_is_told_by_that_look() -> None:
    one = guard()
    look(one, device(100))
    value = order(one)
    two = restarted(one)
    assert two.slot.owns(NODE, value)
    assert list(two.on_event(NODE, value, 5)) == []
    assert look(two, device(805)) == [("80%", True, DetectedBy.MISSED)]


def test_a_qemu_that_counts_from_zero_again_does_not_make_a_disk_emptier_but_another_disk_does() -> None:
    one = guard()
    look(one, device(850))
    two = restarted(one)
    assert look(two, device(0)) == []
    assert two.used == 850
    assert [firing for _, firing, _ in look(two, device(0, path="/dev/vg/b"))] == [False]
    assert look(two, device(0)) == [], "one that comes back may have been made anew"
    assert two.used == 0


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, "80", None])
def test_no_value_that_qemu_cannot_hold_is_recalled(value: object) -> None:
    one = guard()
    one.restore({"threshold": [NODE, value], "own_thresholds": {NODE: value}, "highest_write": ["/dev/vg/lv", value]})
    look(one, device(100))
    assert (one.slot.threshold, one.used) == (None, 100)
    assert order(one) == 800
