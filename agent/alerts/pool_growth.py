"""Growth rate of used space over windows of ten seconds to one day, and the forecast of the time until a pool is full. Pure.

A forecast looks ahead at most six times as long as its window. So ten seconds of writes can forecast a full pool within a minute, but not
a full pool tomorrow.
"""

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from math import inf

WINDOWS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0, 5400.0, 21600.0, 86400.0)
"""Windows over which the growth is computed, in seconds."""

RECENT_SECONDS = 640.0
"""Longest window of the recent growth rate, in seconds."""
RECENT_WINDOWS = tuple(window for window in WINDOWS if window <= RECENT_SECONDS)
"""Windows of the recent growth rate, in seconds."""
DAY_SECONDS = 86400.0
"""Length of a day in seconds."""

LOOK_AHEAD = 6.0
"""Maximum time that a forecast looks ahead, as a multiple of its window. A forecast from the longest window has no maximum."""

STEADY_SHARE = 0.5
"""Minimum ratio of the growth rate over the next shorter window to the growth rate over a window.

Below this ratio, the growth is ending, and a forecast ignores the longer window. A forecast never ignores the window of one day.
"""

SAME_SHARE = 0.1
"""Maximum difference of two growth rates that count as equal, as a share of the first rate."""

SMOOTHING_WINDOWS = 2
"""Maximum number of longer windows that can smooth the growth rate of a window."""

TOLERANCE = 0.6
"""How much longer than a window the time between two measurements may be, as a share of the window."""


@dataclass(slots=True)
class _UsedBytesSeries:
    """A time series of used bytes, the oldest point first. Two points have a minimum distance in time.

    Attributes:
        spacing: minimum time between two points, in seconds.
        length: age at which a point is removed, in seconds.
        times: times of the points in seconds since the epoch.
        used: used bytes of the points. An array takes a tenth of the memory of a list of tuples.
    """

    spacing: float
    length: float
    times: "array[float]" = field(default_factory=lambda: array("d"))
    used: "array[float]" = field(default_factory=lambda: array("d"))

    def add_if_spacing_passed(self, time: float, used: float) -> bool:
        """Add a point if the last point is at least `spacing` seconds old; return whether the point was added."""
        if self.times and time - self.times[-1] < self.spacing:
            return False
        self.times.append(time)
        self.used.append(used)
        old = bisect_left(self.times, time - self.length - self.spacing)
        del self.times[:old], self.used[:old]
        return True

    def index_at(self, time: float) -> int | None:
        """Return the index of the newest point at or before a time; None if all points are newer."""
        index = bisect_right(self.times, time) - 1
        return index if index >= 0 else None

    def slope_from(self, index: int, time: float, used: float) -> float:
        """Return the growth in bytes per second from a point to a later measurement.

        The growth is the slope between two means: one over the first third of the points, one over the last third. Single points
        vary too much: Btrfs counts old copies of rewritten data as used until the next commit.

        Args:
            index: index of the first point.
            time: time of the measurement.
            used: used bytes of the measurement, which may be the last point.
        """
        times, values = self.times[index:], self.used[index:]
        if times[-1] < time:
            times.append(time)
            values.append(used)
        point_count = max(1, len(times) // 3)
        return (sum(values[-point_count:]) - sum(values[:point_count])) / (
            sum(times[-point_count:]) - sum(times[:point_count])
        )

    def remove_after(self, time: float) -> None:
        """Remove the points after a time."""
        first_removed = bisect_right(self.times, time)
        del self.times[first_removed:], self.used[first_removed:]


def _new_series() -> tuple[_UsedBytesSeries, ...]:
    return _UsedBytesSeries(2.0, 80.0), _UsedBytesSeries(20.0, RECENT_SECONDS), _UsedBytesSeries(900.0, DAY_SECONDS)


@dataclass(slots=True)
class PoolGrowth:
    """History of a pool's used bytes over the last day. All times are in seconds since the epoch, and stay valid after a restart."""

    added_point_count: int = 0
    """Number of points that were ever added to the series of the last day, which `state_to_store` returns."""
    _series: tuple[_UsedBytesSeries, ...] = field(default_factory=_new_series)
    _last_measurement: tuple[float, float] | None = None
    _unchanged_since: float = inf  # time of the last change of the used bytes
    # The growth rates that were computed since the last measurement, by window.
    _rates: dict[float, float | None] = field(default_factory=dict)

    def add(self, at: float, used: int) -> None:
        """Add a measurement. If the clock was set back, remove all points after the new time."""
        if self._last_measurement is not None and at < self._last_measurement[0]:
            for series in self._series:
                series.remove_after(at)
        if self._last_measurement is None or used != self._last_measurement[1] or at < self._unchanged_since:
            self._unchanged_since = at
        self._rates.clear()
        *shorter_series, day = self._series
        for series in shorter_series:
            series.add_if_spacing_passed(at, used)
        self.added_point_count += day.add_if_spacing_passed(at, used)
        self._last_measurement = at, used

    def rate(self, window: float) -> float | None:
        """Return the growth in bytes per second over a window. A negative rate means that the used space shrinks.

        Args:
            window: length of the window in seconds.

        Returns:
            None if the points do not cover the window.
        """
        if window not in self._rates:
            self._rates[window] = self._compute_rate(window)
        return self._rates[window]

    def _compute_rate(self, window: float) -> float | None:
        if self._last_measurement is None:
            return None
        now, used = self._last_measurement
        for series in self._series:
            index = series.index_at(now - window)
            if index is not None and now - (start := series.times[index]) <= window * (1 + TOLERANCE):
                return 0.0 if start >= self._unchanged_since else series.slope_from(index, now, used)
        return None

    def recent_rate(self) -> float | None:
        """Return the growth in bytes per second over the longest window, up to `RECENT_SECONDS`, that the points cover.

        Returns:
            None if the points cover less than ten seconds.
        """
        return next((rate for window in reversed(RECENT_WINDOWS) if (rate := self.rate(window)) is not None), None)

    def time_to_full(self, free: int) -> float | None:
        """Return the forecast number of seconds until `free` bytes are used; None if no window gives a forecast."""
        newer = inf
        for index, window in enumerate(WINDOWS):
            rate = self.rate(window)
            if rate is None:
                continue
            continues = newer >= rate * STEADY_SHARE or window == WINDOWS[-1]
            if rate > 0 and continues and (free / rate <= window * LOOK_AHEAD or window == WINDOWS[-1]):
                return free / self._smooth_rate(rate, index)
            newer = rate
        return None

    def _smooth_rate(self, rate: float, index: int) -> float:
        """Return the rate over a longer window if that rate nearly equals `rate`; otherwise return `rate`.

        The rate over a longer window varies less.

        Args:
            rate: growth rate over a window.
            index: index of this window in `WINDOWS`.
        """
        smoothed = rate
        for window in WINDOWS[index + 1 : index + 1 + SMOOTHING_WINDOWS]:
            longer = self.rate(window)
            if longer is None or abs(longer - rate) > rate * SAME_SHARE:
                break
            smoothed = longer
        return smoothed

    def shortest_time_to_full(self, free: int, window: float) -> float | None:
        """Return the shortest forecast of the seconds until `free` bytes are used; None if no window shows growth.

        Args:
            free: number of free bytes.
            window: maximum length of the windows in seconds. Windows up to `RECENT_SECONDS` always count.
        """
        rates = (self.rate(shorter) for shorter in WINDOWS if shorter <= max(window, RECENT_SECONDS))
        return min((free / rate for rate in rates if rate is not None and rate > 0), default=None)

    # Persistence.

    def state_to_store(self) -> list[list[int]]:
        """Return the points of the last day as a list of `[time, used bytes]`."""
        day = self._series[-1]
        return [[int(at), int(used)] for at, used in zip(day.times, day.used, strict=True)]

    def restore(self, stored: object, now: float) -> None:
        """Restore the points that `state_to_store` returned in an earlier run. Ignore invalid, old and future points."""
        for point in stored if isinstance(stored, list) else ():
            match point:
                case [int(at), int(used)] if now - DAY_SECONDS * (1 + TOLERANCE) <= at <= now and 0 <= used < 1 << 63:
                    self._series[-1].add_if_spacing_passed(at, used)
