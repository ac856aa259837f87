"""File systems, with the quotas that statvfs shows (XFS projects, ZFS reference quotas)."""

import asyncio
from collections.abc import Callable, Sequence

from agent.host.filesystem_reader import FileSystemFigures, FileSystemReader
from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    UnknownPool,
)


class FileSystemSource:
    """The source of file systems."""

    def __init__(
        self, reader: FileSystemReader, free_below: Callable[[str], int | None] = lambda _device: None
    ) -> None:
        """Create a source.

        Args:
            reader: reads file systems.
            free_below: returns the free bytes of the thin pool below a device, given as `major:minor`; None if there is none. A file
                system on a thin volume cannot grow beyond it.
        """
        self._reader = reader
        self._free_below = free_below

    async def refresh(self) -> bool:
        """Do nothing: `find` needs no list."""
        return False

    def find(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the file system of an image, or the quota of its directory."""
        mount = image.mount
        if mount is None:
            return None
        key = f"filesystem:{mount.device}" + (f":{image.quota}" if image.quota else "")
        return Pool(key, PoolKind.FILESYSTEM, image.quota or mount.point, mount.type, image.directory)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Read these file systems."""
        readings = await asyncio.gather(*map(self._read, pools))
        return {pool.key: reading for pool, reading in zip(pools, readings, strict=True)}

    async def _read(self, pool: Pool) -> PoolReading | PoolReadError:
        try:
            return self._reading(pool, await self._reader.statvfs(pool.path, mount_device(pool)))
        except PoolReadError as error:
            return error

    def recent(self, pool: Pool, seconds: float) -> PoolReading | None:
        """Return the last figures of a file system if they were read within the last `seconds`."""
        figures = self._reader.recent(pool.path, seconds)
        return self._reading(pool, figures) if figures is not None else None

    def _reading(self, pool: Pool, figures: FileSystemFigures) -> PoolReading:
        below = self._free_below(mount_device(pool))
        return PoolReading(
            figures.size_bytes,
            figures.available_bytes if below is None else min(figures.available_bytes, below),
            figures.size_bytes - figures.free_bytes,
            figures.inodes or None,
            figures.available_inodes if figures.inodes else None,
        )


def mount_device(pool: Pool) -> str:
    """Return `major:minor` of the file system that a pool is on; empty for a pool of another kind."""
    if pool.kind is not PoolKind.FILESYSTEM:
        return ""
    return ":".join(pool.key.split(":")[1:3])
