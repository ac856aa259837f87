"""Block devices that hold one image each, such as a logical volume or a LUN."""

import asyncio
from collections.abc import Sequence

from agent.host.block_device import device_size
from agent.host.pools.base import ImageLocation, Pool, PoolKind, PoolReadError, PoolReading, PoolReadings, UnknownPool


class DeviceSource:
    """The source of block devices. It is asked last, because another source may find the device in its pool."""

    async def refresh(self) -> bool:
        """Do nothing, because `find_pool` needs no list of devices."""
        return False

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the device of an image; None for a file."""
        if image.mount is not None:
            return None
        if not image.device:  # a hostile QEMU can report any path, and the path would become a label value
            return UnknownPool("the agent cannot see the block device: its container or PrivateDevices= hides it")
        return Pool(f"device:{image.device}", PoolKind.DEVICE, image.path, "", image.path)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the sizes of these devices."""
        return await asyncio.to_thread(lambda: {pool.key: _read_size(pool.path) for pool in pools})


def _read_size(path: str) -> PoolReading | PoolReadError:
    size = device_size(path)
    return PoolReading(size) if size is not None else PoolReadError(f"{path}: the agent cannot see the device")
