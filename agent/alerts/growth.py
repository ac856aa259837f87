"""Growth of used space, over seconds to a day, and the forecast from it. Pure.

A forecast looks back at least a sixth of the time that it looks ahead. So ten seconds of writing show that a small pool is full within a
minute, but not that a large one is full tomorrow.
"""

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from math import inf

WINDOWS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0, 5400.0, 21600.0, 86400.0)
"""Windows of a forecast, in seconds."""

RECENT_SECONDS = 640.0
RECENT_WINDOWS = tuple(window for window in WINDOWS if window <= RECENT_SECONDS)
DAY_SECONDS = 86400.0

LOOK_AHEAD = 6.0
"""How many times its window a forecast may look ahead. The longest window has no such limit."""

STEADY_SHARE = 0.5
"""A window counts only if the next shorter one shows at least this share of its growth: otherwise the growth is ending.

The day has no such limit.
"""

SAME_SHARE = 0.1
"""Difference of two rates, as a share, up to which the growth was the same."""

SMOOTHING_WINDOWS = 2

TOLERANCE = 0.6
"""How far the measured time may differ from the window, as a share of the window."""


@dataclass(slots=True)
class _Tier:
    """Points at a spacing, the newest at the end.

    Attributes:
        spacing: seconds between two points.
        length: seconds that the points cover.
        times: times of the points.
        used: used bytes at these times. Arrays take a tenth of the memory of tuples.
    """

    spacing: float
    length: float
    times: "array[float]" = field(default_factory=lambda: array("d"))
    used: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, at: float, used: float) -> bool:
        """Add a point unless the last one is too near; return whether it was added."""
        if self.times and at - self.times[-1] < self.spacing:
            return False
        self.times.append(at)
        self.used.append(used)
        old = bisect_left(self.times, at - self.length - self.spacing)
        del self.times[:old], self.used[:old]
        return True

    def before(self, at: float) -> tuple[float, float] | None:
        """Return the newest point that is not newer than `at`."""
        index = bisect_right(self.times, at) - 1
        return (self.times[index], self.used[index]) if index >= 0 else None

    def forget_after(self, at: float) -> None:
        """Remove the points that are newer than `at`."""
        end = bisect_right(self.times, at)
        del self.times[end:], self.used[end:]


def _tiers() -> tuple[_Tier, ...]:
    return _Tier(2.0, 80.0), _Tier(20.0, RECENT_SECONDS), _Tier(900.0, DAY_SECONDS)


@dataclass(slots=True)
class Growth:
    """Used space over the last day. Times are in seconds since the epoch, because they outlive the process."""

    kept_points: int = 0
    """Number of points that `to_note` got so far."""
    _tiers: tuple[_Tier, ...] = field(default_factory=_tiers)
    _last: tuple[float, float] | None = None

    def add(self, at: float, used: int) -> None:
        """Add a measurement. If the clock was set back, the points after it are forgotten."""
        if self._last is not None and at < self._last[0]:
            for tier in self._tiers:
                tier.forget_after(at)
        *finer, day = self._tiers
        for tier in finer:
            tier.add(at, used)
        self.kept_points += day.add(at, used)
        self._last = at, used

    def rate(self, window: float) -> float | None:
        """Return the growth in bytes per second over a window, negative if the used space shrinks; None if it is not known for so long."""
        if self._last is None:
            return None
        now, used = self._last
        for tier in self._tiers:
            start = tier.before(now - window)
            if start is not None and now - start[0] <= window * (1 + TOLERANCE):
                return (used - start[1]) / (now - start[0])
        return None

    def recent_rate(self) -> float | None:
        """Return the growth over the last ten minutes, or over the whole time that is known if it is shorter; None below ten seconds."""
        return next((rate for window in reversed(RECENT_WINDOWS) if (rate := self.rate(window)) is not None), None)

    def time_to_full(self, free: int) -> float | None:
        """Return the seconds until `free` bytes are used; None if they are not in sight."""
        newer = inf
        for index, window in enumerate(WINDOWS):
            rate = self.rate(window)
            if rate is None:
                continue
            continues = newer >= rate * STEADY_SHARE or window == WINDOWS[-1]
            if rate > 0 and continues and (free / rate <= window * LOOK_AHEAD or window == WINDOWS[-1]):
                return free / self._smoothed(rate, index)
            newer = rate
        return None

    def _smoothed(self, rate: float, index: int) -> float:
        """Return the growth over the longest of the next windows over which it was nearly the same: it varies less."""
        smoothed = rate
        for window in WINDOWS[index + 1 : index + 1 + SMOOTHING_WINDOWS]:
            longer = self.rate(window)
            if longer is None or abs(longer - rate) > rate * SAME_SHARE:
                break
            smoothed = longer
        return smoothed

    def soonest(self, free: int, window: float) -> float | None:
        """Return the shortest time in which `free` bytes are used at the growth over any window up to this one; None without growth."""
        rates = (self.rate(shorter) for shorter in WINDOWS if shorter <= max(window, RECENT_SECONDS))
        return min((free / rate for rate in rates if rate is not None and rate > 0), default=None)

    # Persistence.

    def to_note(self) -> list[list[int]]:
        """Return the points of the day, as JSON values."""
        day = self._tiers[-1]
        return [[int(at), int(used)] for at, used in zip(day.times, day.used, strict=True)]

    def restore(self, note: object, now: float) -> None:
        """Restore the points of an earlier run; other values, and points that are too old or in the future, are ignored."""
        for point in note if isinstance(note, list) else ():
            match point:
                case [int(at), int(used)] if now - DAY_SECONDS * (1 + TOLERANCE) <= at <= now and 0 <= used < 1 << 63:
                    self._tiers[-1].add(at, used)
