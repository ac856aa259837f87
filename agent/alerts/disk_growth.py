"""Growth of one disk over the last minutes. Pure."""

from array import array
from dataclasses import dataclass, field

GROWTH_WINDOW_SECONDS = 600.0
"""Period over which the growth rate is computed, in seconds."""
MAX_GROWTH_POINTS = 64
"""Maximum number of measurements in `GROWTH_WINDOW_SECONDS`."""


@dataclass(slots=True)
class DiskGrowth:
    """The last measurements of a disk's usage."""

    # Alternating times in seconds and usages in bytes. A list of tuples would take 7 KiB.
    _points: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, used: int, now: float) -> None:
        """Add the used bytes at the monotonic time `now`, in seconds. If the disk has shrunk, remove the earlier measurements."""
        points = self._points
        while points and (now - points[0] > GROWTH_WINDOW_SECONDS or points[-1] > used):
            del points[:2]
        points.extend((now, used))
        del points[: -2 * MAX_GROWTH_POINTS]

    def clear(self) -> None:
        """Remove all measurements, because another image replaced the disk's image."""
        del self._points[:]

    @property
    def rate(self) -> float | None:
        """Growth in bytes per second over the last ten minutes; None before the second measurement."""
        if len(self._points) < 4 or self._points[-2] <= self._points[0]:
            return None
        (start, used_then), (now, used_now) = self._points[:2], self._points[-2:]
        return max(0.0, used_now - used_then) / (now - start)
