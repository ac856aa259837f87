"""Usage of one disk: its limit, the bytes in use, and their growth. Pure.

A disk consists of two layers: the format, such as qcow2, and below the format the storage, which is a file or a block device.
QEMU reports how many bytes the host has allocated for a file. For a block device, QEMU reports only the highest write offset.
"""

from dataclasses import dataclass, field

from agent.alerts.disk_growth import DiskGrowth
from agent.alerts.disk_levels import MAX_SIZE_BYTES
from agent.alerts.disk_threshold_types import DiskLayer, LimitedBy, may_be_same_device, parse_stored_name_and_bytes
from agent.alerts.fully_allocated_image_size import fully_allocated_image_bytes
from agent.alerts.pool_usage import PoolUsage
from agent.host.pools.base import UnknownPool

MAX_PAST_NODES = 64
"""Maximum number of earlier storage nodes to keep for a disk."""

FILE_DRIVERS = frozenset({"file", "nfs", "ssh", "gluster", "vvfat", "ftp", "ftps", "http", "https"})
"""Drivers of files. The usage of a file is its allocated bytes. The size of a file is no limit, because a file can grow."""

UNKNOWN_POOL = UnknownPool("")
"""The value of a disk's pool before the agent searches for the pool."""


# 16 public methods: eleven are properties, and each property computes one number from the same few attributes.
@dataclass(slots=True)
class DiskUsage:
    """Usage of one disk.

    Attributes:
        format: The format layer at the last poll; empty before the first poll.
        storage: The storage layer at the last poll; empty before the first poll.
        offset: The highest known write offset in the storage, in bytes; 0 if no write is known.
        past_nodes: The paths of earlier storage nodes by node name. A snapshot or a completed mirror changes the storage node.
        is_polled: Whether the layers were polled.
        volume_allocated_bytes: The bytes that the volume under the disk occupies in its pool; None if the disk is not on a thin volume.
        pool: The pool of the image that the guest writes to; None while the agent searches for the pool.
        limit: The usage at which the disk is full, in bytes; 0 if unknown.
        limited_by: What determines `limit`: the pool, the device or the virtual size.
        max_usage: The highest usage that the disk could reach in a pool of unlimited size, in bytes.
        growth: The growth over the last minutes.
    """

    format: DiskLayer = field(default_factory=DiskLayer)
    storage: DiskLayer = field(default_factory=DiskLayer)
    offset: int = 0
    past_nodes: dict[str, str] = field(default_factory=dict)
    is_polled: bool = False
    volume_allocated_bytes: int | None = None
    pool: PoolUsage | UnknownPool | None = UNKNOWN_POOL
    limit: int = 0
    limited_by: LimitedBy = LimitedBy.UNKNOWN
    max_usage: int = 0
    growth: DiskGrowth = field(default_factory=DiskGrowth)
    _max_file_bytes: int = 0  # size of the file if it is fully allocated and has no internal snapshots
    _was_thin: bool = False  # whether the storage had unallocated bytes at some poll
    # When the pool was last read, in seconds, and the disk's usage in bytes at the first poll after that read.
    _read_at_and_usage: tuple[float, int] = (
        -1.0,
        0,
    )
    _layers_offset: int = 0  # the highest write offset when the layers were polled last
    _layers_allocated: int = 0  # the allocated bytes when the layers were polled last
    # Path, highest write offset and identity that an earlier run stored.
    _restored_write: tuple[str, int, str] = ("", 0, "")

    @property
    def used_bytes_measure(self) -> str:
        """What `used` counts: `allocated` for the allocated bytes of a file or volume, `offset` for a device's highest write offset."""
        return "allocated" if self.storage.driver in FILE_DRIVERS or self.is_raw_on_thin_volume else "offset"

    @property
    def is_raw_on_thin_volume(self) -> bool:
        """True for a raw disk on a thin volume. The guest writes at any offset, so only the pool reports the usage of that disk."""
        return self.volume_allocated_bytes is not None and self.storage.driver not in FILE_DRIVERS and self.is_raw

    @property
    def allocated_bytes(self) -> int | None:
        """Allocated bytes of the file or the volume; None if unknown."""
        if self.volume_allocated_bytes is not None and self.is_raw_on_thin_volume:
            return min(self.volume_allocated_bytes, self.format.size)  # ZFS also counts the metadata of a volume
        return self.storage.allocated

    def _update_limit(self) -> None:
        """Compute and store the limit, because each poll reads the limit several times."""
        used, free = self._used_at_reading, self._pool_free
        if self.used_bytes_measure == "offset":
            self.max_usage, own = self.storage.size, (self.storage.size, LimitedBy.DEVICE)
        elif self._can_outgrow_size:
            self.max_usage, own = MAX_SIZE_BYTES, (0, LimitedBy.UNKNOWN)
        else:
            limited_by = LimitedBy.UNKNOWN if free is None else LimitedBy.VIRTUAL_SIZE
            self.max_usage, own = self._max_file_bytes, (self.format.size, limited_by)
        is_pool_first = free is not None and used + free < self.max_usage
        self.limit, self.limited_by = (used + (free or 0), LimitedBy.POOL) if is_pool_first else own

    @property
    def _used_at_reading(self) -> int:
        """Usage of the disk in bytes when the pool was last read. The limit is this usage plus the pool's free bytes at that time."""
        read_at, used = self._read_at_and_usage
        return used if isinstance(self.pool, PoolUsage) and self.pool.read_at == read_at else self.used_bytes

    def _store_usage_at_reading(self) -> None:
        if isinstance(self.pool, PoolUsage) and self.pool.read_at != self._read_at_and_usage[0]:
            self._read_at_and_usage = self.pool.read_at, self.used_bytes

    @property
    def _can_outgrow_size(self) -> bool:
        """True if the file has internal snapshots, or is larger than a fully allocated image without snapshots."""
        return bool(self.format.snapshots) or (self.allocated_bytes or 0) > self._max_file_bytes

    @property
    def _pool_free(self) -> int | None:
        """Free bytes of the pool; None if unknown."""
        return self.pool.free if isinstance(self.pool, PoolUsage) else None

    @property
    def is_limit_known(self) -> bool:
        """False while the agent searches for a file's pool, and before the first read of that pool; otherwise True."""
        pool = self.pool
        is_pending = pool is None or (isinstance(pool, PoolUsage) and pool.reading is None and not pool.error)
        return self.used_bytes_measure == "offset" or not is_pending

    @property
    def free(self) -> int:
        """Bytes left until the disk is full; valid only if `is_usage_known` is True."""
        return max(0, self.limit - self.used_bytes)

    @property
    def used_bytes(self) -> int:
        """Bytes in use; valid only if `is_usage_known` is True."""
        return self.allocated_bytes or 0 if self.used_bytes_measure == "allocated" else self.offset

    @property
    def is_usage_known(self) -> bool:
        """True if the usage is known. A highest write offset of 0 counts as unknown, because QEMU begins at 0 with each opened image."""
        return self.allocated_bytes is not None if self.used_bytes_measure == "allocated" else self.offset > 0

    @property
    def is_raw(self) -> bool:
        """True if the disk has no format such as qcow2. The guest writes at any offset, so the highest write offset is not the usage."""
        return self.format.driver == "raw" or self.format.node == self.storage.node

    @property
    def can_run_out_of_space(self) -> bool:
        """True if the storage can run out of space. A raw device and a fully allocated file cannot run out of space."""
        if not self.is_polled or not self.is_limit_known or not self.limit or self.format.read_only:
            return False
        return self._was_thin if self.used_bytes_measure == "allocated" else not self.is_raw

    @property
    def time_to_full(self) -> float | None:
        """Seconds until the disk is full at the current growth rate; None if the disk does not grow or its growth is unknown."""
        if self.limited_by is LimitedBy.POOL and isinstance(self.pool, PoolUsage):
            return self.pool.time_to_full  # the pool's growth counts, because other disks also write to the pool
        rate = self.growth.rate
        return self.free / rate if rate and self.free else None

    @property
    def written_since_layer_poll(self) -> int:
        """Growth of the highest write offset since the last poll of the layers, in bytes."""
        return self.offset - self._layers_offset

    def on_highest_write_offset(self, offset: int, now: float) -> None:
        """Handle a poll of the highest write offset in the storage."""
        self.offset = max(self.offset, offset)
        self._store_usage_at_reading()
        self._update_limit()
        if self.used_bytes_measure == "offset" or self.is_raw_on_thin_volume:
            self._add_point(now)

    def on_layers(
        self, image_format: DiskLayer, storage: DiskLayer, offset: int, now: float, *, had_alert: bool
    ) -> bool:
        """Handle a poll of the layers.

        Args:
            image_format: The format layer.
            storage: The storage layer.
            offset: The highest known write offset in the storage, in bytes.
            now: The current time in seconds.
            had_alert: Whether a level of this disk was exceeded in an earlier run. If so, the storage had unallocated bytes in that run.

        Returns:
            True if another image replaced the disk's image.
        """
        path_before, _, identity_before = self._highest_write
        is_same = path_before == storage.path and may_be_same_device(identity_before, storage.identity)
        if self.is_polled and storage.node != self.storage.node:
            newest = list(self.past_nodes.items())[1 - MAX_PAST_NODES :]
            self.past_nodes = dict(newest) | {self.storage.node: self.storage.path}
        if not self.is_polled or not is_same:
            self.growth.clear()
            self.offset, self._was_thin = 0, False
            if not self.is_polled and is_same:
                self.offset = self._restored_write[1]
                self._was_thin = had_alert
            self._restored_write = ("", 0, "")
        self.format, self.storage, self.is_polled = image_format, storage, True
        self._max_file_bytes = fully_allocated_image_bytes(image_format.driver, image_format.size, image_format.cluster)
        self.offset = self._layers_offset = max(self.offset, offset)
        self._layers_allocated = storage.allocated or 0
        has_holes = self.allocated_bytes is not None and self.allocated_bytes < image_format.size
        self._was_thin = self._was_thin or has_holes or self._can_outgrow_size
        self._store_usage_at_reading()
        self._update_limit()
        self._add_point(now)
        return bool(path_before) and not is_same

    def _add_point(self, now: float) -> None:
        if self.is_usage_known:
            self.growth.add(self.used_bytes, now)

    def on_threshold_exceeded(self, offset: int) -> None:
        """Handle BLOCK_WRITE_THRESHOLD for a threshold of any client. The guest has written up to `offset` in the storage."""
        offset = min(offset, MAX_SIZE_BYTES)
        if self.storage.allocated is not None and self.storage.driver in FILE_DRIVERS:
            # A file grows at its end. So bytes beyond the file's size at the last poll are newly allocated.
            grown = max(0, offset - max(self._layers_offset, self.storage.size))
            self.storage.allocated = max(self.storage.allocated, self._layers_allocated + grown)
        self.offset = max(self.offset, offset)
        self._update_limit()

    def state_to_store(self) -> list[str | int]:
        """Return the path, the highest write offset and the identity of the storage, for the next run of the agent."""
        return list(self._highest_write)

    @property
    def _highest_write(self) -> tuple[str, int, str]:
        return (self.storage.path, self.offset, self.storage.identity) if self.is_polled else self._restored_write

    def restore(self, stored: object) -> None:
        """Restore what `state_to_store` returned in an earlier run. Ignore an invalid value."""
        match stored:
            case [path, offset, str(identity)]:
                place = parse_stored_name_and_bytes([path, offset])
                self._restored_write = (*place, identity) if place is not None else ("", 0, "")
