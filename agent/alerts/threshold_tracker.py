"""Usage of one disk: how full it is, which levels are exceeded, and which write threshold QEMU should have. Pure.

After a threshold is set, the levels are compared again: QEMU sends no event if a write has passed the threshold already.

Exceeded levels are remembered by their text, not by their number. A disk that is extended, or a config that changes, changes the order
and the number of the levels.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.levels import MAX_BYTES, Level, ResolvedLevel, resolve_levels
from agent.alerts.threshold_slot import SlotState, Threshold, ThresholdSlot, parse_place
from agent.alerts.threshold_types import (
    DetectedBy,
    DiskLayer,
    LevelCrossing,
    ResolvedReason,
    ThresholdMode,
    ThresholdPolicy,
)

GROWTH_SECONDS = 600.0
GROWTH_POINTS = 64
REFRESH_SHARE = 0.01
"""A file's layers are queried again after writes have extended the file by this share of its limit."""
MAX_EXCEEDED = 1000
"""Limit of the exceeded levels that are restored from a note."""

FILE_DRIVERS = frozenset({"file", "nfs", "ssh", "gluster", "vvfat", "ftp", "ftps", "http", "https"})
"""Storage drivers whose size does not limit what can be written. Their allocated bytes are the usage."""


@dataclass(slots=True)
class ThresholdTracker:
    """Usage and write threshold of one disk.

    Attributes:
        policy: The config's policy.
        slot: The write-threshold slot of the storage node.
        storage, format: The layers, once known.
        offset: End of the highest known write to the storage, in bytes; 0 if none is known.
        past_nodes: Paths of the earlier storage nodes, before a snapshot or a mirror's pivot, by node.
    """

    policy: ThresholdPolicy
    slot: ThresholdSlot = field(default_factory=ThresholdSlot)
    storage: DiskLayer = field(default_factory=DiskLayer)
    format: DiskLayer = field(default_factory=DiskLayer)
    offset: int = 0
    past_nodes: dict[str, str] = field(default_factory=dict)
    _exceeded: frozenset[str] = frozenset()
    _was_thin: bool = False
    _queried_offset: int = 0  # offset and allocated bytes when the layers were queried last
    _queried_allocated: int = 0
    _known: bool = False
    _levels: tuple[tuple[int, tuple[Level, ...]], tuple[ResolvedLevel, ...]] = (
        (0, ()),
        (),
    )  # the limit and levels that were resolved last, and the result
    _highest_write: tuple[str, int] = ("", 0)  # path and offset of an earlier run
    _points: "array[float]" = field(
        default_factory=lambda: array("d")
    )  # time and usage in turn; tuples would take 7 KiB

    # Properties of the disk.

    @property
    def measure(self) -> str:
        """Meaning of usage: `offset`, the end of the highest write to a device; or `allocated`, the allocated bytes of a file."""
        return "allocated" if self.storage.driver in FILE_DRIVERS else "offset"

    @property
    def limit(self) -> int:
        """Bytes that can be used: the size of a device, or the virtual size of a disk in a file; 0 while unknown."""
        return self.format.size if self.measure == "allocated" else self.storage.size

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self.storage.allocated if self.measure == "allocated" else self.offset

    @property
    def is_measured(self) -> bool:
        """True if the usage is known. QEMU reports the offset 0 until it has written to an image that it opened."""
        return self.measure == "allocated" or self.offset > 0

    @property
    def is_raw(self) -> bool:
        """True if the guest's offsets are those of the storage. Such a guest writes anywhere, and an offset shows no usage."""
        return self.format.driver == "raw" or self.format.node == self.storage.node

    @property
    def thin(self) -> bool:
        """True if the storage can run out of space. A raw device and a fully allocated file cannot."""
        if not self._known or not self.limit or self.format.read_only:
            return False
        return self._was_thin if self.measure == "allocated" else not self.is_raw

    @property
    def levels(self) -> tuple[ResolvedLevel, ...]:
        """The levels on this disk, the lowest first; none if the policy is off or the disk is not thin."""
        if self.policy.mode is ThresholdMode.OFF or not self.thin:
            return ()
        key = self.limit, self.policy.levels
        if self._levels[0] != key:  # cached: each poll needs it
            self._levels = key, resolve_levels(self.policy.levels, self.limit)
        return self._levels[1]

    @property
    def exceeded_levels(self) -> int:
        """Number of exceeded levels."""
        return len(self._exceeded)

    @property
    def growth_rate(self) -> float | None:
        """Growth in bytes per second over the last ten minutes; None before the second measurement."""
        if len(self._points) < 4 or self._points[-2] <= self._points[0]:
            return None
        (start, used_then), (now, used_now) = self._points[:2], self._points[-2:]
        return max(0.0, used_now - used_then) / (now - start)

    @property
    def time_to_full(self) -> float | None:
        """Seconds until the disk is full at the current growth rate; None while it does not grow."""
        rate = self.growth_rate
        return (self.limit - self.used) / rate if rate and self.limit > self.used else None

    # Input.

    def on_poll(self, storage_node: str, offset: int, now: float) -> bool:
        """Handle the highest write offset of a poll; return whether the layers have to be queried before levels can be compared."""
        if storage_node != self.storage.node or self.slot.needs_read:
            return True  # a snapshot or a mirror's pivot changed the storage
        self.offset = max(self.offset, offset)
        if self.measure == "offset":
            self._add_point(now)
            return self.is_measured and any(self._changes())
        grown = self.offset - self._queried_offset
        if grown <= 0:
            return False
        level = self._next_level()
        is_near = level is not None and self.used + grown > level.bytes
        return is_near or grown > max(self.limit * REFRESH_SHARE, 1)

    def _add_point(self, now: float) -> None:
        if not self.is_measured:
            return
        while self._points and (now - self._points[0] > GROWTH_SECONDS or self._points[-1] > self.used):
            del self._points[:2]
        self._points.extend((now, self.used))
        del self._points[: -2 * GROWTH_POINTS]

    def on_layers(self, form: DiskLayer, storage: DiskLayer, offset: int, now: float) -> Iterator[LevelCrossing]:
        """Handle the layers as QEMU reports them; yield the levels crossed since the last comparison."""
        path_before = self.storage.path if self._known else self._highest_write[0]
        is_replaced = bool(path_before) and path_before != storage.path
        if self._known and storage.node != self.storage.node:
            self.past_nodes = {**self.past_nodes, self.storage.node: self.storage.path}
        if storage.path != self.storage.path:
            del self._points[:]
            self.offset, self._was_thin = 0, False
            if storage.path == self._highest_write[0]:
                self.offset = self._highest_write[1]  # QEMU counts from 0 again when it opens a file
                self._was_thin = bool(self._exceeded)
            self._highest_write = ("", 0)
        self.format, self.storage, self._known = form, storage, True
        self.offset = self._queried_offset = max(self.offset, offset)
        self._queried_allocated = storage.allocated
        self._was_thin = self._was_thin or storage.allocated < self.limit
        self._add_point(now)
        has_fired = self.slot.read(
            storage.node, storage.write_threshold, is_level=self._is_own_level(storage.write_threshold)
        )
        yield from self._compare(DetectedBy.MISSED if has_fired else DetectedBy.LEVEL, is_replaced=is_replaced)

    def _is_own_level(self, value: int) -> bool:
        return self.policy.mode is ThresholdMode.ARM and any(value == level.bytes for level in self.levels)

    def on_event(self, node: str, threshold: int, exceeded_by: int) -> Iterator[LevelCrossing]:
        """Handle the event of the agent's own threshold; yield the levels that the write crossed."""
        if not self.slot.owns(node, threshold) or not self._known:
            return
        self.slot.fire(node, threshold)
        if node == self.storage.node:
            self.raise_offset(threshold + exceeded_by)
            yield from self._compare(DetectedBy.EVENT)

    def raise_offset(self, end: int) -> None:
        """Handle a threshold event of any client: the storage is written up to the offset `end`."""
        end = min(end, MAX_BYTES)
        if self.measure == "allocated":
            # A file grows at its end: bytes beyond the end that was seen last were not allocated then.
            grown = max(0, end - max(self._queried_offset, self.storage.size))
            self.storage.allocated = max(self.storage.allocated, self._queried_allocated + grown)
        self.offset = max(self.offset, end)

    def _changes(self) -> Iterator[tuple[ResolvedLevel, bool]]:
        """Yield the newly exceeded levels, the lowest first, then those no longer exceeded, the highest first."""
        if not self.limit or (self.measure == "offset" and not self.is_raw and not self.is_measured):
            return  # usage is unknown
        levels, used, slack = self.levels, self.used, int(self.limit * self.policy.hysteresis)
        for level in levels:
            if used > level.bytes and level.text not in self._exceeded:
                yield level, True
        for level in reversed(levels):
            if used <= level.bytes - slack and level.text in self._exceeded:
                yield level, False
        for text in sorted(self._exceeded - {level.text for level in levels}):
            yield ResolvedLevel(text, 0), False

    def _compare(self, detected_by: DetectedBy, *, is_replaced: bool = False) -> Iterator[LevelCrossing]:
        """Yield the crossings since the last comparison, and store them."""
        levels = self.levels
        changes = list(self._changes())
        if is_replaced and not self.is_measured:  # the earlier image exceeded these levels
            changes = [(ResolvedLevel(text, 0), False) for text in sorted(self._exceeded)]
        for level, firing in changes:
            self._exceeded = self._exceeded | {level.text} if firing else self._exceeded - {level.text}
            yield LevelCrossing(
                level,
                self.used,
                self.limit,
                detected_by if firing else DetectedBy.LEVEL,
                firing,
                is_highest=len(levels) > 1 and level == levels[-1],
                resolved_by=_reason(is_known=level in levels, is_replaced=is_replaced),
            )

    # Output.

    def _next_level(self) -> ResolvedLevel | None:
        return next((level for level in self.levels if level.text not in self._exceeded), None)

    def next_threshold(self) -> Threshold | None:
        """Return the threshold to set now, or None."""
        level = self._next_level()
        if self.policy.mode is not ThresholdMode.ARM or self.slot.state is not SlotState.EMPTY:
            return None
        if self.is_raw or level is None:
            return None
        # A file grows at its end: bytes that are not allocated yet are beyond its current end.
        base = max(self.offset, self.storage.size) if self.measure == "allocated" else self.offset
        value = base + level.bytes - self.used
        return (self.storage.node, value) if base <= value <= MAX_BYTES else None

    def take_command(self) -> Threshold | None:
        """Return the threshold to set now, or None. It counts as set from now on."""
        threshold = self.next_threshold()
        if threshold is not None:
            self.slot.send(*threshold)
        return threshold

    def on_command_done(self, *, done: bool) -> None:
        """Handle the outcome of the command that set the threshold; `done` says whether QEMU confirmed it."""
        self.slot.on_command_done(self.storage.node, done=done)

    @property
    def has_state(self) -> bool:
        """True if there is state that has to survive a restart of the agent."""
        return bool(self._exceeded) or self.slot.threshold is not None

    def to_note(self) -> dict[str, Any]:
        """Return the state that has to survive a restart of the agent, as JSON values."""
        highest_write = (self.storage.path, self.offset) if self._known else self._highest_write
        return {"exceeded": sorted(self._exceeded), **self.slot.to_note(), "highest_write": list(highest_write)}

    def restore(self, note: object) -> None:
        """Restore a note that `to_note` returned in an earlier run; other values are ignored."""
        if not isinstance(note, dict):
            return
        exceeded = note.get("exceeded")
        if isinstance(exceeded, list):
            self._exceeded = frozenset(text for text in exceeded[:MAX_EXCEEDED] if isinstance(text, str))
        self.slot.restore(note)
        self._highest_write = parse_place(note.get("highest_write")) or ("", 0)


def _reason(*, is_known: bool, is_replaced: bool) -> ResolvedReason:
    if is_replaced:
        return ResolvedReason.REPLACED
    return ResolvedReason.SPACE if is_known else ResolvedReason.LEVEL_GONE
