"""Quantiles of disk latency over the last minute, from QEMU's latency histograms. Pure.

QEMU counts operations from the command block-latency-histogram-set on. The quantiles of the last minute are computed from the present
counts minus the counts a minute ago.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from agent.exposition.rates import LabelValues, ValuesBySubject
from agent.model.family import FieldKind, FieldValues
from agent.model.metrics.block import BLOCK

WINDOW_NS = 60_000_000_000
"""Time window of the quantiles in nanoseconds. If polls are rarer, the window is the time between two polls."""
STEP_NS = 15_000_000_000
"""Minimum time between two stored counts of a histogram, in nanoseconds."""

QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
"""The reported quantiles by name."""

_HISTOGRAMS = {
    field.name: field.name.removesuffix("_latency_seconds")
    for field in BLOCK.fields
    if field.kind is FieldKind.HISTOGRAM
}
"""The kind of operation, such as `read`, by the histogram's field in the family `block`."""


def quantile(share: float, boundaries: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return a quantile of a histogram in the unit of its boundaries. Interpolate within a bin as PromQL's histogram_quantile does.

    Args:
        share: which quantile, from 0 to 1, such as 0.99.
        boundaries: the boundaries between the bins, ascending.
        counts: the counts of the bins. The number of bins is the number of boundaries plus 1.

    Returns:
        The quantile; the last boundary if the quantile is in the last bin, which has no end. None without counts or boundaries.
    """
    totals = list(accumulate(counts))
    if not totals[-1] or not boundaries:
        return None
    rank = share * totals[-1]
    position = next(index for index, total in enumerate(totals) if total >= rank and counts[index])
    if position == len(boundaries):
        return boundaries[-1]
    lower = boundaries[position - 1] if position else 0.0
    inside = (rank - (totals[position] - counts[position])) / counts[position]
    return lower + (boundaries[position] - lower) * inside


@dataclass(slots=True)
class _LatencyWindow:
    """Counts of one histogram at several times in the last minute.

    Attributes:
        boundaries: the boundaries between the bins in seconds.
        points: pairs of time, in nanoseconds since the epoch, and counts; oldest first.
        time_ns: time of the last poll, in nanoseconds since the epoch.
        counts: the counts in the last poll.
    """

    boundaries: Sequence[float]
    points: deque[tuple[int, "array[int]"]] = field(default_factory=deque)
    time_ns: int = 0
    counts: Sequence[int] = ()

    def add(self, counts: Sequence[int], time_ns: int) -> None:
        """Add the counts of a poll. Remove the earlier counts if a client set the histogram again, or if the clock was set back."""
        # Counts fall only when a client sets the histogram again.
        has_restarted = any(now < before for now, before in zip(counts, self.counts, strict=False))
        if has_restarted or time_ns < self.time_ns:
            self.points.clear()
        if not self.points or time_ns - self.points[-1][0] >= STEP_NS:
            self.points.append((time_ns, array("Q", counts)))
        while len(self.points) > 1 and self.points[1][0] <= time_ns - WINDOW_NS:
            self.points.popleft()
        self.time_ns, self.counts = time_ns, counts

    def summary(self) -> dict[str, float]:
        """Return the quantiles, the number of operations and the length of the window in seconds; empty without operations.

        `last_boundary` is the start of the last bin. A quantile with this value is a lower bound.
        """
        start_ns, before = self.points[0]
        rises = [now - then for now, then in zip(self.counts, before, strict=True)]
        values = {name: quantile(share, self.boundaries, rises) for name, share in QUANTILES.items()}
        known: dict[str, float] = {name: value for name, value in values.items() if value is not None}
        if not known:
            return {}
        seconds = (self.time_ns - start_ns) / 1e9
        return known | {"operations": sum(rises), "seconds": seconds, "last_boundary": self.boundaries[-1]}


class LatencyWindows:
    """The latency histograms of a VM's disks over the last minute."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[tuple[LabelValues, str], _LatencyWindow] = {}

    def add_poll(self, disks: ValuesBySubject, time_ns: int) -> None:
        """Add the histograms of a poll.

        Args:
            disks: the values of all disks.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        before, self._windows = self._windows, {}
        for labels, values in disks.items():
            for name in _HISTOGRAMS.keys() & values.keys():
                self._add(before, (labels, name), values[name], time_ns)

    def _add(
        self,
        before: dict[tuple[LabelValues, str], _LatencyWindow],
        key: tuple[LabelValues, str],
        histogram: FieldValues,
        time_ns: int,
    ) -> None:
        boundaries = histogram["boundaries_seconds"]
        window = before.get(key)
        if window is None or window.boundaries != boundaries:
            window = _LatencyWindow(boundaries)
        window.add(histogram["counts"], time_ns)
        self._windows[key] = window

    def quantiles_of(self, device: str) -> dict[str, dict[str, Any]]:
        """Return the quantiles of a disk by kind of operation. Leave out kinds without operations."""
        found = {
            kind: window.summary()
            for name, kind in _HISTOGRAMS.items()
            if (window := self._windows.get(((device,), name))) is not None
        }
        return {kind: summary for kind, summary in found.items() if summary}
