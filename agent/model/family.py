"""The types of the metrics table, and how a row of it reads a QMP reply. Pure."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import orjson

from agent.model.record import sanitize

Values = dict[str, Any]
"""A sample's fields: numbers in base units, flags, texts. What QEMU did not give is not there."""


class Kind(StrEnum):
    """What a field is, and so how it is shown."""

    COUNTER = auto()
    """Only rises while the process lives; a series."""
    GAUGE = auto()
    """A number that comes and goes; a series."""
    FLAG = auto()
    """True or false; a series of 1 or 0."""
    STATE = auto()
    """One word of a list; a series of 1 that has the word as a label, named as the field."""
    NAME = auto()
    """What something is called elsewhere; a series of 1 that has it as a label, named as the field, for joins."""
    HISTOGRAM = auto()
    """How often something took how long, as QEMU's BlockLatencyHistogramInfo has it; a histogram."""
    TEXT = auto()
    """Words; in records only."""
    DETAIL = auto()
    """JSON as QEMU gave it; in records only."""


COUNTER, GAUGE, FLAG, STATE, NAME, HISTOGRAM, TEXT, DETAIL = Kind


class Unit(StrEnum):
    """The unit that QEMU or the kernel speaks; we speak seconds, bytes and ratios."""

    BASE = ""
    NANOSECONDS = "ns"
    MICROSECONDS = "us"
    MILLISECONDS = "ms"
    MEGABITS = "Mbit/s"
    MEBIBYTES = "MiB"
    PERCENT = "%"
    TICKS = "clock ticks"
    KIBIBYTES = "kB"
    """As the kernel calls 1024 bytes."""


_NUMBERS = frozenset({Kind.COUNTER, Kind.GAUGE})

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_TO_BASE: Mapping[Unit, Callable[[float], float]] = {
    Unit.BASE: lambda v: v,
    Unit.NANOSECONDS: lambda v: v / 1_000_000_000,  # divided, not multiplied by 1e-9: exact to the last digit
    Unit.MICROSECONDS: lambda v: v / 1_000_000,
    Unit.MILLISECONDS: lambda v: v / 1000,
    Unit.MEGABITS: lambda v: v * 125_000.0,  # a float: an int could leave the 64 bits that JSON has room for
    Unit.MEBIBYTES: lambda v: v * 1_048_576.0,
    Unit.PERCENT: lambda v: v / 100,
    Unit.TICKS: lambda v: v / _TICKS_PER_SECOND,
    Unit.KIBIBYTES: lambda v: v * 1024,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One row: a field of a QMP reply.

    Attributes:
        path: where it stands in the reply's item, by dots.
        name: its name in the record, and with the family's prefix the series' name; counters end in `_total`, units are base units.
        kind: how it is shown.
        help: one line for people; the command and the path are added to it.
        unit: the unit QEMU gives it in.
    """

    path: str
    name: str
    kind: Kind
    help: str
    unit: Unit = Unit.BASE


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The fields that one kind of sample has; `qemu.sample.<name>` in records, `qemu_<name>_<field>` in series. Equal to itself alone.

    Attributes:
        name: of the family.
        source: the QMP command (or event) that it comes from.
        labels: the labels of its series beside `vm_uuid` and `vm`; their values are the sample's, in this order.
        fields: the rows.
        unavailable: numbers by which QEMU says that it does not know.
        on_change: whether a record is made only when something in it changed, since an answer like the last one tells nothing.
        host_only: whether it is read on the host, and so says nothing of whether QEMU answers.
    """

    name: str
    source: str
    help: str
    labels: tuple[str, ...]
    fields: tuple[Field, ...]
    unavailable: frozenset[int] = frozenset()
    on_change: bool = False
    host_only: bool = False
    type: str = field(init=False)
    """Of its samples' records."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", f"qemu.sample.{self.name}")

    def series(self, field: Field) -> str:
        """Return the name of the field's series."""
        return f"qemu_{self.name}_{field.name}"


class Sample(NamedTuple):
    """What one poll says of one subject.

    Attributes:
        family: whose fields these are.
        labels: the values of the family's labels.
        values: the fields.
    """

    family: Family
    labels: tuple[str, ...]
    values: Values

    @property
    def subject(self) -> str:
        """The subject of its record: the first label, or empty for the VM as a whole."""
        return self.labels[0] if self.labels else ""

    @property
    def data(self) -> Values:
        """The data of its record: whose fields they are, and the fields."""
        return dict(zip(self.family.labels, self.labels, strict=True)) | self.values


class Row(NamedTuple):
    """How a field is read.

    Attributes:
        at: which of the item's objects it stands in, by the number that the reader gave it.
        key: its key there.
        name: the field's name.
        convert: what makes its value of what the reply has; None where that cannot be.
    """

    at: int
    key: str
    name: str
    convert: "Convert"


Shape = tuple[str | int, ...]
"""The keys of an item and then of each object in it, behind the number of the one that it is in."""

Numbers = Callable[[Any], tuple[Any, ...]]
"""Takes some values out of an object."""

_MAX_LAYOUTS = 256
_MAX_SHAPE_BYTES = 8192
"""What is kept of shapes, of which a hostile QEMU has a new one each time; a disk's takes about 5 KB."""
_KEY_BYTES = 64
"""What a key takes beside its characters."""

_INTS = {int}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Layout(NamedTuple):
    """How items of one shape are read.

    Attributes:
        numbers: take the fields that are whole numbers, each from one of the item's objects.
        names: of those fields, in that order.
        units: which of them are in another unit, and what makes base units of it.
        rows: the fields that are left.
    """

    numbers: list[tuple[int, Numbers]]
    names: list[str]
    units: list[tuple[str, Callable[[float], float]]]
    rows: list[Row]


class Reader:
    """Reads one family's fields out of a QMP reply; made once, since it is on every poll's way.

    One QEMU gives an object's keys in one order as long as it lives. So for each such shape the fields that are there are looked up
    once, and whole numbers, most of all that is polled, are then taken all at once.
    """

    def __init__(self, family: Family) -> None:
        self._unavailable = family.unavailable
        self._objects: dict[tuple[str, ...], int] = {(): 0}
        # For each object but the item itself: in which other it is, and its key there.
        self._within: list[tuple[int, str]] = []
        self._rows = [
            Row(self._object(tuple(parents)), key, field.name, _CONVERT[field.kind](_TO_BASE[field.unit]))
            for field in family.fields
            for *parents, key in (field.path.split("."),)
        ]
        countable = [f for f in family.fields if f.kind in _NUMBERS and not family.unavailable]
        self._numbers = {f.name for f in countable}
        self._units = {f.name: _TO_BASE[f.unit] for f in countable if f.unit is not Unit.BASE}
        self._layouts: dict[Shape, Layout] = {}

    def _object(self, path: tuple[str, ...]) -> int:
        """Return the number of the object at a path inside the item."""
        if path not in self._objects:
            self._within.append((self._object(path[:-1]), path[-1]))
            self._objects[path] = len(self._within)
        return self._objects[path]

    def __call__(self, item: Mapping[str, Any]) -> Values:
        """Return the fields that the item holds; those missing, of a wrong type or unavailable are left out."""
        objects = [item]
        shape: list[str | int] = [*item]
        for at, key in self._within:
            found = objects[at].get(key)
            objects.append(found if isinstance(found, dict) else _NOTHING)
            shape += (at, *objects[-1])
        known = tuple(shape)
        layout = self._layouts.get(known) or self._learn(objects, known)
        rows = layout.rows
        values: Values = {}
        numbers: list[Any] = []
        for at, take in layout.numbers:
            numbers += take(objects[at])
        if set(map(type, numbers)) == _INTS and min(numbers) >= 0:
            values = dict(zip(layout.names, numbers, strict=True))
            for name, to_base in layout.units:
                values[name] = to_base(values[name])
        elif numbers:
            rows = self._rows
        for at, key, name, convert in rows:
            raw = objects[at].get(key)
            if raw is not None and not (type(raw) is int and raw in self._unavailable):
                value = convert(raw)
                if value is not None:
                    values[name] = value
        return values

    def _learn(self, objects: Sequence[Mapping[str, Any]], shape: Shape) -> Layout:
        there = [row for row in self._rows if row.key in objects[row.at]]
        whole = [[row for row in there if row.at == at and row.name in self._numbers] for at in range(len(objects))]
        names = [row.name for rows in whole for row in rows]
        layout = Layout(
            [(at, taker([row.key for row in rows])) for at, rows in enumerate(whole) if rows],
            names,
            [(name, self._units[name]) for name in names if name in self._units],
            [row for row in there if row.name not in self._numbers],
        )
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        if sum(_KEY_BYTES + len(key) for keys in objects for key in keys) <= _MAX_SHAPE_BYTES:
            self._layouts[shape] = layout
        return layout


def taker(keys: Sequence[str]) -> Numbers:
    """Return what takes these keys' values out of an object, of which there is one at least: an itemgetter of one gives no tuple."""
    only = keys[0]
    return itemgetter(*keys) if len(keys) > 1 else lambda found: (found[only],)


def descend(item: Any, path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the object at `path` inside `item`, or None where there is none."""
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item if isinstance(item, dict) else None


Convert = Callable[[Any], Any]


def _number(to_base: Callable[[float], float]) -> Convert:
    def convert(raw: Any) -> float | None:
        if type(raw) is int:
            return to_base(raw)
        if type(raw) is float and math.isfinite(value := to_base(raw)):
            return value
        return None

    return convert


def _count(to_base: Callable[[float], float]) -> Convert:
    number = _number(to_base)
    return lambda raw: value if (value := number(raw)) is not None and value >= 0 else None


def _flag(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool else None


def _word(_: object) -> Convert:
    return lambda raw: sanitize(raw, 64) if type(raw) is str else None


def _text(_: object) -> Convert:
    return lambda raw: sanitize(raw, 1024) if type(raw) is str else None


_MAX_BOUNDARIES = 64


def _histogram(to_base: Callable[[float], float]) -> Convert:
    """Read `boundaries`, of which each begins a bin, and `bins`, one more of them; `sum` is what all that was counted took."""

    def convert(raw: Any) -> Values | None:
        if not isinstance(raw, dict):
            return None
        bounds, counts = raw.get("boundaries"), raw.get("bins")
        if not (_naturals(bounds) and _naturals(counts) and len(counts) == len(bounds) + 1 <= _MAX_BOUNDARIES + 1):
            return None
        if sorted(set(bounds)) != bounds:
            return None
        total = raw.get("sum")
        told = {"sum_seconds": to_base(total)} if type(total) is int and total >= 0 else {}
        return {"boundaries_seconds": [to_base(b) for b in bounds], "counts": counts, **told}

    return convert


def _naturals(raw: Any) -> TypeGuard[list[int]]:
    return isinstance(raw, list) and all(type(n) is int and n >= 0 for n in raw)


_DETAIL_BYTES = 8192


def _detail(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool or len(orjson.dumps(raw)) <= _DETAIL_BYTES else None


_CONVERT: Mapping[Kind, Callable[[Callable[[float], float]], Convert]] = {
    Kind.COUNTER: _count,
    Kind.GAUGE: _number,
    Kind.FLAG: _flag,
    Kind.STATE: _word,
    Kind.NAME: _text,
    Kind.HISTOGRAM: _histogram,
    Kind.TEXT: _text,
    Kind.DETAIL: _detail,
}


def shown(family: Family) -> Iterator[Field]:
    """Yield the fields that have a series."""
    return (field for field in family.fields if field.kind not in (Kind.TEXT, Kind.DETAIL))
