"""Rates of counters between the last two polls of a family. Pure.

The agent computes rates itself, so that a newly opened page and `qmp-agent top --once` show rates immediately. The agent
stores only the counters of the previous poll, packed as plain numbers. Python objects would take a tenth more memory for each VM.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from agent.model.family import FieldKind, FieldValues, Sample
from agent.model.field_reader import Getter, make_tuple_getter
from agent.model.metrics import FAMILIES

MIN_INTERVAL_NS = 500_000_000
"""Minimum time between the two polls of a rate, in nanoseconds. A rate over a few milliseconds is noise."""

MAX_LAYOUTS = 1024
"""Maximum number of layouts of packed counters in the cache that all VMs share."""

LabelValues = tuple[str, ...]
"""Label values that identify a subject of a family, such as the name of a disk."""
ValuesBySubject = dict[LabelValues, FieldValues]
"""The values of each subject in one poll, by label values."""


_HISTOGRAMS = {field.name for family in FAMILIES for field in family.fields if field.kind is FieldKind.HISTOGRAM}


class _PackedCounterLayout:
    """The counters of a disk or another subject, and their order in the packed bytes. Each counter is packed as a floating-point number.

    Attributes:
        has_fixed_series: whether the layout determines the number of series. False with a histogram, which has a series for each bin.
        positions: index of each counter among the packed counters, by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.has_fixed_series = _HISTOGRAMS.isdisjoint(names)
        counters = [name for name in names if name.endswith("_total")]
        self.positions = {name: position for position, name in enumerate(counters)}
        self._packing = Struct(f"{len(counters)}d")
        self._select: Getter = make_tuple_getter(counters) if counters else lambda _values: ()

    def pack(self, values: FieldValues) -> bytes:
        """Return the packed counters of a subject's values."""
        return self._packing.pack(*self._select(values))

    def unpack(self, packed: bytes) -> tuple[float, ...]:
        """Return the counters, in the order of `positions`."""
        return self._packing.unpack(packed)


PackedCounters = tuple[_PackedCounterLayout, bytes]

_NO_COUNTERS: dict[LabelValues, PackedCounters] = {}
"""Empty dict that most families share, because they have no counters."""


class PackedCounterLayoutCache:
    """A bounded cache of the layouts of packed counters. The key is the names of a subject's values, in QEMU's order."""

    def __init__(self, max_layouts: int = MAX_LAYOUTS) -> None:
        self._max_layouts = max_layouts
        self._layouts: dict[tuple[str, ...], _PackedCounterLayout] = {}

    def __len__(self) -> int:
        return len(self._layouts)

    def layout_of(self, values: FieldValues) -> _PackedCounterLayout:
        """Return the layout of a subject's values."""
        names = tuple(values)
        layout = self._layouts.get(names)
        if layout is None:
            if len(self._layouts) >= self._max_layouts:  # a hostile QEMU can send new names at each poll
                self._layouts.clear()
            layout = self._layouts[names] = _PackedCounterLayout(names)
        return layout


_SHARED_LAYOUTS = PackedCounterLayoutCache()


@dataclass(slots=True)
class PollPair:
    """The last two polls of one family of a VM.

    Attributes:
        time_ns: time of the last poll, nanoseconds since the epoch.
        current: the values of each subject, such as a disk, in the last poll.
        previous_ns: time of the earlier poll, from which rates are computed, in nanoseconds since the epoch; 0 before the second poll.
        limits: the series limits that were applied to the last poll.
        layouts: the cache of layouts, shared with other polls.
    """

    time_ns: int = 0
    current: ValuesBySubject = field(default_factory=dict)
    previous_ns: int = 0
    limits: object = None
    layouts: PackedCounterLayoutCache = field(default=_SHARED_LAYOUTS, repr=False)
    _layouts: _PackedCounterLayout | list[_PackedCounterLayout] | None = (
        None  # layouts of the last poll: one for all subjects, or one for each subject
    )
    _previous: dict[LabelValues, PackedCounters] = field(default_factory=lambda: _NO_COUNTERS)
    _next_previous: tuple[int, dict[LabelValues, PackedCounters]] | None = None  # becomes `_previous` when old enough

    @property
    def has_histograms(self) -> bool:
        """True if a subject had a histogram in the last poll."""
        return self._layouts is None and any(not _HISTOGRAMS.isdisjoint(values) for values in self.current.values())

    def equals_last_poll(self, samples: Sequence[Sample]) -> bool:
        """Return whether the samples have the same value objects as the last poll. If so, no value has changed."""
        for sample in samples:
            if self.current.get(sample.labels) is not sample.values:
                return False
        return len(samples) == len(self.current)

    def update_if_same_series(self, samples: Sequence[Sample], time_ns: int) -> bool:
        """Store a new poll if it has the same subjects and series as the last poll. Return whether the poll was stored.

        The caller need not apply the series limits to a stored poll. Return False also if the last poll had a histogram.
        """
        subjects = {sample.labels: sample.values for sample in samples}
        if self._layouts is None or list(subjects) != list(self.current):
            return False
        for values, before in zip(subjects.values(), self.current.values(), strict=True):
            if values.keys() != before.keys():
                return False
        self._keep_previous(time_ns)
        self.time_ns, self.current = time_ns, subjects
        return True

    def update(self, subjects: ValuesBySubject, time_ns: int) -> None:
        """Store a new poll. If the last poll is less than `MIN_INTERVAL_NS` old, compute rates from an older poll."""
        self._keep_previous(time_ns)
        self.time_ns, self.current, self._layouts = time_ns, subjects, self._layouts_of(subjects)

    def _layouts_of(self, subjects: ValuesBySubject) -> _PackedCounterLayout | list[_PackedCounterLayout] | None:
        """Return the layout that all subjects share, or a list with the layout of each subject.

        Return None without subjects, or if a subject has a histogram.
        """
        layouts = [self.layouts.layout_of(values) for values in subjects.values()]
        if not layouts or not all(layout.has_fixed_series for layout in layouts):
            return None
        return layouts[0] if layouts.count(layouts[0]) == len(layouts) else layouts

    def _keep_previous(self, time_ns: int) -> None:
        """Choose the earlier poll for rates, before a new poll is stored.

        A last poll that is at least `MIN_INTERVAL_NS` old becomes the earlier poll. A newer last poll waits in `_next_previous`.
        So the rates of fast polls cover one to two times `MIN_INTERVAL_NS`.
        """
        if self._next_previous is not None:
            if time_ns - self._next_previous[0] >= MIN_INTERVAL_NS:
                (self.previous_ns, self._previous), self._next_previous = self._next_previous, None
        elif time_ns - self.time_ns >= MIN_INTERVAL_NS:
            self.previous_ns, self._previous = self.time_ns, self._pack_counters()
        else:
            self._next_previous = self.time_ns, self._pack_counters()

    def _pack_counters(self) -> dict[LabelValues, PackedCounters]:
        single = self._layouts if isinstance(self._layouts, _PackedCounterLayout) else None
        counters: dict[LabelValues, PackedCounters] = {}
        for labels, values in self.current.items():
            layout = single or self.layouts.layout_of(values)
            if layout.positions:
                counters[labels] = layout, layout.pack(values)
        return counters or _NO_COUNTERS

    def rates_for_labels(self, labels: LabelValues, names: Iterable[str]) -> dict[str, float]:
        """Return the increase per second of a disk's or other subject's counters. Leave out counters that fell or are not in both polls."""
        values, packed = self.current.get(labels), self._previous.get(labels)
        if values is None or packed is None or self.time_ns <= self.previous_ns:
            return {}
        layout, data = packed
        previous, seconds = layout.unpack(data), (self.time_ns - self.previous_ns) / 1e9
        rates = {}
        for name in names:
            position, value = layout.positions.get(name), values.get(name)
            if position is not None and value is not None and (rise := float(value) - previous[position]) >= 0:
                rates[name] = rise / seconds
        return rates

    def total_rate(self, name: str) -> float | None:
        """Return the sum of a counter's rates over all subjects, such as all disks; None if no subject has a rate."""
        return self.total_rates((name,)).get(name)

    def total_rates(self, names: Collection[str]) -> dict[str, float]:
        """Return the sum of each counter's rates over all subjects, such as all disks. Leave out counters without a rate."""
        totals: dict[str, float] = {}
        for labels in self.current:
            for name, rate in self.rates_for_labels(labels, names).items():
                totals[name] = totals.get(name, 0.0) + rate
        return totals
