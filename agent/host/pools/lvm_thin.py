"""LVM thin pools, from the report of qmp-agent-storage. The agent cannot query the device mapper, because only root may do so."""

from pathlib import Path

from agent.host.pools.base import ImageLocation, Pool, PoolKind, UnknownPool
from agent.host.pools.storage_report import StorageReportFile, StorageReportPoolSource

_SYS = Path("/sys")


class LvmThinPoolSource(StorageReportPoolSource):
    """Finds the thin pool of an image that is on a thin volume."""

    def __init__(self, file: StorageReportFile, sys: Path = _SYS) -> None:
        """Create a source.

        Args:
            file: the report file of qmp-agent-storage.
            sys: the /sys directory.
        """
        super().__init__(PoolKind.LVM_THIN, file)
        self._sys = sys

    def thin_pool_free(self, device: str) -> int | None:
        """Return the free bytes of the thin pool under a device.

        Args:
            device: `major:minor` of the device.

        Returns:
            None if the device is not a thin volume, or if the report is unusable.
        """
        if device not in self._by_device:
            return None
        self._load_report()
        match = self._by_device.get(device)
        return match[0].free_bytes if match is not None and self.error is None else None

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the thin pool of an image; None if the image is not on a thin volume."""
        match = self.find_volume(image)
        if match is not None:
            return self.make_pool(match[0])
        name = find_thin_pool(image.device, self._sys) if image.device else None
        if name is None:
            return None
        reason = self.error or f"the report of qmp-agent-storage lacks {image.path}"
        return UnknownPool(f"{image.path} is in the LVM thin pool {name}: {reason}")


def find_thin_pool(device: str, sys: Path = _SYS) -> str | None:
    """Return the device-mapper name of the thin pool under a device, such as `vg-pool`; None if the device is not a thin volume.

    Every user may read the name. Only root may read the usage of the pool.

    Args:
        device: `major:minor`.
        sys: the /sys directory.
    """
    try:
        below = list((sys / "dev/block" / device / "slaves").iterdir())
        names = [(slave / "dm/name").read_text().strip() for slave in below if slave.name.startswith("dm-")]
    except OSError:
        return None
    return next((name.removesuffix("-tpool") for name in names if name.endswith("-tpool")), None)
