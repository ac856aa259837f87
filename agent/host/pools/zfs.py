"""ZFS pools, from the report of qmp-agent-storage."""

from agent.host.pools.base import ImageLocation, Pool, PoolKind, UnknownPool
from agent.host.pools.report import ReportedSource, ReportFile


class ZfsSource(ReportedSource):
    """Finds the ZFS pool of an image on a volume or in a file system.

    A volume whose whole size is reserved cannot run out of space, and a file system with a quota runs out before its pool does. The pool
    is not their limit, so other sources take them: the block device, and the file system with its own size.
    """

    def __init__(self, file: ReportFile) -> None:
        super().__init__(PoolKind.ZFS, file)

    def find(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the ZFS pool of an image; None if it is not on ZFS, or not limited by its pool."""
        if image.mount is not None and image.mount.type == "zfs":
            match = self.file_system(image.mount.source)
            return self.pool(match[0]) if match is not None and not match[1].quota else None
        match = self.volume_of(image)
        if match is not None:
            return self.pool(match[0]) if not match[1].reserved else None
        if image.path.startswith("/dev/zvol/"):
            reason = self.error or f"the report of qmp-agent-storage lacks {image.path}"
            return UnknownPool(f"{image.path} is a ZFS volume: {reason}")
        return None
