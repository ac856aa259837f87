"""File systems as pools. A directory with a quota is a separate pool if statvfs reports the quota (XFS project, ZFS refquota)."""

import asyncio
from collections.abc import Callable, Sequence

from agent.host.mounts import Mount
from agent.host.pools.base import (
    READ_ONLY_PROBLEM,
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    UnknownPool,
)
from agent.host.pools.filesystem_reader import FileSystemReader, FileSystemStats
from agent.host.pools.image_location import read_mounts_of_process


class FileSystemPoolSource:
    """Finds and reads file systems."""

    def __init__(
        self,
        reader: FileSystemReader,
        thin_pool_free: Callable[[str], int | None] = lambda _device: None,
        own_mounts: Callable[[], Sequence[Mount]] = lambda: read_mounts_of_process("self"),
    ) -> None:
        """Create a source.

        Args:
            reader: reads file systems.
            thin_pool_free: returns the free bytes of the thin pool under a device, given as `major:minor`; None if the device is not a
                thin volume. These free bytes limit the free bytes of a file system on the device.
            own_mounts: returns the mounts of the agent.
        """
        self._reader = reader
        self._thin_pool_free = thin_pool_free
        self._own_mounts = own_mounts
        self._read_only: frozenset[str] = frozenset()

    async def refresh_pool_lookup(self) -> bool:
        """Find the file systems that are read-only now. Return False, because `find_pool` does not use the list."""
        self._read_only = frozenset(mount.device for mount in self._own_mounts() if mount.read_only)
        return False

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the file system of an image, or the quota of its directory; None for a block device."""
        mount = image.mount
        if mount is None:
            return None
        key = f"filesystem:{mount.device}" + (f":{image.quota_directory}" if image.quota_directory else "")
        return Pool(key, PoolKind.FILESYSTEM, image.quota_directory or mount.mount_point, mount.type, image.directory)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the size and usage of file systems, or an error for each file system that cannot be read."""
        if len(pools) == 1:  # a single read needs no task
            return {pools[0].key: await self._read_pool(pools[0])}
        readings = await asyncio.gather(*map(self._read_pool, pools))
        return {pool.key: reading for pool, reading in zip(pools, readings, strict=True)}

    async def _read_pool(self, pool: Pool) -> PoolReading | PoolReadError:
        try:
            return self._build_reading(pool, await self._reader.statvfs(pool.path, mount_device_number(pool)))
        except PoolReadError as error:
            return error

    def recent_reading(self, pool: Pool, seconds: float) -> PoolReading | None:
        """Return the last reading of a file system; None if no reading is younger than `seconds`."""
        figures = self._reader.cached_stats(pool.path, seconds)
        return self._build_reading(pool, figures) if figures is not None else None

    def _build_reading(self, pool: Pool, figures: FileSystemStats) -> PoolReading:
        thin_pool_free = self._thin_pool_free(mount_device_number(pool))
        available = figures.available_bytes
        return PoolReading(
            figures.size_bytes,
            available if thin_pool_free is None else min(available, thin_pool_free),
            figures.size_bytes - figures.free_bytes,
            figures.inodes or None,
            figures.available_inodes if figures.inodes else None,
            problem=READ_ONLY_PROBLEM if mount_device_number(pool) in self._read_only else "",
        )


def mount_device_number(pool: Pool) -> str:
    """Return `major:minor` of the device of a file system pool; empty for a pool of another kind."""
    if pool.kind is not PoolKind.FILESYSTEM:
        return ""
    return ":".join(pool.key.split(":")[1:3])
