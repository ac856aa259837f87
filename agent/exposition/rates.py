"""How fast counters rise, by a family's last two polls. Pure.

Kept in the agent and not by those who look, so that a page just opened, and `qmp-agent top --once`, have rates at once. Of the older poll
there are the counters alone, as bare numbers: as values they would be a tenth of what a VM takes of memory.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from agent.model.family import Sample, Values
from agent.model.reader import Getter, getter

LEAST_NS = 500_000_000
"""Polls closer together than this count as one: a rate over a few milliseconds says nothing."""

MAX_LAYOUTS = 1024

Labels = tuple[str, ...]
Subjects = dict[Labels, Values]


class _CounterLayout:
    """Which counters there are among a subject's values, and how they are kept."""

    def __init__(self, names: Iterable[str]) -> None:
        counters = [name for name in names if name.endswith("_total")]
        self.places = {name: place for place, name in enumerate(counters)}
        self.numbers = Struct(f"{len(counters)}d")
        self.pick: Getter = getter(counters) if counters else tuple


Kept = tuple[_CounterLayout, bytes]

_NOTHING: dict[Labels, Kept] = {}
"""One for all: most families have no counters."""

_layouts: dict[tuple[str, ...], _CounterLayout] = {}
"""By the values' names; one QEMU gives them in one order as long as it lives."""


def _keep(values: Values) -> Kept | None:
    """Return the counters among a subject's values; None where there is none."""
    names = tuple(values)
    layout = _layouts.get(names)
    if layout is None:
        if len(_layouts) >= MAX_LAYOUTS:  # a hostile one has a new one each time
            _layouts.clear()
        layout = _layouts[names] = _CounterLayout(names)
    return (layout, layout.numbers.pack(*layout.pick(values))) if layout.places else None


@dataclass(slots=True)
class PollPair:
    """A family's last two polls, and when they were, in nanoseconds since the epoch."""

    time_ns: int = 0
    now: Subjects = field(default_factory=dict)
    then_ns: int = 0
    limits: object = None
    """The bounds by which it was cut."""
    _then: dict[Labels, Kept] = field(default_factory=lambda: _NOTHING)

    def holds(self, samples: Sequence[Sample]) -> bool:
        """Return whether these are what was taken last, the very values."""
        return len(samples) == len(self.now) and all(self.now.get(one.labels) is one.values for one in samples)

    def take(self, samples: Subjects, time_ns: int) -> None:
        """Take a new poll, to keep; the older one stays what it is compared with where they are too close together."""
        if time_ns - self.time_ns >= LEAST_NS:
            then = {labels: kept for labels, values in self.now.items() if (kept := _keep(values)) is not None}
            self.then_ns, self._then = self.time_ns, then or _NOTHING
        self.time_ns, self.now = time_ns, samples

    def rates(self, labels: Labels, names: Iterable[str]) -> dict[str, float]:
        """Return the rates of several counters that are known."""
        now, then = self.now.get(labels), self._then.get(labels)
        if now is None or then is None or self.time_ns <= self.then_ns:
            return {}
        layout, kept = then
        old, seconds = layout.numbers.unpack(kept), (self.time_ns - self.then_ns) / 1e9
        found = {}
        for name in names:
            place, new = layout.places.get(name), now.get(name)
            if place is not None and new is not None and (rose := float(new) - old[place]) >= 0:
                found[name] = rose / seconds
        return found

    def total(self, name: str) -> float | None:
        """Return how much a counter of all subjects rose a second, together; None where it is known of none."""
        return self.totals((name,)).get(name)

    def totals(self, names: Collection[str]) -> dict[str, float]:
        """Return such totals of several counters that are known."""
        found: dict[str, float] = {}
        for labels in self.now:
            for name, rate in self.rates(labels, names).items():
                found[name] = found.get(name, 0.0) + rate
        return found
