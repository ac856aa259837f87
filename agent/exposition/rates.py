"""Rates of counters between a family's last two polls. Pure.

The agent computes rates itself, so that a new page and `qmp-agent top --once` show them at once. It keeps only the previous poll's
counters, packed as plain numbers. As Python objects they would take a tenth of a VM's memory.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from agent.model.family import Sample, Values
from agent.model.reader import Getter, getter

MIN_INTERVAL_NS = 500_000_000
"""Minimum time between the two polls of a rate, because a rate over a few milliseconds is noise."""

MAX_LAYOUTS = 1024
"""Maximum number of layouts in the cache that all VMs share."""

Labels = tuple[str, ...]
Subjects = dict[Labels, Values]


class _CounterLayout:
    """The counters among a subject's values, and their packed form."""

    def __init__(self, names: Iterable[str]) -> None:
        counters = [name for name in names if name.endswith("_total")]
        self.positions = {name: position for position, name in enumerate(counters)}
        self.packing = Struct(f"{len(counters)}d")
        self.select: Getter = getter(counters) if counters else tuple


PackedCounters = tuple[_CounterLayout, bytes]

_NONE: dict[Labels, PackedCounters] = {}
"""Shared empty dict: most families have no counters."""


class CounterLayouts:
    """A bounded cache of layouts by the values' names. A QEMU process keeps the order of its fields."""

    def __init__(self, max_layouts: int = MAX_LAYOUTS) -> None:
        self._max_layouts = max_layouts
        self._layouts: dict[tuple[str, ...], _CounterLayout] = {}

    def __len__(self) -> int:
        return len(self._layouts)

    def pack(self, values: Values) -> PackedCounters | None:
        """Return the counters among a subject's values; None if it has none."""
        names = tuple(values)
        layout = self._layouts.get(names)
        if layout is None:
            if len(self._layouts) >= self._max_layouts:  # a hostile QEMU can send new names at each poll
                self._layouts.clear()
            layout = self._layouts[names] = _CounterLayout(names)
        return (layout, layout.packing.pack(*layout.select(values))) if layout.positions else None


_SHARED_LAYOUTS = CounterLayouts()


@dataclass(slots=True)
class PollPair:
    """A family's last two polls.

    Attributes:
        time_ns: time of the last poll, nanoseconds since the epoch.
        current: the last poll's values by labels.
        previous_ns: time of the previous poll, nanoseconds since the epoch; 0 if there is none.
        limits: the series limits that were applied to the last poll.
        layouts: the cache of layouts, shared with other polls.
    """

    time_ns: int = 0
    current: Subjects = field(default_factory=dict)
    previous_ns: int = 0
    limits: object = None
    layouts: CounterLayouts = field(default=_SHARED_LAYOUTS, repr=False)
    _previous: dict[Labels, PackedCounters] = field(default_factory=lambda: _NONE)

    def is_current(self, samples: Sequence[Sample]) -> bool:
        """Return whether these are the same sample objects as those of the last poll."""
        return len(samples) == len(self.current) and all(
            self.current.get(sample.labels) is sample.values for sample in samples
        )

    def update(self, subjects: Subjects, time_ns: int) -> None:
        """Store a new poll. If it follows the last poll too soon, rates still start at the previous poll."""
        if time_ns - self.time_ns >= MIN_INTERVAL_NS:
            pack = self.layouts.pack
            counters = {labels: packed for labels, values in self.current.items() if (packed := pack(values))}
            self.previous_ns, self._previous = self.time_ns, counters or _NONE
        self.time_ns, self.current = time_ns, subjects

    def rates(self, labels: Labels, names: Iterable[str]) -> dict[str, float]:
        """Return the increase per second of a subject's counters, without counters that restarted or that one poll lacks."""
        values, packed = self.current.get(labels), self._previous.get(labels)
        if values is None or packed is None or self.time_ns <= self.previous_ns:
            return {}
        layout, data = packed
        previous, seconds = layout.packing.unpack(data), (self.time_ns - self.previous_ns) / 1e9
        rates = {}
        for name in names:
            position, value = layout.positions.get(name), values.get(name)
            if position is not None and value is not None and (rise := float(value) - previous[position]) >= 0:
                rates[name] = rise / seconds
        return rates

    def total(self, name: str) -> float | None:
        """Return the sum of a counter's rates over all subjects; None if no rate is known."""
        return self.totals((name,)).get(name)

    def totals(self, names: Collection[str]) -> dict[str, float]:
        """Return the sum over all subjects of each counter's rates; counters without a known rate are left out."""
        totals: dict[str, float] = {}
        for labels in self.current:
            for name, rate in self.rates(labels, names).items():
                totals[name] = totals.get(name, 0.0) + rate
        return totals
