"""Block devices that hang or fail, by two looks at sysfs."""

import asyncio
from pathlib import Path

import pytest

from agent.host.block_device_activity import (
    BlockDeviceActivity,
    describe_block_device_failure,
    describe_block_device_stall,
    read_block_device_activity,
)
from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolUnresponsiveError,
)
from agent.host.pools.block_device import BlockDevicePoolSource

IDLE = BlockDeviceActivity(0, 100)
BUSY = BlockDeviceActivity(3, 100)
SUSPENDED = BlockDeviceActivity(0, 100, suspended=True)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (IDLE, IDLE, ""),
        (IDLE, BUSY, ""),
        (BUSY, IDLE, ""),
        (BUSY, BlockDeviceActivity(3, 101), ""),
        (BUSY, BUSY, "3 requests wait, and the device has completed none for 5 s"),
        (BUSY, BlockDeviceActivity(9, 100), "9 requests wait"),
        (SUSPENDED, SUSPENDED, "the device mapper has suspended the device"),
        (SUSPENDED, IDLE, ""),
        (IDLE, SUSPENDED, ""),
        (BlockDeviceActivity(state="blocked"), BlockDeviceActivity(state="blocked"), "the device is blocked"),
        (BlockDeviceActivity(state="blocked"), BlockDeviceActivity(state="running"), ""),
        (BlockDeviceActivity(state="running"), BlockDeviceActivity(state="running"), ""),
        (BlockDeviceActivity(state="connecting"), BlockDeviceActivity(state="connecting"), "the device is connecting"),
        (BlockDeviceActivity(state="resetting"), BlockDeviceActivity(state="live"), ""),
    ],
)
def test_a_device_is_silent_if_it_completes_no_request_or_is_blocked(
    before: BlockDeviceActivity, after: BlockDeviceActivity, reason: str
) -> None:
    stall = describe_block_device_stall(before, after, 5.0)
    assert stall.startswith(reason) if reason else stall == ""


@pytest.mark.parametrize("state", ["offline", "transport-offline", "dead", "running", "live", "blocked", ""])
def test_requests_fail_on_a_device_that_is_offline(state: str) -> None:
    assert bool(describe_block_device_failure(BlockDeviceActivity(state=state))) == (
        state in ("offline", "transport-offline", "dead")
    )


class Device:
    """A device in a fake /sys, such as a disk `8:0` with a partition `8:1`."""

    def __init__(self, sys: Path, name: str, number: str, *, of: str = "") -> None:
        self.path = sys / "devices" / of / name
        self.path.mkdir(parents=True)
        for link in ("dev/block", "class/block"):
            (sys / link).mkdir(parents=True, exist_ok=True)
        (sys / "dev/block" / number).symlink_to(self.path)
        (sys / "class/block" / name).symlink_to(self.path)
        (self.path / "dev").write_text(number + "\n")
        (self.path / "size").write_text("2048\n")
        self.set_activity(0, 0)

    def set_activity(self, in_flight: int, completed: int) -> None:
        """Write the file `stat` as Linux 6 does."""
        numbers = [completed, 0, 0, 0, 0, 0, 0, 0, in_flight, 0, 0, 0, 0, 0, 0, 0, 0]
        (self.path / "stat").write_text(" ".join(f"{number:8d}" for number in numbers) + "\n")

    def set_file(self, name: str, content: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_text(content + "\n")


def pool_of(name: str, number: str) -> Pool:
    source = BlockDevicePoolSource()
    pool = source.find_pool(ImageLocation("host_device", f"/dev/{name}", device=number))
    assert isinstance(pool, Pool)
    assert pool.kind is PoolKind.DEVICE
    return pool


async def read(sys: Path, pool: Pool) -> PoolReading | PoolReadError:
    return (await BlockDevicePoolSource(sys, unresponsive_seconds=0.3).read([pool]))[pool.key]


def test_the_activity_of_a_partition_has_the_state_of_its_disk(tmp_path: Path) -> None:
    disk = Device(tmp_path, "qmpa", "8:0")
    disk.set_file("device/state", "running")
    partition = Device(tmp_path, "qmpa1", "8:1", of="qmpa")
    partition.set_activity(2, 40)
    assert read_block_device_activity("8:1", tmp_path) == BlockDeviceActivity(2, 40, "running")


@pytest.mark.parametrize("content", ["", "1 2 3", "a b c d e f g h i j k"])
def test_an_activity_that_cannot_be_read_is_unknown(tmp_path: Path, content: str) -> None:
    Device(tmp_path, "qmpa", "8:0").set_file("stat", content)
    assert read_block_device_activity("8:0", tmp_path) is None
    assert read_block_device_activity("8:9", tmp_path) is None


def test_the_activity_of_an_old_kernel_has_fewer_fields(tmp_path: Path) -> None:
    Device(tmp_path, "qmpa", "8:0").set_file("stat", "10 0 0 0 5 0 0 0 1 0 0")
    assert read_block_device_activity("8:0", tmp_path) == BlockDeviceActivity(1, 15)


async def test_an_idle_device_answers(tmp_path: Path) -> None:
    Device(tmp_path, "qmpa", "8:0")
    assert await read(tmp_path, pool_of("qmpa", "8:0")) == PoolReading(1 << 20)


async def test_a_device_that_completes_no_request_does_not_answer(tmp_path: Path) -> None:
    Device(tmp_path, "qmpa", "8:0").set_activity(2, 40)
    reading = await read(tmp_path, pool_of("qmpa", "8:0"))
    assert isinstance(reading, PoolUnresponsiveError)
    assert str(reading) == "/dev/qmpa: 2 requests wait, and the device has completed none for 0.3 s"


async def test_a_slow_device_answers(tmp_path: Path) -> None:
    device = Device(tmp_path, "qmpa", "8:0")
    device.set_activity(2, 40)
    reading = asyncio.create_task(
        BlockDevicePoolSource(tmp_path, unresponsive_seconds=60).read([pool := pool_of("qmpa", "8:0")])
    )
    for _ in range(5):  # turns of the event loop in which the source has its first look
        await asyncio.sleep(0)
    device.set_activity(2, 41)
    assert (await reading)[pool.key] == PoolReading(1 << 20)


async def test_a_suspended_device_does_not_answer(tmp_path: Path) -> None:
    Device(tmp_path, "dm-7", "253:7").set_file("dm/suspended", "1")
    reading = await read(tmp_path, pool_of("dm-7", "253:7"))
    assert isinstance(reading, PoolUnresponsiveError)
    assert "the device mapper has suspended the device" in str(reading)


async def test_a_device_that_is_offline_is_an_error_at_once(tmp_path: Path) -> None:
    Device(tmp_path, "qmpa", "8:0").set_file("device/state", "offline")
    reading = (await BlockDevicePoolSource(tmp_path, unresponsive_seconds=60).read([pool := pool_of("qmpa", "8:0")]))[
        pool.key
    ]
    assert type(reading) is PoolReadError
    assert str(reading) == "/dev/qmpa: the device is offline, and its requests fail"


async def test_a_device_that_hangs_delays_no_device_of_another_task(tmp_path: Path) -> None:
    Device(tmp_path, "qmpa", "8:0").set_activity(2, 40)
    Device(tmp_path, "qmpb", "8:16")
    source, hung, fine = (
        BlockDevicePoolSource(tmp_path, unresponsive_seconds=60),
        pool_of("qmpa", "8:0"),
        pool_of("qmpb", "8:16"),
    )
    waiting = asyncio.create_task(source.read([hung]))
    assert (await source.read([fine]))[fine.key] == PoolReading(1 << 20)
    assert not waiting.done()
    waiting.cancel()
