"""ZFS pools, from the report of qmp-agent-storage."""

from agent.host.pools.base import ImageLocation, Pool, PoolKind, UnknownPool
from agent.host.pools.storage_report import StorageReportFile, StorageReportPoolSource


class ZfsPoolSource(StorageReportPoolSource):
    """Finds the ZFS pool of an image that is on a ZFS volume or in a ZFS file system.

    Two kinds of images belong to other sources, because the pool does not limit them. `BlockDevicePoolSource` finds an image on a volume
    whose whole size is reserved. `FileSystemPoolSource` finds an image in a file system with a quota.
    """

    def __init__(self, file: StorageReportFile) -> None:
        super().__init__(PoolKind.ZFS, file)

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the ZFS pool of an image; None if the image is not on ZFS, or if the pool does not limit the image."""
        if image.mount is not None and image.mount.type == "zfs":
            match = self.find_by_mount_source(image.mount.source)
            return self.make_pool(match[0]) if match is not None and not match[1].quota else None
        match = self.find_volume(image)
        if match is not None:
            return self.make_pool(match[0]) if not match[1].reserved else None
        if image.path.startswith("/dev/zvol/"):
            reason = self.error or f"the report of qmp-agent-storage lacks {image.path}"
            return UnknownPool(f"{image.path} is a ZFS volume: {reason}")
        return None
