"""Block devices as pools. Each device, such as a logical volume or a LUN, holds one image."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from agent.host.block_device import block_device_size_bytes
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
    PoolReadings,
    PoolUnresponsiveError,
    UnknownPool,
)

UNRESPONSIVE_SECONDS = 5.0
"""Seconds without a completed request after which a device with requests in flight counts as hanging."""

RECHECK_SECONDS = 0.25
"""Time between two reads of a device that may hang."""


class BlockDevicePoolSource:
    """Finds and reads block devices. The agent tries this source last, because another source may find the device in a pool."""

    def __init__(self, sys: Path = Path("/sys"), unresponsive_seconds: float = UNRESPONSIVE_SECONDS) -> None:
        """Create a source.

        Args:
            sys: the /sys directory.
            unresponsive_seconds: time without a completed request after which a device counts as hanging.
        """
        self._sys = sys
        self._unresponsive_seconds = unresponsive_seconds

    async def refresh_pool_lookup(self) -> bool:
        """Do nothing, because `find_pool` needs no list of devices."""
        return False

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the device of an image; None for a file."""
        if image.mount is not None:
            return None
        if not image.device:  # the path would become a label value, and a hostile QEMU can report any path
            return UnknownPool("the agent cannot see the block device: its container or PrivateDevices= hides it")
        return Pool(f"device:{image.device}", PoolKind.DEVICE, image.path, "", image.path)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the sizes of the block devices, and an error for each device that does not answer."""
        readings = await asyncio.gather(*map(self._read_pool, pools))
        return {pool.key: reading for pool, reading in zip(pools, readings, strict=True)}

    async def _read_pool(self, pool: Pool) -> PoolReading | PoolReadError:
        number = pool.key.partition(":")[2]
        first = read_block_device_activity(number, self._sys)
        if first is not None and (failure := describe_block_device_failure(first)):
            return PoolReadError(f"{pool.path}: {failure}")
        if first is not None and first.may_hang and (stall := await self._watch_device(number, first)):
            return PoolUnresponsiveError(f"{pool.path}: {stall}")
        size = block_device_size_bytes(pool.path, self._sys)
        return PoolReading(size) if size is not None else PoolReadError(f"{pool.path}: the agent cannot see the device")

    async def _watch_device(self, number: str, first: BlockDeviceActivity) -> str:
        """Watch a device until it completes a request or counts as hanging. Return why the device hangs, or an empty text."""
        end = asyncio.get_running_loop().time() + self._unresponsive_seconds
        while True:
            await asyncio.sleep(min(RECHECK_SECONDS, self._unresponsive_seconds))
            activity = read_block_device_activity(number, self._sys)
            stall = (
                describe_block_device_stall(first, activity, self._unresponsive_seconds) if activity is not None else ""
            )
            if not stall or asyncio.get_running_loop().time() >= end:
                return stall
