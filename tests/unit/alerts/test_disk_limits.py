"""The limit of a disk: the least of its device, its own size and the free space of its pool."""

from dataclasses import replace

import pytest

from agent.alerts.disk_space_values import disk_space_values, space_sample
from agent.alerts.disk_threshold_types import LimitedBy, ThresholdMode
from agent.alerts.fully_allocated_image_size import fully_allocated_image_bytes
from agent.alerts.pool_usage import Image, PoolUsage
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.host.pools.base import Pool, PoolKind, PoolReading, UnknownPool
from tests.lab.thin_disks import GIB, VM, Disk, policy

MIB = 1 << 20


def pool(free: int | None = None, *, kind: PoolKind = PoolKind.FILESYSTEM, has_levels: bool = True) -> PoolUsage:
    """Return a pool of 1000 GiB with this much free; None is a pool that was not read yet."""
    usage = PoolUsage(Pool("filesystem:8:1", kind, "/images"), "/images", -1, has_levels=has_levels)
    if free is not None:
        usage.on_reading(PoolReading(1000 * GIB, free), 0.0)
    return usage


def tracker_of(
    disk: Disk,
    place: PoolUsage | UnknownPool | None,
    *levels: str,
    mode: ThresholdMode = ThresholdMode.ARM,
    snapshots: int = 0,
) -> ThresholdTracker:
    """Return a tracker whose layers were polled once."""
    tracker = ThresholdTracker(policy(mode, *levels))
    tracker.usage.pool = place
    list(on_layers(tracker, disk, snapshots=snapshots))
    return tracker


def on_layers(tracker: ThresholdTracker, disk: Disk, *, snapshots: int = 0) -> list[tuple[str, bool]]:
    """Poll the layers; return the levels that were crossed."""
    form, storage = disk.layers()
    form = replace(form, snapshots=snapshots)
    return [(c.level.text, c.firing) for c in tracker.on_layers(form, storage, disk.offset, 0.0)]


def file_disk(allocated: int, **fields: object) -> Disk:
    """Return a qcow2 image of 100 GiB in a file."""
    return Disk(driver="file", path="/images/a.qcow2", allocated=allocated, **fields)  # type: ignore[arg-type]


def limit(tracker: ThresholdTracker) -> tuple[LimitedBy, int, int]:
    return tracker.usage.limited_by, tracker.usage.limit, tracker.usage.free


def test_a_file_with_room_in_its_pool_is_limited_by_its_virtual_size() -> None:
    tracker = tracker_of(file_disk(97 * GIB), pool(500 * GIB))
    assert limit(tracker) == (LimitedBy.VIRTUAL_SIZE, 100 * GIB, 3 * GIB)


def test_a_file_is_limited_by_its_pool_if_that_is_full_first() -> None:
    tracker = tracker_of(file_disk(10 * GIB), pool(2 * GIB))
    assert limit(tracker) == (LimitedBy.POOL, 12 * GIB, 2 * GIB)


def test_the_metadata_of_an_image_needs_room_too() -> None:
    metadata = fully_allocated_image_bytes("qcow2", 100 * GIB) - 100 * GIB
    assert tracker_of(file_disk(97 * GIB), pool(3 * GIB + metadata)).usage.limited_by is LimitedBy.VIRTUAL_SIZE
    assert tracker_of(file_disk(97 * GIB), pool(3 * GIB + metadata - 1)).usage.limited_by is LimitedBy.POOL


def test_an_image_on_a_device_is_limited_by_the_device() -> None:
    tracker = tracker_of(Disk(offset=40 * GIB), pool(kind=PoolKind.DEVICE))
    assert limit(tracker) == (LimitedBy.DEVICE, 100 * GIB, 60 * GIB)


def test_a_thin_volume_is_limited_by_its_pool_if_that_is_full_first() -> None:
    tracker = tracker_of(Disk(offset=40 * GIB), pool(5 * GIB, kind=PoolKind.LVM_THIN))
    assert limit(tracker) == (LimitedBy.POOL, 45 * GIB, 5 * GIB)


@pytest.mark.parametrize(
    ("disk", "snapshots"), [(file_disk(130 * GIB), 0), (file_disk(20 * GIB), 2), (file_disk(130 * GIB), 2)]
)
def test_a_file_that_can_outgrow_its_size_is_limited_by_its_pool_alone(disk: Disk, snapshots: int) -> None:
    tracker = tracker_of(disk, pool(500 * GIB), "80%", snapshots=snapshots)
    assert limit(tracker) == (LimitedBy.POOL, disk.allocated + 500 * GIB, 500 * GIB)
    assert tracker.applicable_levels == ()
    unknown = tracker_of(disk, UnknownPool("why"), "80%", snapshots=snapshots)
    assert unknown.usage.limited_by is LimitedBy.UNKNOWN
    assert (unknown.applicable_levels, space_sample("disk0", unknown)) == ((), None)


def test_a_file_that_is_fully_allocated_cannot_run_out_of_space() -> None:
    for driver in ("raw", "qcow2"):
        tracker = tracker_of(file_disk(100 * GIB, format_driver=driver), pool(0))
        assert not tracker.usage.can_run_out_of_space
        assert space_sample("disk0", tracker) is None


def test_nothing_fires_on_a_nearly_full_disk_with_room_in_its_pool() -> None:
    tracker = tracker_of(file_disk(97 * GIB), pool(500 * GIB), "80%", "90%", "95%", "free 5GiB")
    assert (tracker.exceeded_level_count, tracker.applicable_levels, tracker.next_threshold()) == (0, (), None)


def test_a_level_of_used_bytes_stays_whatever_limits_the_disk() -> None:
    for free in (500 * GIB, GIB):
        tracker = tracker_of(file_disk(97 * GIB), pool(free), "80%", "used 50GiB")
        assert [level.text for level in tracker.applicable_levels] == ["used 50GiB"]
        assert tracker.exceeded_level_count == 1


def test_a_level_that_no_write_can_reach_is_not_armed() -> None:
    tracker = tracker_of(file_disk(10 * GIB), pool(2 * GIB), "used 11GiB", "used 50GiB")
    assert [level.text for level in tracker.applicable_levels] == ["used 11GiB"]


def test_a_disk_does_not_fire_when_its_pool_fires_for_all_disks() -> None:
    tracker = tracker_of(file_disk(10 * GIB), pool(GIB), "80%")
    assert (tracker.applicable_levels, tracker.exceeded_level_count) == ((), 0)


def test_a_disk_fires_if_its_pool_has_no_levels() -> None:
    tracker = tracker_of(file_disk(10 * GIB), pool(GIB, has_levels=False), "80%")
    assert [level.bytes for level in tracker.applicable_levels] == [11 * GIB * 80 // 100]
    assert tracker.exceeded_level_count == 1


def test_an_unknown_pool_leaves_the_virtual_size_as_the_only_limit() -> None:
    tracker = tracker_of(file_disk(97 * GIB), UnknownPool("the process is unknown"), "95%")
    assert limit(tracker) == (LimitedBy.UNKNOWN, 100 * GIB, 3 * GIB)
    assert tracker.exceeded_level_count == 1


def test_a_pool_that_cannot_be_read_counts_as_unknown() -> None:
    place = pool()
    place.error = "permission denied"
    tracker = tracker_of(file_disk(97 * GIB), place)
    assert tracker.usage.is_limit_known
    assert tracker.usage.limited_by is LimitedBy.UNKNOWN
    assert tracker.exceeded_level_count == 3


@pytest.mark.parametrize("place", [None, pool()])
def test_nothing_fires_and_nothing_is_resolved_before_the_pool_is_known(place: PoolUsage | None) -> None:
    disk = file_disk(97 * GIB)
    tracker = tracker_of(disk, place, "80%")
    assert (tracker.exceeded_level_count, space_sample("disk0", tracker)) == (0, None)
    before = tracker_of(disk, UnknownPool("why"), "80%")
    before.usage.pool = place
    assert on_layers(before, disk) == []
    assert before.exceeded_level_count == 1


def test_a_level_is_resolved_when_the_pool_gets_room() -> None:
    disk, place = file_disk(10 * GIB), pool(GIB, has_levels=False)
    tracker = tracker_of(disk, place, "80%")
    place.on_reading(PoolReading(1000 * GIB, 900 * GIB), 1.0)
    assert tracker.on_poll(disk.node, disk.offset, 1.0), "the agent compares the levels after a poll of the layers"
    assert on_layers(tracker, disk) == [("80%", False)]


def test_a_level_fires_when_others_fill_the_pool() -> None:
    disk, place = file_disk(10 * GIB), pool(900 * GIB, has_levels=False)
    tracker = tracker_of(disk, place, "80%")
    assert not tracker.on_poll(disk.node, disk.offset, 1.0)
    place.on_reading(PoolReading(1000 * GIB, GIB), 1.0)
    assert tracker.on_poll(disk.node, disk.offset, 2.0)
    assert on_layers(tracker, disk) == [("80%", True)]


def test_the_figures_name_the_limit_and_the_pool() -> None:
    figures = disk_space_values(tracker_of(file_disk(10 * GIB), pool(2 * GIB)).usage)
    assert {name: figures[name] for name in ("limited_by", "pool", "limit_bytes", "used_bytes", "free_bytes")} == {
        "limited_by": "pool",
        "pool": "/images",
        "limit_bytes": 12 * GIB,
        "used_bytes": 10 * GIB,
        "free_bytes": 2 * GIB,
    }


def test_the_time_to_full_of_a_disk_on_a_filling_pool_is_that_of_the_pool() -> None:
    place = pool()
    for second in range(31):
        place.on_reading(PoolReading(1000 * GIB, (100 - second) * MIB), float(second))
    tracker = tracker_of(file_disk(10 * GIB), place)
    assert disk_space_values(tracker.usage)["time_to_full_seconds"] == pytest.approx(70)


def test_free_bytes_are_never_negative() -> None:
    assert tracker_of(file_disk(100 * GIB + 4096), UnknownPool("")).usage.free == 0


def filling_pool(free: int, until_level: int | None) -> PoolUsage:
    """Return a pool that reaches its next level after this many bytes."""
    place = pool(free)
    place.bytes_until_level = until_level
    return place


def test_the_threshold_of_a_disk_is_where_it_fills_its_pool_up_to_a_level() -> None:
    disk = file_disk(10 * GIB, offset=11 * GIB)
    assert tracker_of(disk, filling_pool(50 * GIB, 5 * GIB), "80%").next_threshold() == (disk.node, 16 * GIB)
    assert tracker_of(disk, filling_pool(50 * GIB, 5 * GIB), "used 12GiB").next_threshold() == (disk.node, 13 * GIB)


@pytest.mark.parametrize(
    ("disk", "place", "mode"),
    [
        (file_disk(10 * GIB), filling_pool(500 * GIB, 200 * GIB), ThresholdMode.ARM),  # it cannot grow so far
        (file_disk(10 * GIB), filling_pool(50 * GIB, None), ThresholdMode.ARM),  # all levels are exceeded
        (file_disk(10 * GIB), filling_pool(50 * GIB, 5 * GIB), ThresholdMode.OBSERVE),
        (file_disk(10 * GIB, format_driver="raw"), filling_pool(50 * GIB, 5 * GIB), ThresholdMode.ARM),
        (file_disk(100 * GIB), filling_pool(50 * GIB, 5 * GIB), ThresholdMode.ARM),  # it is fully allocated
    ],
)
def test_no_threshold_is_set_for_a_pool_where_no_write_can_reach_it(
    disk: Disk, place: PoolUsage, mode: ThresholdMode
) -> None:
    assert tracker_of(disk, place, "80%", mode=mode).next_threshold() is None


RAW_VOLUME = Disk(offset=99 * GIB, format_driver="raw")
"""A raw disk of 100 GiB. QEMU reports 0 as the allocated bytes of a block device."""


def thin_pool(free: int, allocated: int | None, *, has_levels: bool = True) -> PoolUsage:
    """Return a thin pool with the volume of `disk0`."""
    usage = PoolUsage(Pool("lvm_thin:vg/p", PoolKind.LVM_THIN, "vg/p"), "vg/p", -1, has_levels=has_levels)
    usage.images[VM, "disk0", "storage"] = Image("disk0", "storage", "host_device", "/dev/vg/lv", 0, 0, 0, "253:7")
    volumes = {"253:7": allocated} if allocated is not None else {}
    usage.on_reading(PoolReading(1000 * GIB, free, allocated_bytes_by_volume=volumes), 0.0)
    return usage


def tracker_of_volume(place: PoolUsage, *levels: str, disk: Disk | None = None) -> ThresholdTracker:
    tracker = ThresholdTracker(policy(ThresholdMode.ARM, *levels))
    tracker.usage.pool, tracker.usage.volume_allocated_bytes = place, place.volume_allocated_bytes_of_disk(VM, "disk0")
    list(on_layers(tracker, disk or RAW_VOLUME))
    return tracker


def test_a_raw_disk_on_a_thin_volume_is_limited_by_its_pool_if_that_is_full_first() -> None:
    tracker = tracker_of_volume(thin_pool(5 * GIB, 30 * GIB))
    assert limit(tracker) == (LimitedBy.POOL, 35 * GIB, 5 * GIB)
    sample = space_sample("disk0", tracker)
    assert sample is not None
    figures = {"measure": "allocated", "used_bytes": 30 * GIB, "pool": "vg/p", "limited_by": "pool"}
    assert figures.items() <= sample.values.items()
    assert tracker.next_threshold() is None, "the guest writes at any offset, so an offset announces nothing"


def test_a_raw_disk_on_a_thin_volume_with_room_in_its_pool_fires_nothing() -> None:
    tracker = tracker_of_volume(thin_pool(500 * GIB, 97 * GIB), "80%")
    assert limit(tracker) == (LimitedBy.VIRTUAL_SIZE, 100 * GIB, 3 * GIB)
    assert tracker.applicable_levels == ()


def test_a_raw_disk_on_a_thin_volume_fires_if_its_pool_has_no_levels() -> None:
    tracker = tracker_of_volume(thin_pool(5 * GIB, 30 * GIB, has_levels=False), "80%")
    assert tracker.exceeded_level_count == 1


def test_a_thin_volume_that_is_fully_allocated_cannot_run_out_of_space() -> None:
    for allocated in (100 * GIB, 101 * GIB):  # ZFS also counts the metadata of a volume
        assert space_sample("disk0", tracker_of_volume(thin_pool(0, allocated))) is None


def test_a_raw_disk_whose_volume_is_not_reported_has_no_limit() -> None:
    assert space_sample("disk0", tracker_of_volume(thin_pool(5 * GIB, None))) is None


def test_an_image_with_a_format_on_a_thin_volume_is_measured_by_its_highest_offset() -> None:
    tracker = tracker_of_volume(thin_pool(5 * GIB, 30 * GIB), disk=Disk(offset=40 * GIB))
    assert limit(tracker) == (LimitedBy.POOL, 45 * GIB, 5 * GIB)


def test_the_usage_of_a_thin_volume_follows_the_report() -> None:
    place = thin_pool(50 * GIB, 30 * GIB)
    tracker = tracker_of_volume(place)
    for minute, allocated in enumerate((31, 32, 33), 1):
        place.on_reading(
            PoolReading(1000 * GIB, 50 * GIB, allocated_bytes_by_volume={"253:7": allocated * GIB}), 60.0 * minute
        )
        tracker.usage.volume_allocated_bytes = place.volume_allocated_bytes_of_disk(VM, "disk0")
        tracker.on_poll("storage", 99 * GIB, 60.0 * minute)
        assert (tracker.usage.used_bytes, tracker.usage.limit) == (allocated * GIB, (allocated + 50) * GIB)
    assert tracker.usage.growth.rate == pytest.approx(GIB / 60)
