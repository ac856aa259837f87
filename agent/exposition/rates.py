"""Rates of counters between the last two polls of a family. Pure.

The agent computes rates itself, so that a new page and `qmp-agent top --once` show them at once. For the previous poll it stores only
counters, packed as plain numbers, because Python objects would take a tenth of a VM's memory.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from agent.model.family import Sample, Values
from agent.model.reader import Getter, make_getter

MIN_INTERVAL_NS = 500_000_000
"""Minimum time between the two polls of a rate, because a rate over a few milliseconds is noise."""

MAX_LAYOUTS = 1024
"""Maximum number of layouts in the cache that all VMs share."""

Labels = tuple[str, ...]
"""Values of a family's labels, which identify a subject such as a disk."""
Subjects = dict[Labels, Values]
"""The values of each subject in one poll."""


class _CounterLayout:
    """How the counters among a subject's values are packed into bytes, as floating-point numbers."""

    def __init__(self, names: Iterable[str]) -> None:
        counters = [name for name in names if name.endswith("_total")]
        self.positions = {name: position for position, name in enumerate(counters)}
        self.packing = Struct(f"{len(counters)}d")
        self.select: Getter = make_getter(counters) if counters else tuple


PackedCounters = tuple[_CounterLayout, bytes]

_NO_COUNTERS: dict[Labels, PackedCounters] = {}
"""Shared empty dict: most families have no counters."""


class CounterLayouts:
    """A bounded cache of layouts, by the names of the values in the order in which a QEMU process always sends them."""

    def __init__(self, max_layouts: int = MAX_LAYOUTS) -> None:
        self._max_layouts = max_layouts
        self._layouts: dict[tuple[str, ...], _CounterLayout] = {}

    def __len__(self) -> int:
        return len(self._layouts)

    def pack(self, values: Values) -> PackedCounters | None:
        """Return the counters among a subject's values; None if there are no counters."""
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
    """The last two polls of one family of a VM.

    Attributes:
        time_ns: time of the last poll, nanoseconds since the epoch.
        current: the values of each subject in the last poll.
        previous_ns: time of the poll before the last one, nanoseconds since the epoch; 0 if there is none.
        limits: the series limits that were applied to the last poll.
        layouts: the cache of layouts, shared with other polls.
    """

    time_ns: int = 0
    current: Subjects = field(default_factory=dict)
    previous_ns: int = 0
    limits: object = None
    layouts: CounterLayouts = field(default=_SHARED_LAYOUTS, repr=False)
    _previous: dict[Labels, PackedCounters] = field(default_factory=lambda: _NO_COUNTERS)

    def is_current(self, samples: Sequence[Sample]) -> bool:
        """Return whether the values of these samples are the stored objects of the last poll."""
        return len(samples) == len(self.current) and all(
            self.current.get(sample.labels) is sample.values for sample in samples
        )

    def update(self, subjects: Subjects, time_ns: int) -> None:
        """Store a new poll. If it follows the last poll within `MIN_INTERVAL_NS`, rates still start at the poll before that."""
        if time_ns - self.time_ns >= MIN_INTERVAL_NS:
            pack = self.layouts.pack
            counters = {labels: packed for labels, values in self.current.items() if (packed := pack(values))}
            self.previous_ns, self._previous = self.time_ns, counters or _NO_COUNTERS
        self.time_ns, self.current = time_ns, subjects

    def rates(self, labels: Labels, names: Iterable[str]) -> dict[str, float]:
        """Return the increase per second of a subject's counters. Counters that restarted, or that one of the polls lacks, are left out."""
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

    def total_rate(self, name: str) -> float | None:
        """Return the sum of a counter's rates over all subjects; None if no subject has a rate."""
        return self.total_rates((name,)).get(name)

    def total_rates(self, names: Collection[str]) -> dict[str, float]:
        """Return the sum of each counter's rates over all subjects. A counter is left out if no subject has a rate for it."""
        totals: dict[str, float] = {}
        for labels in self.current:
            for name, rate in self.rates(labels, names).items():
                totals[name] = totals.get(name, 0.0) + rate
        return totals
