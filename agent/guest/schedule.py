"""When each collector of one guest agent runs next. Pure: time is an argument."""

from collections.abc import Sequence
from math import inf

from agent.collectors.guest import GuestCollector
from agent.guest.config import GuestIntervalsConfig

SLACK_SECONDS = 0.5
"""Collectors due within this time run in one wake-up, because each wake-up costs the guest."""

FIRST_PENALTY_SECONDS = 60.0
MAX_PENALTY_SECONDS = 3600.0
"""How long a collector is off after a failure: at first, and at most. The time doubles with each failure in a row."""


class GuestSchedule:
    """Due times of one guest agent's collectors, in seconds on one monotonic clock."""

    def __init__(self, collectors: Sequence[GuestCollector], intervals: GuestIntervalsConfig) -> None:
        self._intervals = intervals
        self._collectors = [collector for collector in collectors if intervals.of(collector.name)]
        self._due = {collector.name: -inf for collector in self._collectors}
        self._failures: dict[str, int] = {}

    @property
    def collectors(self) -> Sequence[GuestCollector]:
        """The collectors that are not off, in the order in which they run."""
        return self._collectors

    def due(self, now: float) -> list[GuestCollector]:
        """Return the collectors to run now."""
        return [collector for collector in self._collectors if self._due[collector.name] <= now + SLACK_SECONDS]

    def next_at(self) -> float:
        """Return when the next collector is due; `inf` if none is."""
        return min(self._due.values(), default=inf)

    def done(self, name: str, now: float) -> None:
        """Plan the next run of a collector that succeeded or does not apply."""
        self._failures.pop(name, None)
        self._due[name] = now + self._intervals.of(name)

    def failed(self, name: str, now: float) -> None:
        """Plan the next run of a collector that failed: later after each failure in a row."""
        count = self._failures.get(name, 0)
        self._failures[name] = count + 1
        penalty = min(MAX_PENALTY_SECONDS, FIRST_PENALTY_SECONDS * 2.0 ** min(count, 30))
        self._due[name] = now + max(penalty, self._intervals.of(name))

    def demand(self, name: str, now: float) -> None:
        """Run a collector at once, unless it failed."""
        if name in self._due and name not in self._failures:
            self._due[name] = now

    def demand_all(self) -> None:
        """Run all collectors at once that did not fail."""
        for name in self._due.keys() - self._failures.keys():
            self._due[name] = -inf

    def reset(self) -> None:
        """Run all collectors at once and forget their failures, because another guest agent may respond now."""
        self._failures.clear()
        self.demand_all()
