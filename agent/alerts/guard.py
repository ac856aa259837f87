"""One disk's write threshold: how full it is, which rungs were told, what the slot in QEMU holds, what is to be put there. Pure.

QEMU has one slot for each block node. Whoever writes it overwrites what was there, it empties itself when it fires, and setting it below
what is already written does nothing until the next write. So: read the slot, leave it alone when it holds somebody else's value, set
the next rung's, then compare the level. What was set is remembered before it is set, so that after a restart a slot that is empty, where
it should not be, is known to have fired or been cleared meanwhile.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.alerts.ladder import Level, Rung, exceeded, held, rungs

GROWTH_SECONDS = 600.0
GROWTH_POINTS = 64
FRESH_SHARE = 0.01
"""A file that was written this share of its size further than when its allocation was asked for is asked again."""

FILES = frozenset({"file", "nfs", "ssh", "gluster", "vvfat", "ftp", "ftps", "http", "https"})
"""Storage drivers whose size says nothing of how much may be written: what is allocated does."""


class Mode(StrEnum):
    """What is done about thresholds."""

    OFF = "off"
    OBSERVE = "observe"
    """Nothing is set in QEMU; levels are compared at each poll."""
    ARM = "arm"
    """The agent sets thresholds, so that QEMU tells at the write."""


class Learnt(StrEnum):
    """How a crossing was learnt."""

    EVENT = "event"
    """QEMU said so, at the write."""
    LEVEL = "level"
    """A comparison showed it."""
    MISSED = "missed"
    """It happened while the agent was away, or its event was lost."""
    ENOSPC = "enospc"
    """A write failed for want of space."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the config wants of a disk."""

    mode: Mode
    levels: tuple[Level, ...]
    hysteresis: float = 0.02
    """The share of its size that a disk has to come down by before a rung is resolved."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A rung that was crossed.

    Attributes:
        rung: which.
        used, limit: how full the disk is, in bytes.
        learnt: how it was learnt.
        firing: whether it is exceeded now; if not, it is no more.
        top: whether it is the last rung of several.
    """

    rung: Rung
    used: int
    limit: int
    learnt: Learnt
    firing: bool
    top: bool


@dataclass(slots=True)
class Layer:
    """What is known of a layer of the disk."""

    node: str = ""
    driver: str = ""
    path: str = ""
    size: int = 0
    allocated: int = 0
    slot: int = 0
    read_only: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Layer":
        """Return it out of a BLOCK_LAYER sample's values."""

        def number(name: str) -> int:
            value = values.get(name, 0)
            return value if type(value) is int and value >= 0 else 0

        node, driver, path = (str(values.get(name, "")) for name in ("node", "driver", "path"))
        size, allocated, slot = (number(name) for name in ("size_bytes", "allocated_bytes", "write_threshold_bytes"))
        return cls(node, driver, path, size, allocated, slot, values.get("read_only") is True)


@dataclass(slots=True)
class Guard:
    """One disk.

    Attributes:
        plan: what is wanted.
        told: how many rungs were told, from the lowest.
        armed: the node and the value that were put into its slot, or are about to be.
        foreign: whether the slot was found to hold somebody else's value; from then on it is left alone.
        storage, format: the layers, once known.
    """

    plan: Plan
    told: int = 0
    armed: tuple[str, int] | None = None
    foreign: bool = False
    storage: Layer = field(default_factory=Layer)
    format: Layer = field(default_factory=Layer)
    offset: int = 0
    """Where the highest write to the storage ended, since it was opened."""
    _asked_offset: int = 0
    _known: bool = False
    _high: tuple[str, int] = ("", 0)
    _points: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=GROWTH_POINTS))

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
    def thin(self) -> bool:
        """Whether it can fill at all: a raw device holds what the guest sees from the start, and so does a file that is all allocated."""
        if not self._known or not self.limit or self.format.read_only:
            return False
        if self.measure == "offset":
            return self.format.driver != "raw"
        return self.told > 0 or self.storage.allocated < self.limit

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The rungs on this disk; none where nothing is wanted or can be said."""
        return rungs(self.plan.levels, self.limit) if self.plan.mode is not Mode.OFF and self.thin else ()

    @property
    def growth(self) -> float | None:
        """Bytes a second over the last ten minutes; None until there are two points."""
        if len(self._points) < 2 or self._points[-1][0] <= self._points[0][0]:
            return None
        (then, less), (now, more) = self._points[0], self._points[-1]
        return max(0, more - less) / (now - then)

    @property
    def full_in(self) -> float | None:
        """Seconds until it is full at that rate; None while it does not grow."""
        growth = self.growth
        return (self.limit - self.used) / growth if growth and self.limit > self.used else None

    # What comes.

    def written(self, storage_node: str, offset: int, now: float) -> bool:
        """Take what a poll says of the storage; return whether the layers should be asked for again before anything is said."""
        if storage_node != self.storage.node:
            return True  # a snapshot, or a mirror's pivot
        self.offset = max(self.offset, offset)
        if self.measure == "offset":
            self._point(now)
            return exceeded(self.ladder, self.used) != self.told
        return self.offset - self._asked_offset > max(self.limit * FRESH_SHARE, 1)

    def _point(self, now: float) -> None:
        while self._points and (now - self._points[0][0] > GROWTH_SECONDS or self._points[-1][1] > self.used):
            self._points.popleft()
        self._points.append((now, self.used))

    def layers(self, form: Layer, storage: Layer, offset: int, now: float) -> Iterator[Crossing]:
        """Take the layers as they are now; yield the rungs crossed since they were told."""
        if storage.path != self.storage.path:
            self._points.clear()
            self.offset = 0
        if storage.path == self._high[0]:
            self.offset = max(self.offset, self._high[1])  # QEMU counts from 0 again when it opens a file anew
        self.format, self.storage, self._known = form, storage, True
        self.offset = max(self.offset, offset)
        self._asked_offset = self.offset
        self._point(now)
        yield from self._compare(self._slot())

    def _slot(self) -> Learnt:
        """Compare the slot with what was put there; return how a crossing that shows now was learnt."""
        slot = self.storage.slot
        if self.armed is None:
            ours = any(slot == rung.bytes for rung in self.ladder)  # set in a run that could not remember it
            if slot and not self.foreign and self.plan.mode is Mode.ARM and ours:
                self.armed = (self.storage.node, slot)
            else:
                self.foreign = self.foreign or bool(slot)
            return Learnt.LEVEL
        node, value = self.armed
        if node == self.storage.node and slot == value:
            return Learnt.LEVEL
        self.armed = None
        self.foreign = self.foreign or bool(slot)
        return Learnt.MISSED

    def fired(self, node: str, threshold: int, by: int) -> Iterator[Crossing]:
        """Take an event of our own threshold; yield the rungs that it crossed."""
        if self.armed != (node, threshold):
            return
        self.armed = None
        if self.measure == "offset":
            self.offset = max(self.offset, threshold + by)
        else:
            # What was set lay as far above the offset as the next rung lay above what was allocated.
            ladder = self.ladder
            rung = ladder[self.told].bytes if self.told < len(ladder) else 0
            self.storage.allocated = max(self.storage.allocated, rung + by)
        self.storage.slot = 0
        yield from self._compare(Learnt.EVENT)

    def _compare(self, learnt: Learnt) -> Iterator[Crossing]:
        """Yield what changed since it was told, the lowest rung first."""
        ladder, used = self.ladder, self.used
        now = exceeded(ladder, used)
        while self.told < now:
            rung = ladder[self.told]
            self.told += 1
            yield Crossing(rung, used, self.limit, learnt, firing=True, top=self.told == len(ladder) > 1)
        keep = held(ladder, used, self.told, int(self.limit * self.plan.hysteresis))
        while self.told > keep:
            self.told -= 1
            if self.told < len(ladder):
                top = self.told + 1 == len(ladder) > 1
                yield Crossing(ladder[self.told], used, self.limit, Learnt.LEVEL, firing=False, top=top)

    # What is to be done.

    def wanted(self) -> tuple[str, int] | None:
        """Return the node and the value to be put into its slot now, or None where nothing is."""
        if (
            self.plan.mode is not Mode.ARM
            or self.foreign
            or self.armed is not None
            or not self._known
            or self.storage.slot
        ):
            return None
        if self.measure == "allocated" and self.format.driver == "raw":
            return None  # an offset into a sparse file says nothing
        ladder = self.ladder
        if self.told >= len(ladder):
            return None
        # A file grows at its end: what is still to be allocated lies behind what there is of it.
        base = max(self.offset, self.storage.size) if self.measure == "allocated" else self.offset
        return self.storage.node, base + ladder[self.told].bytes - self.used

    def remember(self) -> dict[str, Any]:
        """Return what has to outlive the agent."""
        armed = list(self.armed) if self.armed is not None else None
        return {"told": self.told, "armed": armed, "high": [self.storage.path, self.offset]}

    def recall(self, kept: object) -> None:
        """Take what `remember` returned in an earlier run; anything else is ignored."""
        if not isinstance(kept, dict):
            return
        told, armed, high = kept.get("told"), kept.get("armed"), kept.get("high")
        if type(told) is int and 0 <= told <= 1000:
            self.told = told
        if isinstance(armed, Sequence) and len(armed) == 2 and isinstance(armed[0], str) and type(armed[1]) is int:
            self.armed = (armed[0], armed[1])
        if isinstance(high, Sequence) and len(high) == 2 and isinstance(high[0], str) and type(high[1]) is int:
            self._high = (high[0], high[1])
