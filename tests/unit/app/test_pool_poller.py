"""How often the agent reads a storage pool."""

import asyncio
import time

import pytest

from agent.alerts.pool_usage import PoolUsage
from agent.app.agent import Agent
from agent.app.pool_poller import (
    CHECK_SECONDS,
    MAX_READS_AT_ONCE,
    UNRESPONSIVE_CHECK_SECONDS,
    PoolPoller,
    _refresh_source,
)
from agent.config.model import Config
from agent.host.pools.base import Pool, PoolKind, PoolReading
from agent.host.pools.block_device import BlockDevicePoolSource
from agent.model.record import Record

GIB = 1 << 30
INTERVAL = 30.0


@pytest.fixture
def poller() -> PoolPoller:
    config = {"monitors": [{"dial": "/none/*.qmp"}], "alerts": {"pools": {"levels": ["free 100GiB"]}}}
    return Agent(Config.model_validate(config)).storage


def add(
    poller: PoolPoller, type_: str, free: int | None, kind: PoolKind = PoolKind.FILESYSTEM, at: float = 100.0
) -> PoolUsage:
    """Add a pool of 1,000 GiB, and read it unless its free space is None."""
    pool = Pool(f"{kind.value}:1:1", kind, "/srv", type_, "/srv")
    usage = poller.registry.pools.get(pool.key) or poller.registry.add(pool, pool.name)
    if free is not None:
        usage.on_reading(PoolReading(1000 * GIB, free), at)
        list(poller._alerts.pools.on_reading(usage, int(at * 1e9)))
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
    poller: PoolPoller, type_: str, free: int | None, delay: float
) -> None:
    assert poller._seconds_until_read(add(poller, type_, free)) == pytest.approx(delay)


def test_a_file_system_that_grows_towards_a_level_is_read_faster(poller: PoolPoller) -> None:
    usage = add(poller, "ext4", 106 * GIB)
    add(poller, "ext4", 105 * GIB, at=101.0)
    assert poller._seconds_until_read(usage) < CHECK_SECONDS


def test_a_silent_file_system_is_read_again_soon(poller: PoolPoller) -> None:
    usage = add(poller, "nfs4", 900 * GIB)
    usage.unresponsive_since = 100.0
    assert poller._seconds_until_read(usage) == UNRESPONSIVE_CHECK_SECONDS


def test_a_thin_pool_is_read_at_the_interval_of_its_report(poller: PoolPoller) -> None:
    assert poller._seconds_until_read(add(poller, "", 105 * GIB, PoolKind.LVM_THIN)) == INTERVAL


def test_regular_reads_of_all_pools_are_at_the_same_times(poller: PoolPoller) -> None:
    usage = add(poller, "ext4", 900 * GIB)
    other = add(poller, "", 900 * GIB, PoolKind.LVM_THIN)
    assert poller._next_read_time(usage) == poller._next_read_time(other)
    assert 0 < poller._next_read_time(usage) - time.monotonic() <= INTERVAL
    near = add(poller, "ext4", 106 * GIB)
    add(poller, "ext4", 105 * GIB, at=101.0)
    assert poller._next_read_time(near) - time.monotonic() == pytest.approx(poller._seconds_until_read(near), abs=0.1)


async def test_reads_of_many_pools_start_in_groups(poller: PoolPoller) -> None:
    for number in range(MAX_READS_AT_ONCE + 5):
        pool = Pool(f"device:7:{number}", PoolKind.DEVICE, f"/dev/loop{number}", "", f"/dev/loop{number}")
        poller.registry.add(pool, pool.name)
        poller._pool_finder._source_of[pool.key] = BlockDevicePoolSource()
        poller._due[pool.key] = 0.0
    async with asyncio.TaskGroup() as tasks:
        poller._start_reads(tasks)
        assert len(poller._in_flight) == MAX_READS_AT_ONCE
        poller._start_reads(tasks)
        assert len(poller._in_flight) == MAX_READS_AT_ONCE + 5


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
    poller: PoolPoller,
    reading: PoolReading,
    unchanged: bool,  # noqa: FBT001 - a table
) -> None:
    usage = add(poller, "nfs4", 500 * GIB)
    assert usage.is_reading_unchanged(reading) is unchanged


def test_a_pool_that_answers_again_is_something_new(poller: PoolPoller) -> None:
    usage = add(poller, "nfs4", 500 * GIB)
    usage.unresponsive_since = 100.0
    assert not usage.is_reading_unchanged(PoolReading(1000 * GIB, 500 * GIB))


async def test_a_bug_in_a_source_does_not_end_the_reading_of_pools(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenSource(BlockDevicePoolSource):
        async def refresh_pool_lookup(self) -> bool:
            raise KeyError("x")

    assert await _refresh_source(BrokenSource()) is False
    assert "BrokenSource: internal error while listing storage pools" in caplog.text


def test_an_alert_of_a_pool_names_the_record_of_the_reading_that_led_to_it(poller: PoolPoller) -> None:
    published: list[Record] = []

    def publish(record: Record) -> str:
        published.append(record)
        return f"id-{len(published)}"

    poller._publish = publish
    alerts: list[Record] = []
    poller._alerts.on_record = alerts.append
    usage = add(poller, "ext4", 900 * GIB)
    for free in (800, 90, 80):  # an alert fires below 100 GiB
        poller._on_reading(usage, PoolReading(1000 * GIB, free * GIB))
    (alert,) = alerts
    (cause,) = [record for number, record in enumerate(published, 1) if alert.causation_id == f"id-{number}"]
    assert (cause.type, cause.data["free_bytes"], alert.data["alert"]) == (
        "qemu.sample.pool",
        90 * GIB,
        "pool_filling",
    )
