"""Readers, which extract the fields of a family from objects in QMP replies. Pure."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from sys import intern
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import orjson

from agent.model.family import Family, FieldKind, Unit, Values
from agent.model.record import sanitize

ToBase = Callable[[float], float]
"""Converts a number from its unit to the base unit, such as milliseconds to seconds."""

Convert = Callable[[Any], Any]
"""Converts a value of a QMP reply to a field's value. Returns None if the reply's value is not valid."""

Getter = Callable[[Any], tuple[Any, ...]]
"""Returns the values of some keys of a JSON object."""

Shape = tuple[str | int, ...]
"""The keys of an object and of its nested objects. The number of the parent object precedes the keys of a nested object."""

_NUMBERS = frozenset({FieldKind.COUNTER, FieldKind.GAUGE})
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# A division is exact to the last digit; a multiplication by 1e-9 is not.
TO_BASE: Mapping[Unit, ToBase] = {
    Unit.BASE: lambda v: v,
    Unit.NANOSECONDS: lambda v: v / 1_000_000_000,
    Unit.MICROSECONDS: lambda v: v / 1_000_000,
    Unit.MILLISECONDS: lambda v: v / 1000,
    Unit.MEGABITS: lambda v: v * 125_000.0,  # a float, because an int could exceed JSON's 64 bits
    Unit.MEBIBYTES: lambda v: v * 1_048_576.0,
    Unit.PERCENT: lambda v: v / 100,
    Unit.TICKS: lambda v: v / _TICKS_PER_SECOND,
    Unit.KIBIBYTES: lambda v: v * 1024,
    Unit.SECTORS: lambda v: v * 512,
    Unit.PAGES: lambda v: v * _PAGE_BYTES,
}
"""Functions that convert a number to base units, by its unit."""

_MAX_LAYOUTS = 256
_MAX_SHAPE_BYTES = 8192
"""Maximum size of a cached shape in bytes, because a malicious QEMU can send new keys at each poll. A disk's shape takes about 5 KB."""
_KEY_BYTES = 64
"""Bytes of memory that a key takes in addition to its characters."""
MAX_BINS = 64
"""Maximum number of bins of a histogram, because each bin is a series. In a larger histogram, adjacent bins are merged."""
_MAX_COUNT = 2**63 - 1
"""Maximum sum of a histogram's counts, because JSON's integers have 64 bits in many programs."""
_MAX_SHARED_CHARACTERS = 32
"""Maximum length of texts that are interned, such as the names of drivers and nodes. Longer texts are mostly paths, which seldom repeat."""
MAX_DETAIL_BYTES = 8192
"""Maximum JSON size of a DETAIL field. A larger value is omitted."""

_INTS = {int}
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class FieldSource(NamedTuple):
    """Where a field's value is in a QMP reply, and how it is converted.

    Attributes:
        object_index: the reader's number for the object that contains the value. 0 is the outer object; nested objects follow.
        key: the key of the value in that object.
        name: the field's name.
        convert: converts the value.
    """

    object_index: int
    key: str
    name: str
    convert: Convert


class ObjectLayout(NamedTuple):
    """How to read objects of one shape. Counters and gauges are read together, the other fields one by one.

    Attributes:
        getters: for each object with counters or gauges: its number, and a getter of their values.
        names: the names of the counters and gauges, in the order of the getters.
        units: the counters and gauges that need a conversion to base units.
        sources: the sources of the other fields.
    """

    getters: list[tuple[int, Getter]]
    names: list[str]
    units: list[tuple[str, ToBase]]
    sources: list[FieldSource]


class FieldReader:
    """Extracts the fields of one family from JSON objects in QMP replies. Each family has one reader, for all VMs and polls.

    A QEMU process always sends the keys of an object in the same order. So the reader compiles a layout for each order of keys, and then
    reads all counters and gauges of an object at once.
    """

    def __init__(self, family: Family) -> None:
        self._unavailable = family.unavailable
        self._objects: dict[tuple[str, ...], int] = {(): 0}
        # For each nested object: the number of its parent object, and its key in the parent.
        self._parents: list[tuple[int, str]] = []
        self._sources = [
            FieldSource(
                self._number_object(tuple(parents)), key, field.name, _CONVERTERS[field.kind](TO_BASE[field.unit])
            )
            for field in family.fields
            for *parents, key in (field.path.split("."),)
        ]
        numbers = [f for f in family.fields if f.kind in _NUMBERS and not family.unavailable]
        self._numbers = {f.name for f in numbers}
        self._units = {f.name: TO_BASE[f.unit] for f in numbers if f.unit is not Unit.BASE}
        self._layouts: dict[Shape, ObjectLayout] = {}

    def _number_object(self, path: tuple[str, ...]) -> int:
        """Return the number of the nested object at a path of keys. A new path gets the next number."""
        if path not in self._objects:
            self._parents.append((self._number_object(path[:-1]), path[-1]))
            self._objects[path] = len(self._parents)
        return self._objects[path]

    def __call__(self, item: Mapping[str, Any]) -> Values:
        """Return the fields of a JSON object by name. Fields that are missing, unavailable or of a wrong type are left out."""
        objects = [item]
        keys: list[str | int] = [*item]
        for parent, key in self._parents:
            nested = objects[parent].get(key)
            objects.append(nested if isinstance(nested, dict) else _EMPTY)
            keys += (parent, *objects[-1])
        shape = tuple(keys)
        layout = self._layouts.get(shape) or self._compile_layout(objects, shape)
        sources = layout.sources
        values: Values = {}
        numbers: list[Any] = []
        for index, get in layout.getters:
            numbers += get(objects[index])
        if set(map(type, numbers)) == _INTS and min(numbers) >= 0:
            values = dict(zip(layout.names, numbers, strict=True))
            for name, to_base in layout.units:
                values[name] = to_base(values[name])
        elif numbers:
            sources = self._sources
        for index, key, name, convert in sources:
            raw = objects[index].get(key)
            if raw is not None and not (type(raw) is int and raw in self._unavailable):
                value = convert(raw)
                if value is not None:
                    values[name] = value
        return values

    def _compile_layout(self, objects: Sequence[Mapping[str, Any]], shape: Shape) -> ObjectLayout:
        present = [source for source in self._sources if source.key in objects[source.object_index]]
        numbers = [
            [source for source in present if source.object_index == index and source.name in self._numbers]
            for index in range(len(objects))
        ]
        names = [source.name for group in numbers for source in group]
        layout = ObjectLayout(
            [(index, make_getter([source.key for source in group])) for index, group in enumerate(numbers) if group],
            names,
            [(name, self._units[name]) for name in names if name in self._units],
            [source for source in present if source.name not in self._numbers],
        )
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        if sum(_KEY_BYTES + len(key) for keys in objects for key in keys) <= _MAX_SHAPE_BYTES:
            self._layouts[shape] = layout
        return layout


def make_getter(keys: Sequence[str]) -> Getter:
    """Return a function that returns the values of the keys as a tuple, even for one key. An `itemgetter` of one key returns no tuple."""
    first = keys[0]
    return itemgetter(*keys) if len(keys) > 1 else lambda item: (item[first],)


def object_at(item: Any, path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the nested object at a path of keys; None if a part of the path is missing or not an object."""
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item if isinstance(item, dict) else None


def _number_converter(to_base: ToBase) -> Convert:
    def convert(raw: Any) -> float | None:
        if type(raw) is int:
            return to_base(raw)
        if type(raw) is float and math.isfinite(value := to_base(raw)):
            return value
        return None

    return convert


def _counter_converter(to_base: ToBase) -> Convert:
    number = _number_converter(to_base)
    return lambda raw: value if (value := number(raw)) is not None and value >= 0 else None


def _flag_converter(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool else None


def _state_converter(_: object) -> Convert:
    return lambda raw: intern(sanitize(raw, 64)) if type(raw) is str else None


def _text_converter(_: object) -> Convert:
    def convert(raw: Any) -> str | None:
        if type(raw) is not str:
            return None
        text = sanitize(raw, 1024)
        return intern(text) if len(text) <= _MAX_SHARED_CHARACTERS else text

    return convert


def _histogram_converter(to_base: ToBase) -> Convert:
    """Return a converter of a histogram, which QEMU sends as an object with three keys.

    `boundaries` has the lower bounds of all bins except the first. `bins` has the count of each bin. `sum` is the total duration.
    """

    def convert(raw: Any) -> Values | None:
        if not isinstance(raw, dict):
            return None
        bounds, counts = raw.get("boundaries"), raw.get("bins")
        if not (_is_natural_list(bounds) and _is_natural_list(counts) and len(counts) == len(bounds) + 1):
            return None
        edges = [to_base(bound) for bound in bounds]
        if not all(lower < upper for lower, upper in pairwise(edges)) or sum(counts) > _MAX_COUNT:
            return None
        if len(counts) > MAX_BINS:
            edges, counts = _merge_bins(edges, counts)
        total = raw.get("sum")
        sums = {"sum_seconds": to_base(total)} if type(total) is int and total >= 0 else {}
        return {"boundaries_seconds": edges, "counts": counts, **sums}

    return convert


def _merge_bins(edges: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Return a histogram with at most `MAX_BINS` bins. Each bin is the sum of adjacent bins."""
    step = -(-len(counts) // MAX_BINS)
    return edges[step - 1 :: step], [sum(counts[start : start + step]) for start in range(0, len(counts), step)]


def _is_natural_list(raw: Any) -> TypeGuard[list[int]]:
    return isinstance(raw, list) and all(type(n) is int and n >= 0 for n in raw)


def _detail_converter(_: object) -> Convert:
    return lambda raw: raw if type(raw) is bool or len(orjson.dumps(raw)) <= MAX_DETAIL_BYTES else None


_CONVERTERS: Mapping[FieldKind, Callable[[ToBase], Convert]] = {
    FieldKind.COUNTER: _counter_converter,
    FieldKind.GAUGE: _number_converter,
    FieldKind.FLAG: _flag_converter,
    FieldKind.STATE: _state_converter,
    FieldKind.NAME: _text_converter,
    FieldKind.HISTOGRAM: _histogram_converter,
    FieldKind.TEXT: _text_converter,
    FieldKind.DETAIL: _detail_converter,
}
