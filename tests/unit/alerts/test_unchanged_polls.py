"""A poll of a disk that is as at the last poll: the tracker skips it, and nothing is different from a tracker that handles every poll."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.alerts.disk_space_values import space_sample
from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.host.pools.base import Pool, PoolKind, PoolReading, UnknownPool
from tests.lab.thin_disks import GIB, Disk, policy

FILE = Disk(driver="file", path="/images/a.qcow2", allocated=50 * GIB)
NODE = FILE.layers()[1].node


def new_pool(free: int = 500 * GIB) -> PoolUsage:
    usage = PoolUsage(Pool("filesystem:8:1", PoolKind.FILESYSTEM, "/images"), "/images", -1, has_levels=True)
    usage.on_reading(PoolReading(1000 * GIB, free), 0.0)
    return usage


def polled_tracker(disk: Disk = FILE) -> ThresholdTracker:
    """Return a tracker whose layers were polled, and whose first poll of the offset needed no other poll."""
    tracker = ThresholdTracker(policy(ThresholdMode.OBSERVE))
    tracker.usage.pool = new_pool()
    poll_layers(tracker, disk)
    tracker.on_poll(NODE, disk.offset, 1.0)
    return tracker


def poll_layers(tracker: ThresholdTracker, disk: Disk) -> list[tuple[str, bool]]:
    form, storage = disk.layers()
    crossings = [(c.level.text, c.firing) for c in tracker.on_layers(form, storage, disk.offset, 0.0)]
    space_sample("disk0", tracker)
    return crossings


def test_the_same_poll_is_unchanged() -> None:
    tracker = polled_tracker()
    assert tracker.is_unchanged_since_last_poll(NODE, FILE.offset, tracker.usage.pool)


def test_another_offset_node_or_pool_is_a_change() -> None:
    tracker, pool = polled_tracker(), new_pool()
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset + 1, tracker.usage.pool)
    assert not tracker.is_unchanged_since_last_poll("other", FILE.offset, tracker.usage.pool)
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, pool)
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, UnknownPool("gone"))


def test_new_figures_of_the_pool_and_another_policy_are_changes() -> None:
    tracker = polled_tracker()
    pool = tracker.usage.pool
    assert isinstance(pool, PoolUsage)
    pool.on_reading(PoolReading(1000 * GIB, 10 * GIB), 5.0)
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, pool)
    tracker = polled_tracker()
    tracker.policy = policy(ThresholdMode.OBSERVE, "10%")
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, tracker.usage.pool)


def test_levels_of_the_pool_in_a_new_config_are_a_change() -> None:
    tracker = polled_tracker()
    pool = tracker.usage.pool
    assert isinstance(pool, PoolUsage)
    pool.has_levels = False
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, pool)


def test_a_poll_of_the_layers_and_a_failed_command_are_changes() -> None:
    tracker = polled_tracker()
    poll_layers(tracker, FILE)
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, tracker.usage.pool)
    tracker = polled_tracker()
    tracker.on_command_done(done=False)
    assert not tracker.is_unchanged_since_last_poll(NODE, FILE.offset, tracker.usage.pool)


def test_a_device_is_never_unchanged_because_its_growth_rate_changes() -> None:
    disk = Disk(offset=GIB)
    tracker = polled_tracker(disk)
    assert not tracker.is_unchanged_since_last_poll(disk.layers()[1].node, disk.offset, tracker.usage.pool)


STEPS = st.one_of(
    st.tuples(st.just("poll"), st.sampled_from([0, 1, 2, 90, 91, 99])),
    st.tuples(st.just("reading"), st.sampled_from([0, 1, 5, 40, 500])),
    st.tuples(st.just("levels"), st.booleans()),
    st.tuples(st.just("layers"), st.sampled_from([40, 50, 85, 92, 97])),
    st.tuples(st.just("policy"), st.sampled_from(["10%", "free 1GiB", "90%"])),
)


@given(st.lists(STEPS, max_size=30))
def test_skipping_unchanged_polls_changes_no_result(steps: list[tuple[str, int | bool | str]]) -> None:
    trackers = [polled_tracker(), polled_tracker()]
    for at, (step, value) in enumerate(steps, 2):
        results = []
        for number, tracker in enumerate(trackers):
            pool, result = tracker.usage.pool, []
            assert isinstance(pool, PoolUsage)
            if step == "poll":
                offset = int(value) * GIB
                is_skipped = number == 1 and tracker.is_unchanged_since_last_poll(NODE, offset, pool)
                result = [not is_skipped and tracker.on_poll(NODE, offset, float(at))]
            elif step == "reading":
                pool.on_reading(PoolReading(1000 * GIB, int(value) * GIB), float(at))
            elif step == "levels":
                pool.has_levels = bool(value)
            elif step == "policy":
                tracker.policy = policy(ThresholdMode.OBSERVE, str(value))
            else:
                poll_layers(tracker, replace(FILE, allocated=int(value) * GIB))
            usage = tracker.usage
            results.append(
                (result, usage.limit, usage.limited_by, usage.used_bytes, usage.offset, tracker.applicable_levels)
            )
        assert results[0] == results[1]
