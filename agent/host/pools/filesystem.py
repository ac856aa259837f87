"""File systems, with the quotas that statvfs shows (XFS projects, ZFS reference quotas)."""

import asyncio
from collections.abc import Sequence

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

    def __init__(self, reader: FileSystemReader) -> None:
        self._reader = reader

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

    def allocated(self, image: ImageLocation) -> int | None:  # noqa: ARG002 - PoolSource's signature
        """Return None: QEMU reports it."""
        return None

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Read these file systems."""
        readings = await asyncio.gather(*map(self._read, pools))
        return {pool.key: reading for pool, reading in zip(pools, readings, strict=True)}

    async def _read(self, pool: Pool) -> PoolReading | PoolReadError:
        try:
            return _reading(await self._reader.statvfs(pool.path, mount_device(pool)))
        except PoolReadError as error:
            return error

    def recent(self, pool: Pool, seconds: float) -> PoolReading | None:
        """Return the last figures of a file system if they were read within the last `seconds`."""
        figures = self._reader.recent(pool.path, seconds)
        return _reading(figures) if figures is not None else None


def _reading(figures: FileSystemFigures) -> PoolReading:
    return PoolReading(
        figures.size_bytes,
        figures.available_bytes,
        figures.size_bytes - figures.free_bytes,
        figures.inodes or None,
        figures.available_inodes if figures.inodes else None,
    )


def mount_device(pool: Pool) -> str:
    """Return `major:minor` of the file system that a pool is on; empty for a pool of another kind."""
    if pool.kind is not PoolKind.FILESYSTEM:
        return ""
    return ":".join(pool.key.split(":")[1:3])
