"""Readers that extract a family's fields from QMP replies, compiled for each layout of a reply. Pure."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import orjson

from agent.model.family import Family, Kind, Unit, Values
from agent.model.record import sanitize

ToBase = Callable[[float], float]
"""Converts a number to its base unit."""

Convert = Callable[[Any], Any]
"""Converts a raw value to the field's value; returns None if the raw value is not valid."""

Getter = Callable[[Any], tuple[Any, ...]]
"""Returns the values of some keys of an object."""

Shape = tuple[str | int, ...]
"""The keys of an item, then for each nested object its number and its keys."""

_NUMBERS = frozenset({Kind.COUNTER, Kind.GAUGE})
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_TO_BASE: Mapping[Unit, ToBase] = {
    Unit.BASE: lambda v: v,
    Unit.NANOSECONDS: lambda v: v / 1_000_000_000,  # divided, not multiplied by 1e-9: exact to the last digit
    Unit.MICROSECONDS: lambda v: v / 1_000_000,
    Unit.MILLISECONDS: lambda v: v / 1000,
    Unit.MEGABITS: lambda v: v * 125_000.0,  # a float: an int could exceed the 64 bits that JSON has room for
    Unit.MEBIBYTES: lambda v: v * 1_048_576.0,
    Unit.PERCENT: lambda v: v / 100,
    Unit.TICKS: lambda v: v / _TICKS_PER_SECOND,
    Unit.KIBIBYTES: lambda v: v * 1024,
}

_MAX_LAYOUTS = 256
_MAX_SHAPE_BYTES = 8192
"""Largest shape that is cached: a malicious QEMU can send a new one each time. The shape of a disk takes about 5 KB."""
_KEY_BYTES = 64
"""Memory that a key takes in addition to its characters."""
_MAX_BOUNDARIES = 64
MAX_DETAIL_BYTES = 8192
"""Largest JSON of a DETAIL field; a larger one is omitted."""

_INTS = {int}
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """How to read one field.

    Attributes:
        object_index: the reader's number of the object that holds it; 0 is the item itself.
        key: its key in that object.
        name: the field's name.
        convert: the conversion of its raw value.
    """

    object_index: int
    key: str
    name: str
    convert: Convert


class Layout(NamedTuple):
    """How to read items of one shape.

    Attributes:
        getters: the getters of the whole numbers, each with the number of the object that it reads.
        names: the names of those numbers, in order.
        units: those among them that need a conversion to base units.
        rows: the other fields.
    """

    getters: list[tuple[int, Getter]]
    names: list[str]
    units: list[tuple[str, ToBase]]
    rows: list[Row]


class Reader:
    """Extracts one family's fields from items of QMP replies. Create one reader per family, and use it for every poll.

    A QEMU process always sends the keys of an object in the same order. The reader compiles a layout for each shape that it sees. With it,
    it reads all whole numbers of an item at once; most polled values are whole numbers.
    """

    def __init__(self, family: Family) -> None:
        self._unavailable = family.unavailable
        self._objects: dict[tuple[str, ...], int] = {(): 0}
        # For each nested object: the number of the object that holds it, and its key there.
        self._parents: list[tuple[int, str]] = []
        self._rows = [
            Row(self._number_object(tuple(parents)), key, field.name, _CONVERTERS[field.kind](_TO_BASE[field.unit]))
            for field in family.fields
            for *parents, key in (field.path.split("."),)
        ]
        numbers = [f for f in family.fields if f.kind in _NUMBERS and not family.unavailable]
        self._numbers = {f.name for f in numbers}
        self._units = {f.name: _TO_BASE[f.unit] for f in numbers if f.unit is not Unit.BASE}
        self._layouts: dict[Shape, Layout] = {}

    def _number_object(self, path: tuple[str, ...]) -> int:
        """Return the number of the object at `path` inside the item; a new path gets the next number."""
        if path not in self._objects:
            self._parents.append((self._number_object(path[:-1]), path[-1]))
            self._objects[path] = len(self._parents)
        return self._objects[path]

    def __call__(self, item: Mapping[str, Any]) -> Values:
        """Return the fields of an item. Fields that are missing, unavailable or of a wrong type are left out."""
        objects = [item]
        keys: list[str | int] = [*item]
        for parent, key in self._parents:
            nested = objects[parent].get(key)
            objects.append(nested if isinstance(nested, dict) else _EMPTY)
            keys += (parent, *objects[-1])
        shape = tuple(keys)
        layout = self._layouts.get(shape) or self._compile(objects, shape)
        rows = layout.rows
        values: Values = {}
        numbers: list[Any] = []
        for index, get in layout.getters:
            numbers += get(objects[index])
        if set(map(type, numbers)) == _INTS and min(numbers) >= 0:
            values = dict(zip(layout.names, numbers, strict=True))
            for name, to_base in layout.units:
                values[name] = to_base(values[name])
        elif numbers:
            rows = self._rows
        for index, key, name, convert in rows:
            raw = objects[index].get(key)
            if raw is not None and not (type(raw) is int and raw in self._unavailable):
                value = convert(raw)
                if value is not None:
                    values[name] = value
        return values

    def _compile(self, objects: Sequence[Mapping[str, Any]], shape: Shape) -> Layout:
        rows = [row for row in self._rows if row.key in objects[row.object_index]]
        numbers = [
            [row for row in rows if row.object_index == index and row.name in self._numbers]
            for index in range(len(objects))
        ]
        names = [row.name for group in numbers for row in group]
        layout = Layout(
            [(index, getter([row.key for row in group])) for index, group in enumerate(numbers) if group],
            names,
            [(name, self._units[name]) for name in names if name in self._units],
            [row for row in rows if row.name not in self._numbers],
        )
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        if sum(_KEY_BYTES + len(key) for keys in objects for key in keys) <= _MAX_SHAPE_BYTES:
            self._layouts[shape] = layout
        return layout


def getter(keys: Sequence[str]) -> Getter:
    """Return a function that gets a tuple of the values of one or more keys; an `itemgetter` of one key returns no tuple."""
    first = keys[0]
    return itemgetter(*keys) if len(keys) > 1 else lambda item: (item[first],)


def object_at(item: Any, path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the object at `path` inside `item`; None if there is none."""
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item if isinstance(item, dict) else None


def _number(to_base: ToBase) -> Convert:
    def convert(raw: Any) -> float | None:
        if type(raw) is int:
            return to_base(raw)
        if type(raw) is float and math.isfinite(value := to_base(raw)):
            return value
        return None

    return convert


def _counter(to_base: ToBase) -> Convert:
    number = _number(to_base)
    return lambda raw: value if (value := number(raw)) is not None and value >= 0 else None


def _flag(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool else None


def _state(_: object) -> Convert:
    return lambda raw: sanitize(raw, 64) if type(raw) is str else None


def _text(_: object) -> Convert:
    return lambda raw: sanitize(raw, 1024) if type(raw) is str else None


def _histogram(to_base: ToBase) -> Convert:
    """Return a converter of a histogram.

    It has three keys: `boundaries`, the lower bounds of all bins except the first; `bins`, the counts; and `sum`, the total duration.
    """

    def convert(raw: Any) -> Values | None:
        if not isinstance(raw, dict):
            return None
        bounds, counts = raw.get("boundaries"), raw.get("bins")
        if not (_naturals(bounds) and _naturals(counts) and len(counts) == len(bounds) + 1 <= _MAX_BOUNDARIES + 1):
            return None
        if sorted(set(bounds)) != bounds:
            return None
        total = raw.get("sum")
        sums = {"sum_seconds": to_base(total)} if type(total) is int and total >= 0 else {}
        return {"boundaries_seconds": [to_base(b) for b in bounds], "counts": counts, **sums}

    return convert


def _naturals(raw: Any) -> TypeGuard[list[int]]:
    return isinstance(raw, list) and all(type(n) is int and n >= 0 for n in raw)


def _detail(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool or len(orjson.dumps(raw)) <= MAX_DETAIL_BYTES else None


_CONVERTERS: Mapping[Kind, Callable[[ToBase], Convert]] = {
    Kind.COUNTER: _counter,
    Kind.GAUGE: _number,
    Kind.FLAG: _flag,
    Kind.STATE: _state,
    Kind.NAME: _text,
    Kind.HISTOGRAM: _histogram,
    Kind.TEXT: _text,
    Kind.DETAIL: _detail,
}
