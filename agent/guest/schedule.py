"""Calculates when each collector of one guest agent runs next. Pure: the caller passes the time."""

from collections.abc import Sequence
from math import inf

from agent.collectors.guest import GuestCollector
from agent.guest.config import GuestIntervalsConfig

BATCH_WINDOW_SECONDS = 0.5
"""Collectors that are due within this time run together, because each wake-up of the guest agent costs CPU time of the guest."""

MIN_SPACING_SECONDS = 10.0
"""Minimum seconds between two runs of a collector. For a collector with a shorter interval, the interval is the minimum.

All collectors become due when a guest opens its channel or ends a freeze. The minimum limits the number of runs that a guest can trigger.
"""

FIRST_FAILURE_DELAY_SECONDS = 60.0
"""How long a collector pauses after its first failure. The pause doubles with each consecutive failure."""
MAX_FAILURE_DELAY_SECONDS = 3600.0
"""Maximum pause of a collector after failures."""


class GuestSchedule:
    """Due times of the collectors of one guest agent, in seconds of a monotonic clock."""

    def __init__(self, collectors: Sequence[GuestCollector], intervals: GuestIntervalsConfig) -> None:
        self._intervals = intervals
        self._collectors = [collector for collector in collectors if intervals.interval_of(collector.name)]
        self._due_at = {collector.name: -inf for collector in self._collectors}
        self._earliest_due_at = dict(self._due_at)  # `schedule_all_now` makes a collector due at this time or later
        self._failures: dict[str, int] = {}

    @property
    def enabled_collectors(self) -> Sequence[GuestCollector]:
        """The enabled collectors, in the order in which they run."""
        return self._collectors

    def due_collectors(self, now: float) -> list[GuestCollector]:
        """Return the collectors to run now."""
        return [
            collector for collector in self._collectors if self._due_at[collector.name] <= now + BATCH_WINDOW_SECONDS
        ]

    def next_due_at(self) -> float:
        """Return when the next collector is due; `inf` if no collector is enabled."""
        return min(self._due_at.values(), default=inf)

    def on_success(self, name: str, now: float) -> None:
        """Schedule the next run of a collector that succeeded or was skipped."""
        self._failures.pop(name, None)
        self._due_at[name] = now + self._intervals.interval_of(name)
        self._set_earliest_due_time(name, now)

    def on_failure(self, name: str, now: float) -> None:
        """Schedule the next run of a collector that failed. The delay doubles with each consecutive failure."""
        count = self._failures.get(name, 0)
        self._failures[name] = count + 1
        penalty = min(MAX_FAILURE_DELAY_SECONDS, FIRST_FAILURE_DELAY_SECONDS * 2.0 ** min(count, 30))
        self._due_at[name] = now + max(penalty, self._intervals.interval_of(name))
        self._set_earliest_due_time(name, now)

    def _set_earliest_due_time(self, name: str, now: float) -> None:
        """Set the earliest time at which `schedule_all_now` makes a collector due that has just run."""
        self._earliest_due_at[name] = now + min(MIN_SPACING_SECONDS, self._intervals.interval_of(name))

    def schedule_now(self, name: str, now: float) -> None:
        """Make a collector due now. A collector whose last run failed keeps its due time."""
        if name in self._due_at and name not in self._failures:
            self._due_at[name] = now

    def schedule_all_now(self) -> None:
        """Make each collector due as soon as `MIN_SPACING_SECONDS` permits. A collector whose last run failed keeps its due time."""
        for name in self._due_at.keys() - self._failures.keys():
            self._due_at[name] = min(self._due_at[name], self._earliest_due_at[name])

    def clear_failures_and_schedule_all(self) -> None:
        """Clear all failures and call `schedule_all_now`, because the guest may run another guest agent now."""
        self._failures.clear()
        self.schedule_all_now()
