"""How fast counters rise, by a family's last two polls. Pure.

Kept in the agent and not by those who look, so that a page just opened, and `qmp-agent top --once`, have rates at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent.catalogue.model import Sample, Values

LEAST_NS = 500_000_000
"""Polls closer together than this count as one: a rate over a few milliseconds says nothing."""

Labels = tuple[str, ...]
Subjects = dict[Labels, Values]


@dataclass(slots=True)
class Pair:
    """A family's last two polls, and when they were, in nanoseconds since the epoch; and the samples that it is made of."""

    samples: Sequence[Sample] = ()
    time_ns: int = 0
    now: Subjects = field(default_factory=dict)
    then_ns: int = 0
    then: Subjects = field(default_factory=dict)

    def take(self, samples: Subjects, time_ns: int) -> None:
        """Take a new poll, to keep; the older one stays what it is compared with where they are too close together."""
        if time_ns - self.time_ns >= LEAST_NS:
            self.then_ns, self.then = self.time_ns, self.now
        self.time_ns, self.now = time_ns, samples

    def rate(self, labels: Labels, name: str) -> float | None:
        """Return how much a counter rose a second; None where that is not known, or it began anew."""
        new, old = self.now.get(labels, {}).get(name), self.then.get(labels, {}).get(name)
        if new is None or old is None or new < old or self.time_ns <= self.then_ns:
            return None
        return float((new - old) / ((self.time_ns - self.then_ns) / 1e9))

    def rates(self, labels: Labels, names: Iterable[str]) -> dict[str, float]:
        """Return the rates of several counters that are known."""
        found = ((name, self.rate(labels, name)) for name in names)
        return {name: rate for name, rate in found if rate is not None}

    def total(self, *names: str) -> float | None:
        """Return how much some counters of all subjects rose a second, together; None where none is known."""
        found = [rate for labels in self.now for name in names if (rate := self.rate(labels, name)) is not None]
        return sum(found) if found else None
