"""Time series in memory for the page's graphs of VMs, pools and the host: six hours, with fewer points for older times. Pure."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, nan
from typing import NamedTuple


class Resolution(NamedTuple):
    """Time step and maximum number of points of one resolution of a history.

    Attributes:
        step: time between two points in seconds.
        max_points: maximum number of points.
    """

    step: float
    max_points: int

    @property
    def range_seconds(self) -> float:
        """The time range that the points cover, in seconds."""
        return self.step * self.max_points


RESOLUTIONS = (Resolution(5, 60), Resolution(30, 120), Resolution(180, 120))
"""Resolutions for 5 minutes, 1 hour and 6 hours.

For a VM that is polled every 10 seconds, the first resolution has a point every 10 seconds.
"""

MIN_STEP_RATIO = 0.9
"""Share of a step after which the next point is due. The share is less than 1, because polls are not exactly on time."""

CLOCK_STEP_SECONDS = 60.0
"""The clock counts as set back if a poll is at least this many seconds before the next point is due."""

_TIME_BYTES, _VALUE_BYTES = 8, 4


def full_history_bytes(columns: int) -> int:
    """Return the size in bytes of a full history whose points have this number of values."""
    return sum(resolution.max_points for resolution in RESOLUTIONS) * (_TIME_BYTES + columns * _VALUE_BYTES)


@dataclass(slots=True)
class HistoryBudget:
    """Memory limit that the histories of all VMs share. If the limit is too low for all VMs, each history covers less time.

    Attributes:
        bytes: the limit in bytes; 0 for no histories.
        columns: the number of values in a VM's point.
        history_count: the number of histories that share the limit.
    """

    bytes: int
    columns: int
    history_count: int = 0

    @property
    def max_points_per_resolution(self) -> tuple[int, ...]:
        """The maximum number of points of one history in each resolution."""
        return _capacities(self.bytes, self.columns, self.history_count)


@lru_cache(maxsize=8)
def _capacities(size: int, columns: int, histories: int) -> tuple[int, ...]:
    share = min(1.0, size / (max(1, histories) * full_history_bytes(columns)))
    return tuple(int(resolution.max_points * share) for resolution in RESOLUTIONS)


_FULL_CAPACITIES = tuple(resolution.max_points for resolution in RESOLUTIONS)


class _Ring:
    """The points of one resolution, oldest first."""

    __slots__ = ("times", "values")

    def __init__(self) -> None:
        self.times = array("d")
        self.values = array("f")

    @property
    def last_time(self) -> float:
        return self.times[-1] if self.times else 0.0

    def append(self, time: float, values: Sequence[float], maximum: int) -> None:
        excess = len(self.times) + 1 - maximum
        if excess > 0:
            del self.times[:excess]
            del self.values[: excess * len(values)]
        if maximum > 0:
            self.times.append(time)
            self.values.extend(values)

    def mean_after(self, start: float, columns: int) -> list[float]:
        """Return the mean of each column over the points after `start`; NaN for a column without a known value."""
        first = bisect_right(self.times, start) * columns
        rows = [self.values[place : place + columns] for place in range(first, len(self.values), columns)]
        return [_mean_of_known(column) for column in zip(*rows, strict=True)] or [nan] * columns


def _mean_of_known(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if all values are NaN."""
    total = sum(values)
    if total == total:  # noqa: PLR0124 - false for not a number
        return total / len(values)
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else nan


class History:
    """Time series of one VM, one pool or the host, in all resolutions. A point has a value for each column; an unknown value is NaN.

    Args:
        columns: the number of values of a point.
        budget: the memory limit that this history shares with others; None for no limit.
    """

    __slots__ = ("_budget", "_columns", "_rings", "next_time")

    def __init__(self, columns: int, budget: HistoryBudget | None = None) -> None:
        self._columns = columns
        self._budget = budget
        self._rings = tuple(_Ring() for _ in RESOLUTIONS)
        self.next_time = 0.0
        """Earliest time of the next point, in seconds since the epoch."""

    def is_due(self, time: float) -> bool:
        """Return whether the next point is due, or the clock was set back."""
        return not self.next_time - CLOCK_STEP_SECONDS < time < self.next_time

    def append(self, time: float, values: Sequence[float]) -> None:
        """Append a point to the finest resolution. Append a mean of points to each coarser resolution whose next point is due.

        Args:
            time: time of the point, seconds since the epoch. A time before the last point removes the existing points.
            values: the value of each column.
        """
        capacities = self._budget.max_points_per_resolution if self._budget is not None else _FULL_CAPACITIES
        if time < self._rings[0].last_time:
            self._rings = tuple(_Ring() for _ in RESOLUTIONS)
        self.next_time = time + RESOLUTIONS[0].step * MIN_STEP_RATIO
        finer: _Ring | None = None
        for ring, resolution, maximum in zip(self._rings, RESOLUTIONS, capacities, strict=True):
            if finer is None:
                ring.append(time, values, maximum)
            elif not ring.times:
                ring.append(time, finer.mean_after(0, self._columns), maximum)
            elif time - ring.last_time < resolution.step * MIN_STEP_RATIO:
                return
            else:
                ring.append(time, finer.mean_after(ring.last_time, self._columns), maximum)
            finer = ring

    @property
    def last_time(self) -> float:
        """The time of the newest point, in seconds since the epoch; 0 without points."""
        return self._rings[0].last_time

    def points(self, seconds: float, after: float = 0.0) -> Iterator[tuple[float, Sequence[float]]]:
        """Yield the points of the last `seconds` before the newest point, oldest first, in the finest resolution that covers this range.

        Args:
            seconds: length of the range.
            after: yield only later points; in seconds since the epoch.
        """
        place = next((i for i, resolution in enumerate(RESOLUTIONS) if resolution.range_seconds >= seconds), -1)
        ring, columns = self._rings[place], self._columns
        start = max(after, self._rings[0].last_time - seconds)
        for number, time in enumerate(ring.times):
            if time > start:
                yield time, ring.values[number * columns : (number + 1) * columns]
