"""How often the storage monitor reads a pool."""

import pytest

from agent.alerts.pool_usage import PoolUsage
from agent.app.agent import Agent
from agent.app.storage_monitor import CHECK_SECONDS, SILENT_SECONDS, StorageMonitor, _refresh_source
from agent.config.model import Config
from agent.host.pools.base import Pool, PoolKind, PoolReading
from agent.host.pools.device import DeviceSource

GIB = 1 << 30
INTERVAL = 30.0


@pytest.fixture
def monitor() -> StorageMonitor:
    config = {"monitors": [{"dial": "/none/*.qmp"}], "alerts": {"pool": {"levels": ["free 100GiB"]}}}
    return Agent(Config.model_validate(config)).storage


def add(
    monitor: StorageMonitor, type_: str, free: int | None, kind: PoolKind = PoolKind.FILESYSTEM, at: float = 100.0
) -> PoolUsage:
    """Add a pool of 1,000 GiB, and read it unless its free space is None."""
    pool = Pool(f"{kind.value}:1:1", kind, "/srv", type_, "/srv")
    usage = monitor.registry.pools.get(pool.key) or monitor.registry.add(pool, pool.name)
    if free is not None:
        usage.on_reading(PoolReading(1000 * GIB, free), at)
        list(monitor._alerts.pools.on_reading(usage, int(at * 1e9)))
    return usage


@pytest.mark.parametrize(
    ("type_", "free", "delay"),
    [
        ("ext4", 900 * GIB, INTERVAL),
        ("ext4", 120 * GIB, 10.0),
        ("ext4", 105 * GIB, CHECK_SECONDS),
        ("ext4", None, CHECK_SECONDS),
        ("nfs4", 900 * GIB, CHECK_SECONDS),
        ("fuse.sshfs", 900 * GIB, CHECK_SECONDS),
    ],
)
def test_a_file_system_is_read_often_if_it_may_hang_or_reach_a_level(
    monitor: StorageMonitor, type_: str, free: int | None, delay: float
) -> None:
    assert monitor._seconds_until_read(add(monitor, type_, free)) == pytest.approx(delay)


def test_a_file_system_that_grows_towards_a_level_is_read_faster(monitor: StorageMonitor) -> None:
    usage = add(monitor, "ext4", 106 * GIB)
    add(monitor, "ext4", 105 * GIB, at=101.0)
    assert monitor._seconds_until_read(usage) < CHECK_SECONDS


def test_a_silent_file_system_is_read_again_soon(monitor: StorageMonitor) -> None:
    usage = add(monitor, "nfs4", 900 * GIB)
    usage.silent_since = 100.0
    assert monitor._seconds_until_read(usage) == SILENT_SECONDS


def test_a_thin_pool_is_read_at_the_interval_of_its_report(monitor: StorageMonitor) -> None:
    assert monitor._seconds_until_read(add(monitor, "", 105 * GIB, PoolKind.LVM_THIN)) == INTERVAL


@pytest.mark.parametrize(
    ("reading", "unchanged"),
    [
        (PoolReading(1000 * GIB, 500 * GIB - 1), True),
        (PoolReading(1000 * GIB, 498 * GIB), False),
        (PoolReading(1000 * GIB, None), False),
        (PoolReading(2000 * GIB, 500 * GIB), False),
        (PoolReading(1000 * GIB, 500 * GIB, problem="DEGRADED"), False),
        (PoolReading(1000 * GIB, 500 * GIB, inodes=100, free_inodes=50), False),
    ],
)
def test_a_check_shows_nothing_new_if_the_figures_are_nearly_the_same(
    monitor: StorageMonitor,
    reading: PoolReading,
    unchanged: bool,  # noqa: FBT001 - a table
) -> None:
    usage = add(monitor, "nfs4", 500 * GIB)
    assert usage.is_unchanged(reading) is unchanged


def test_a_pool_that_answers_again_is_something_new(monitor: StorageMonitor) -> None:
    usage = add(monitor, "nfs4", 500 * GIB)
    usage.silent_since = 100.0
    assert not usage.is_unchanged(PoolReading(1000 * GIB, 500 * GIB))


async def test_a_bug_in_a_source_does_not_end_the_reading_of_pools(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenSource(DeviceSource):
        async def refresh(self) -> bool:
            raise KeyError("x")

    assert await _refresh_source(BrokenSource()) is False
    assert "BrokenSource: list of pools not refreshed: internal error" in caplog.text
