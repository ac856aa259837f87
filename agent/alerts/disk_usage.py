"""Usage of one disk: its size, the bytes in use and their growth. Pure.

A disk consists of two layers: the format, such as qcow2, and the storage below it, which is a file or a block device.
QEMU reports how many bytes the host has allocated for a file. For a block device it reports only the highest write offset.
"""

from array import array
from dataclasses import dataclass, field

from agent.alerts.image_size import max_file_bytes
from agent.alerts.levels import MAX_BYTES
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.threshold_types import DiskLayer, LimitedBy, is_same_identity, parse_name_and_bytes
from agent.host.pools.base import UnknownPool

GROWTH_SECONDS = 600.0
"""Period over which the growth rate is computed."""
MAX_GROWTH_POINTS = 64
"""Maximum number of measurements in `GROWTH_SECONDS`."""

MAX_PAST_NODES = 64
"""Maximum number of earlier storage nodes of a disk that are kept."""

FILE_DRIVERS = frozenset({"file", "nfs", "ssh", "gluster", "vvfat", "ftp", "ftps", "http", "https"})
"""Drivers of files. The usage of a file is its allocated bytes. Its current size is no limit, because a file can grow."""

UNKNOWN_POOL = UnknownPool("")
"""The pool of a disk before a pool is looked up."""


@dataclass(slots=True)
class DiskUsage:
    """Usage of one disk.

    Attributes:
        format: The format layer at the last poll; empty before the first.
        storage: The storage layer at the last poll; empty before the first.
        offset: The highest known write offset in the storage, in bytes; 0 if no write is known.
        past_nodes: The paths of earlier storage nodes by node name. A snapshot or a completed mirror changes the storage node.
        is_polled: Whether the layers were polled.
        pool: The pool of the image that the guest writes to; None while the agent searches for the pool.
        limit: The usage at which the disk is full, in bytes; 0 if unknown.
        limited_by: What determines `limit`: the pool, the device or the virtual size.
        reach: The usage that the disk can reach if its pool does not fill up, in bytes.
    """

    format: DiskLayer = field(default_factory=DiskLayer)
    storage: DiskLayer = field(default_factory=DiskLayer)
    offset: int = 0
    past_nodes: dict[str, str] = field(default_factory=dict)
    is_polled: bool = False
    pool: PoolUsage | UnknownPool | None = UNKNOWN_POOL
    limit: int = 0
    limited_by: LimitedBy = LimitedBy.UNKNOWN
    reach: int = 0
    _max_file_bytes: int = 0  # size of the file if it is fully allocated and has no internal snapshots
    _was_thin: bool = False  # whether the storage had unallocated bytes at any poll
    _pool_mark: tuple[float, int] = (-1.0, 0)  # when the pool was read last, and the usage at the first poll after that
    _layers_offset: int = 0  # the highest write offset and the allocated bytes when the layers were polled last
    _layers_allocated: int = 0
    _restored_write: tuple[str, int, str] = (
        "",
        0,
        "",
    )  # path, highest write offset and identity in an earlier run's note
    _points: "array[float]" = field(
        default_factory=lambda: array("d")
    )  # a time, the usage at this time, the next time and so on; tuples would take 7 KiB

    @property
    def measure(self) -> str:
        """What `used` counts: `allocated` for the allocated bytes of a file, or `offset` for the highest write offset in a device."""
        return "allocated" if self.storage.driver in FILE_DRIVERS else "offset"

    def update_limit(self) -> None:
        """Compute the limit again. The limit is stored, because each poll needs it several times."""
        used, free = self._used_at_reading, self.pool_free
        if self.measure == "offset":
            self.reach, own = self.storage.size, (self.storage.size, LimitedBy.DEVICE)
        elif self.can_outgrow_size:
            self.reach, own = MAX_BYTES, (0, LimitedBy.UNKNOWN)
        else:
            limited_by = LimitedBy.UNKNOWN if free is None else LimitedBy.VIRTUAL_SIZE
            self.reach, own = self._max_file_bytes, (self.format.size, limited_by)
        is_pool_first = free is not None and used + free < self.reach
        self.limit, self.limited_by = (used + (free or 0), LimitedBy.POOL) if is_pool_first else own

    @property
    def _used_at_reading(self) -> int:
        """Usage of the disk when the pool was read last. The pool's free bytes are of that time, too."""
        read_at, used = self._pool_mark
        return used if isinstance(self.pool, PoolUsage) and self.pool.read_at == read_at else self.used

    def _store_usage_at_reading(self) -> None:
        if isinstance(self.pool, PoolUsage) and self.pool.read_at != self._pool_mark[0]:
            self._pool_mark = self.pool.read_at, self.used

    @property
    def can_outgrow_size(self) -> bool:
        """True if the file can exceed its maximum size without internal snapshots. The image has such snapshots, or the file exceeds it."""
        return bool(self.format.snapshots) or (self.storage.allocated or 0) > self._max_file_bytes

    @property
    def pool_free(self) -> int | None:
        """Free bytes of the pool; None if they are unknown."""
        return self.pool.free if isinstance(self.pool, PoolUsage) else None

    @property
    def is_limit_known(self) -> bool:
        """False while the agent searches for the pool of a file, or has not read the pool yet."""
        pool = self.pool
        is_pending = pool is None or (isinstance(pool, PoolUsage) and pool.reading is None and not pool.error)
        return self.measure == "offset" or not is_pending

    @property
    def free(self) -> int:
        """Bytes left until the disk is full; valid only if `is_measured` is True."""
        return max(0, self.limit - self.used)

    @property
    def used(self) -> int:
        """Bytes in use; valid only if `is_measured` is True."""
        return self.storage.allocated or 0 if self.measure == "allocated" else self.offset

    @property
    def is_measured(self) -> bool:
        """True if the usage is known. QEMU reports the offset 0 until the first write after QEMU opened the image."""
        return self.storage.allocated is not None if self.measure == "allocated" else self.offset > 0

    @property
    def is_raw(self) -> bool:
        """True if the disk has no format such as qcow2. The guest writes at any offset, so the highest offset does not show the usage."""
        return self.format.driver == "raw" or self.format.node == self.storage.node

    @property
    def is_thin(self) -> bool:
        """True if the storage can run out of space. A raw device and a fully allocated file cannot."""
        if not self.is_polled or not self.is_limit_known or not self.limit or self.format.read_only:
            return False
        return self._was_thin if self.measure == "allocated" else not self.is_raw

    @property
    def growth_rate(self) -> float | None:
        """Growth in bytes per second over the last ten minutes; None until there are two measurements."""
        if len(self._points) < 4 or self._points[-2] <= self._points[0]:
            return None
        (start, used_then), (now, used_now) = self._points[:2], self._points[-2:]
        return max(0.0, used_now - used_then) / (now - start)

    @property
    def time_to_full(self) -> float | None:
        """Seconds until the disk is full at the current growth rate; None if the disk does not grow or its growth is unknown."""
        if self.limited_by is LimitedBy.POOL and isinstance(self.pool, PoolUsage):
            return self.pool.time_to_full  # others write to the pool too
        rate = self.growth_rate
        return self.free / rate if rate and self.free else None

    @property
    def written_since_layers(self) -> int:
        """Growth of the highest write offset since the last poll of the layers, in bytes."""
        return self.offset - self._layers_offset

    def on_offset(self, offset: int, now: float) -> None:
        """Handle a poll of the highest write offset in the storage."""
        self.offset = max(self.offset, offset)
        self._store_usage_at_reading()
        self.update_limit()
        if self.measure == "offset":
            self._add_point(now)

    def on_layers(self, form: DiskLayer, storage: DiskLayer, offset: int, now: float, *, had_alert: bool) -> bool:
        """Handle a poll of the layers.

        Args:
            form: The format layer.
            storage: The storage layer.
            offset: The highest known write offset in the storage, in bytes.
            now: The current time in seconds.
            had_alert: Whether a level of this disk was exceeded before. Then the storage had unallocated bytes when the guest filled it.

        Returns:
            True if another image replaced the disk's image.
        """
        path_before, _, identity_before = self._highest_write
        is_same = path_before == storage.path and is_same_identity(identity_before, storage.identity)
        if self.is_polled and storage.node != self.storage.node:
            newest = list(self.past_nodes.items())[1 - MAX_PAST_NODES :]
            self.past_nodes = dict(newest) | {self.storage.node: self.storage.path}
        if not self.is_polled or not is_same:
            del self._points[:]
            self.offset, self._was_thin = 0, False
            if not self.is_polled and is_same:
                self.offset = self._restored_write[1]
                self._was_thin = had_alert
            self._restored_write = ("", 0, "")
        self.format, self.storage, self.is_polled = form, storage, True
        self._max_file_bytes = max_file_bytes(form.driver, form.size, form.cluster)
        self.offset = self._layers_offset = max(self.offset, offset)
        self._layers_allocated = storage.allocated or 0
        has_holes = storage.allocated is not None and storage.allocated < form.size
        self._was_thin = self._was_thin or has_holes or self.can_outgrow_size
        self._store_usage_at_reading()
        self.update_limit()
        self._add_point(now)
        return bool(path_before) and not is_same

    def _add_point(self, now: float) -> None:
        if not self.is_measured:
            return
        while self._points and (now - self._points[0] > GROWTH_SECONDS or self._points[-1] > self.used):
            del self._points[:2]
        self._points.extend((now, self.used))
        del self._points[: -2 * MAX_GROWTH_POINTS]

    def raise_offset(self, offset: int) -> None:
        """Handle a BLOCK_WRITE_THRESHOLD event of any client. The guest has written up to this offset in the storage."""
        offset = min(offset, MAX_BYTES)
        if self.storage.allocated is not None and self.measure == "allocated":
            # A file grows at its end. So the last poll did not count bytes beyond the end of that time as allocated.
            grown = max(0, offset - max(self._layers_offset, self.storage.size))
            self.storage.allocated = max(self.storage.allocated, self._layers_allocated + grown)
        self.offset = max(self.offset, offset)
        self.update_limit()

    def to_note(self) -> list[str | int]:
        """Return the path, the highest write offset and the identity of the storage, for the next run of the agent."""
        return list(self._highest_write)

    @property
    def _highest_write(self) -> tuple[str, int, str]:
        return (self.storage.path, self.offset, self.storage.identity) if self.is_polled else self._restored_write

    def restore(self, note: object) -> None:
        """Restore a note that `to_note` returned in an earlier run. An invalid note is ignored."""
        match note:
            case [path, offset, str(identity)]:
                place = parse_name_and_bytes([path, offset])
                self._restored_write = (*place, identity) if place is not None else ("", 0, "")
