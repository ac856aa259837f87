"""Types of storage pools. A pool is storage that images of VMs share, and that can run out of space. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from agent.host.mounts import Mount

READ_ONLY_PROBLEM = "read_only"
"""`PoolReading.problem` of a file system that is read-only, for example because the kernel has found an error in the file system."""


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
    """A storage pool.

    Attributes:
        key: Identifies the pool on this host, such as `filesystem:8:1`. The key begins with the kind.
        kind: Kind of the pool.
        name: Name for operators: mount point, device path, `vg/pool`, name of the ZFS pool or name of the libvirt pool.
        type: File system type, such as `xfs`, or libvirt's type of the pool, such as `rbd`; empty for other kinds.
        path: What the source needs to read the pool: a directory, a device path or the pool's name.
    """

    key: str
    kind: PoolKind
    name: str
    type: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class PoolReading:
    """Size and usage of a pool at one instant. A value is None if the source does not report the value.

    Attributes:
        size_bytes: Size in bytes.
        free_bytes: Bytes that a process without privileges can still allocate. None for a device, because only QEMU can report how much
            of the device is in use.
        used_bytes: Bytes in use. None means `size_bytes - free_bytes`. Blocks that a file system reserves for root count neither as free
            nor as used.
        inodes: Number of inodes; None for a file system without a fixed number.
        free_inodes: Number of free inodes.
        metadata_size_bytes: Size of the metadata area of an LVM thin pool. The metadata area can fill up before the pool does.
        metadata_free_bytes: Free bytes of the metadata area.
        problem: State that LVM or ZFS reports, such as `DEGRADED` or `out_of_data_space`, or `read_only`; empty if the pool is healthy.
        read_at: When the values were measured, in seconds since the epoch; None means now. Values from a report file are older.
        allocated_bytes_by_volume: Bytes of the pool that each volume occupies. A volume has up to two keys: its name, and `major:minor` of
            its device.
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
    allocated_bytes_by_volume: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnknownPool:
    """The reason why the agent cannot find the pool of an image.

    Attributes:
        reason: The cause and the fix, if known, in one sentence for the operator.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """Where an image is.

    Attributes:
        driver: Driver of QEMU's block node, such as `file`, `host_device` or `rbd`.
        path: Absolute path of the image in QEMU's mount namespace, or the file name of network storage, such as `rbd:POOL/IMAGE`.
        mount: Mount that contains the path; None for a block device.
        directory: The agent's path of the mount point or of the directory with the quota; empty for a block device.
        quota_directory: Directory of the quota that limits the image, such as an XFS project; empty without a quota.
        device: `major:minor` of a block device; empty for a file, or if the agent cannot see the device.
    """

    driver: str
    path: str
    mount: Mount | None = None
    directory: str = ""
    quota_directory: str = ""
    device: str = ""


class PoolReadError(Exception):
    """A pool cannot be read. The message states the cause for the operator."""


class PoolUnresponsiveError(PoolReadError):
    """The storage of a pool did not answer within the deadline."""


PoolReadings = Mapping[str, PoolReading | PoolReadError]
"""The reading of each pool, or the error of its read, by the pool's key."""


class PoolSource(Protocol):
    """Finds and reads the pools of one kind."""

    async def refresh_pool_lookup(self) -> bool:
        """Update the data that `find_pool` needs, such as a list of volumes. The call has a deadline and does not raise.

        Returns:
            True if `find_pool` may now return another pool for the same image.
        """

    def find_pool(self, image: ImageLocation) -> Pool | UnknownPool | None:
        """Return the pool of an image, without I/O that can block.

        Returns:
            The pool, or the reason why the pool is unknown; None if the image is not on this kind of pool.
        """

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Read pools that `find_pool` returned, within a deadline. A pool that hangs does not delay the others."""
