"""Block devices that hold one image each, such as a logical volume or a LUN."""

import asyncio
from collections.abc import Sequence

from agent.host.block_device import device_size
from agent.host.pools.base import ImageLocation, Pool, PoolKind, PoolReadError, PoolReading, PoolReadings, UnknownPool


class DeviceSource:
    """The source of block devices. They come last: a device may belong to a pool of another kind."""

    async def refresh(self) -> bool:
        """Do nothing: `find` needs no list."""
        return False

    def find(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the device of an image."""
        if image.mount is not None:
            return None
        if not image.device:  # a path that only QEMU vouches for must not become the name of a series
            return UnknownPool("the agent cannot see the block device: its container or PrivateDevices= hides it")
        return Pool(f"device:{image.device}", PoolKind.DEVICE, image.path, "", image.path)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the sizes of these devices."""
        return await asyncio.to_thread(lambda: {pool.key: _read(pool.path) for pool in pools})


def _read(path: str) -> PoolReading | PoolReadError:
    size = device_size(path)
    return PoolReading(size) if size is not None else PoolReadError(f"{path}: the agent cannot see the device")
