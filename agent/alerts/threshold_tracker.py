"""One disk's write threshold: how full it is, which rungs were told, what the slot in QEMU holds, what is to be put there. Pure.

QEMU has one slot for each block node. Whoever writes it overwrites what was there, it empties itself when it fires, and setting it below
what is already written does nothing until the next write. So: read the slot, leave it alone when it holds somebody else's value, set
the next rung's, then compare the level. What was set is remembered before it is set, so that after a restart a slot that is empty, where
it should not be, is known to have fired or been cleared meanwhile.

Rungs that were told are remembered by their levels as they are written, not by their number: a disk that grows, or a config that is
changed, changes the ladder's order and length under them.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.levels import MAX_BYTES, Level, ResolvedLevel, resolve_levels
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
FRESH_SHARE = 0.01
"""A file that was written this share of its size further than when its allocation was asked for is asked again."""
MAX_TOLD = 1000
MAX_OURS = 16
"""Thresholds of ours that are remembered: an event may come after a reply that shows the slot empty, or from an old node."""
MAX_REFUSALS = 3
"""How often setting a node's threshold is tried."""

FILES = frozenset({"file", "nfs", "ssh", "gluster", "vvfat", "ftp", "ftps", "http", "https"})
"""Storage drivers whose size says nothing of how much may be written: what is allocated does."""


@dataclass(slots=True)
class ThresholdTracker:
    """One disk.

    Attributes:
        plan: what is wanted.
        armed: the node and the value that were put into its slot, or are about to be.
        foreign: whether the slot was found to hold somebody else's value; from then on it is left alone.
        storage, format: the layers, once known.
    """

    plan: ThresholdPolicy
    armed: tuple[str, int] | None = None
    foreign: bool = False
    storage: DiskLayer = field(default_factory=DiskLayer)
    format: DiskLayer = field(default_factory=DiskLayer)
    offset: int = 0
    """Where the highest write to the storage ended, since it was opened."""
    _told: frozenset[str] = frozenset()
    _ours: list[tuple[str, int]] = field(
        default_factory=list
    )  # what we put last into nodes' slots, the youngest at the end
    _refusals: dict[str, int] = field(default_factory=dict)
    _doubt: bool = False  # whether `armed` may never have reached QEMU
    _was_thin: bool = False
    _asked_offset: int = 0
    _asked_allocated: int = 0
    _known: bool = False
    _rungs: tuple[tuple[int, tuple[Level, ...]], tuple[ResolvedLevel, ...]] = (
        (0, ()),
        (),
    )  # and of what they were made
    _high: tuple[str, int] = ("", 0)
    _points: "array[float]" = field(default_factory=lambda: array("d"))
    """When, and how much was used then, in turn: as tuples these would be 7 KiB of each disk."""

    # What it is about.

    @property
    def measure(self) -> str:
        """What fullness means here: `offset` into a device, or what a file has `allocated`."""
        return "allocated" if self.storage.driver in FILES else "offset"

    @property
    def limit(self) -> int:
        """How much there is: the device's size, or for a file what the guest may write; 0 while that is not known."""
        return self.format.size if self.measure == "allocated" else self.storage.size

    @property
    def used(self) -> int:
        """How much of that is used."""
        return self.storage.allocated if self.measure == "allocated" else self.offset

    @property
    def is_raw(self) -> bool:
        """Whether the guest's offsets are the storage's: it writes wherever it likes, so that an offset says nothing."""
        return self.format.driver == "raw" or self.format.node == self.storage.node

    @property
    def thin(self) -> bool:
        """Whether it can fill at all: a raw device holds what the guest sees from the start, and so does a file that is all allocated."""
        if not self._known or not self.limit or self.format.read_only:
            return False
        return self._was_thin if self.measure == "allocated" else not self.is_raw

    @property
    def ladder(self) -> tuple[ResolvedLevel, ...]:
        """The rungs on this disk; none where nothing is wanted or can be said."""
        if self.plan.mode is ThresholdMode.OFF or not self.thin:
            return ()
        of = self.limit, self.plan.levels
        if self._rungs[0] != of:  # each poll asks
            self._rungs = of, resolve_levels(self.plan.levels, self.limit)
        return self._rungs[1]

    @property
    def told(self) -> int:
        """How many rungs were told and still hold."""
        return len(self._told)

    @property
    def growth(self) -> float | None:
        """Bytes a second over the last ten minutes; None until there are two points."""
        if len(self._points) < 4 or self._points[-2] <= self._points[0]:
            return None
        (then, less), (now, more) = self._points[:2], self._points[-2:]
        return max(0.0, more - less) / (now - then)

    @property
    def full_in(self) -> float | None:
        """Seconds until it is full at that rate; None while it does not grow."""
        growth = self.growth
        return (self.limit - self.used) / growth if growth and self.limit > self.used else None

    # What comes.

    def written(self, storage_node: str, offset: int, now: float) -> bool:
        """Take what a poll says of the storage; return whether the layers should be asked for again before anything is said."""
        if storage_node != self.storage.node or self._doubt:
            return True  # a snapshot, or a mirror's pivot
        self.offset = max(self.offset, offset)
        if self.measure == "offset":
            self._point(now)
            return any(self._changes())
        grown = self.offset - self._asked_offset
        if grown <= 0:
            return False
        rung = self._next()
        near = rung is not None and self.used + grown > rung.bytes
        return near or grown > max(self.limit * FRESH_SHARE, 1)

    def _point(self, now: float) -> None:
        while self._points and (now - self._points[0] > GROWTH_SECONDS or self._points[-1] > self.used):
            del self._points[:2]
        self._points.extend((now, self.used))
        del self._points[: -2 * GROWTH_POINTS]

    def layers(self, form: DiskLayer, storage: DiskLayer, offset: int, now: float) -> Iterator[LevelCrossing]:
        """Take the layers as they are now; yield the rungs crossed since they were told."""
        if storage.path != self.storage.path:
            del self._points[:]
            self.offset, self._was_thin = 0, False
            if storage.path == self._high[0]:
                self.offset = self._high[1]  # QEMU counts from 0 again when it opens a file anew
                self._was_thin = bool(self._told)
            self._high = ("", 0)
        self.format, self.storage, self._known = form, storage, True
        self.offset = self._asked_offset = max(self.offset, offset)
        self._asked_allocated = storage.allocated
        self._was_thin = self._was_thin or storage.allocated < self.limit
        self._point(now)
        yield from self._compare(self._slot())

    def _slot(self) -> DetectedBy:
        """Compare the slot with what was put there; return how a crossing that shows now was detected."""
        node, slot = self.storage.node, self.storage.slot
        (before, self.armed), (doubt, self._doubt) = (self.armed, None), (self._doubt, False)
        if slot and (before == (node, slot) or (not self.foreign and self._is_ours(node, slot))):
            self.armed = (node, slot)
        elif slot:
            self.foreign = True
        lost = before is not None and before[0] == node and before != self.armed and not doubt
        return DetectedBy.MISSED if lost else DetectedBy.LEVEL

    def _is_ours(self, node: str, slot: int) -> bool:
        """Whether a value is one that we set, or that we would set: in a run that could not remember it."""
        would = self.plan.mode is ThresholdMode.ARM and any(slot == rung.bytes for rung in self.ladder)
        return (node, slot) in self._ours or would

    def owns(self, node: str, threshold: int) -> bool:
        """Whether we set that threshold, be it on a node that is no longer the disk's storage."""
        return self.armed == (node, threshold) or (node, threshold) in self._ours

    def fired(self, node: str, threshold: int, by: int) -> Iterator[LevelCrossing]:
        """Take an event of our own threshold; yield the rungs that it crossed."""
        if not self.owns(node, threshold) or not self._known:
            return  # before the first look, `armed` has to stay: the slot that is empty then tells that it was missed
        if self.armed == (node, threshold):
            self.armed = None
        if node != self.storage.node:
            return
        self.reached(threshold + by)
        self.storage.slot = 0
        yield from self._compare(DetectedBy.EVENT)

    def reached(self, end: int) -> None:
        """Take from an event, whoever's threshold it was, that the storage is written up to there."""
        end = min(end, MAX_BYTES)
        if self.measure == "allocated":
            # A file grows at its end: what lies past the end that was seen last was not allocated then.
            grown = max(0, end - max(self._asked_offset, self.storage.size))
            self.storage.allocated = max(self.storage.allocated, self._asked_allocated + grown)
        self.offset = max(self.offset, end)

    def _changes(self) -> Iterator[tuple[ResolvedLevel, bool]]:
        """Yield the rungs that were crossed upward, the lowest first, then those that hold no more, the highest first."""
        if not self.limit:
            return  # it is not known now
        ladder, used, slack = self.ladder, self.used, int(self.limit * self.plan.hysteresis)
        for rung in ladder:
            if used > rung.bytes and rung.text not in self._told:
                yield rung, True
        for rung in reversed(ladder):
            if used <= rung.bytes - slack and rung.text in self._told:
                yield rung, False
        for text in sorted(self._told - {rung.text for rung in ladder}):
            yield ResolvedLevel(text, 0), False

    def _compare(self, detected_by: DetectedBy) -> Iterator[LevelCrossing]:
        """Yield what changed since it was told, and take it as told."""
        ladder = self.ladder
        for rung, firing in list(self._changes()):
            self._told = self._told | {rung.text} if firing else self._told - {rung.text}
            top = len(ladder) > 1 and rung == ladder[-1]
            ended = ResolvedReason.SPACE if rung in ladder else ResolvedReason.LEVEL_GONE
            yield LevelCrossing(
                rung, self.used, self.limit, detected_by if firing else DetectedBy.LEVEL, firing, top, ended
            )

    # What is to be done.

    def _next(self) -> ResolvedLevel | None:
        return next((rung for rung in self.ladder if rung.text not in self._told), None)

    def wanted(self) -> tuple[str, int] | None:
        """Return the node and the value to be put into its slot now, or None where nothing is."""
        if self.plan.mode is not ThresholdMode.ARM or self.foreign or self.armed is not None or self._doubt:
            return None
        node, rung = self.storage.node, self._next()
        if self.storage.slot or self.is_raw or rung is None or self._refusals.get(node, 0) >= MAX_REFUSALS:
            return None
        # A file grows at its end: what is still to be allocated lies behind what there is of it.
        base = max(self.offset, self.storage.size) if self.measure == "allocated" else self.offset
        value = base + rung.bytes - self.used
        return (node, value) if base <= value <= MAX_BYTES else None

    def order(self) -> tuple[str, int] | None:
        """Return what `wanted` does, which counts as set from here on."""
        wanted = self.wanted()
        if wanted is not None:
            self.armed = wanted
            self._ours = [*(one for one in self._ours if one != wanted), wanted][-MAX_OURS:]
        return wanted

    def on_command_done(self, *, done: bool) -> None:
        """Take note whether what was ordered last was set; if it was refused, or nobody knows, the next look at the slot tells."""
        node = self.storage.node
        if done:
            self._refusals.pop(node, None)
        else:
            self._doubt = True
            self._refusals[node] = self._refusals.get(node, 0) + 1

    def remember(self) -> dict[str, Any]:
        """Return what has to outlive the agent."""
        return {
            "told": sorted(self._told),
            "armed": list(self.armed) if self.armed is not None else None,
            "ours": [list(one) for one in self._ours],
            "high": [self.storage.path, self.offset] if self._known else list(self._high),
        }

    def recall(self, kept: object) -> None:
        """Take what `remember` returned in an earlier run; anything else is ignored."""
        if not isinstance(kept, dict):
            return
        told, armed, ours, high = (kept.get(name) for name in ("told", "armed", "ours", "high"))
        if isinstance(told, list):
            self._told = frozenset(text for text in told[:MAX_TOLD] if isinstance(text, str))
        self.armed = _place(armed)
        self._ours = [one for one in map(_place, ours if isinstance(ours, list) else ()) if one is not None][-MAX_OURS:]
        self._high = _place(high) or ("", 0)


def _place(kept: object) -> tuple[str, int] | None:
    """Return a node or a path with a value, as it was kept; None where it is none."""
    match kept:
        case [str(name), int(value)] if not isinstance(value, bool) and 0 <= value <= MAX_BYTES:
            return name, value
    return None
