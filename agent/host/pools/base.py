"""Types of a pool: storage that images of VMs share, and that can run out of space. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agent.host.mounts import Mount


class PoolKind(StrEnum):
    """Kind of a pool."""

    FILESYSTEM = "filesystem"
    DEVICE = "device"
    """A block device that one image uses alone."""
    LVM_THIN = "lvm_thin"
    ZFS = "zfs"
    LIBVIRT = "libvirt"


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool.

    Attributes:
        key: Identifies the pool on this host, such as `filesystem:8:1`. It begins with the kind.
        kind: Its kind.
        name: Name for operators: mount point, device, `vg/pool`, name of the ZFS pool or of libvirt's pool.
        type: File system type, such as `xfs`, or the type in the words of its manager; may be empty.
        path: What its source reads: a directory, a device or a name; may be empty.
    """

    key: str
    kind: PoolKind
    name: str
    type: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class PoolReading:
    """Figures of a pool at one instant. A figure that its source does not report is None.

    Attributes:
        size_bytes: Size in bytes.
        free_bytes: Bytes that a process without privileges can still allocate; None for a device, because only QEMU knows how far its
            image extends.
        used_bytes: Bytes in use; None means the size without the free bytes. The blocks that a file system reserves for root are in
            neither.
        inodes: Number of inodes; None for a file system without a fixed number.
        free_inodes: Number of free inodes.
        metadata_size_bytes: Size of the metadata of an LVM thin pool, which can run out separately.
        metadata_free_bytes: Free bytes of it.
        problem: State that its manager reports as a problem, such as `DEGRADED` or `out_of_data_space`; empty if there is none.
        read_at: When the figures were taken, in seconds since the epoch; None means now. A file that a timer writes has older figures.
    """

    size_bytes: int
    free_bytes: int | None = None
    used_bytes: int | None = None
    inodes: int | None = None
    free_inodes: int | None = None
    metadata_size_bytes: int | None = None
    metadata_free_bytes: int | None = None
    problem: str = ""
    read_at: float | None = None


@dataclass(frozen=True, slots=True)
class UnknownPool:
    """The pool of an image cannot be known.

    Attributes:
        reason: Why, in one sentence for the operator, with the fix if there is one.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """Where an image is.

    Attributes:
        driver: QEMU's driver of the node, such as `file`, `host_device` or `rbd`.
        path: Path of the image in QEMU's mount namespace; absolute.
        mount: The mount that the path is on; None for a block device.
        directory: The mount point, or the directory of a quota, as the agent can reach it. Empty for a block device.
        quota: Directory of the quota that limits the image, such as an XFS project; empty if there is none.
        device: `major:minor` of a block device; empty for a file, and if the agent cannot see the device.
    """

    driver: str
    path: str
    mount: Mount | None = None
    directory: str = ""
    quota: str = ""
    device: str = ""


class PoolReadError(Exception):
    """A pool cannot be read. The message is the cause, for the operator."""


class PoolUnresponsiveError(PoolReadError):
    """The storage of a pool did not answer within the deadline."""


PoolReadings = Mapping[str, PoolReading | PoolReadError]
"""Readings by the pool's key."""


class PoolSource(Protocol):
    """One kind of pool: finds the pool of an image, and reads pools."""

    async def refresh(self) -> bool:
        """Update what `find` needs, such as a list of volumes. It has a deadline and does not raise.

        Returns:
            Whether `find` may return another pool now than before.
        """

    def find(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the pool of an image; None if the image is not on this kind of pool. It does no I/O that can block."""

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Read these pools, which `find` returned. It has a deadline. A pool that hangs does not delay the others."""
