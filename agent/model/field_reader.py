"""Extracts the fields of a family from JSON objects in QMP replies. Pure."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from sys import intern
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard, TypeVar

import orjson

from agent.model.family import Family, FieldKind, FieldValues, Unit
from agent.model.record import sanitize

Key = TypeVar("Key")
Value = TypeVar("Value")

ToBase = Callable[[float], float]
"""Converts a number from its unit to the base unit, such as milliseconds to seconds."""

Convert = Callable[[Any], Any]
"""Converts a value of a QMP reply to a field's value. Returns None if the reply's value is not valid."""

Getter = Callable[[Any], tuple[Any, ...]]
"""Returns the values of some keys of a JSON object."""

Objects = Sequence[Mapping[str, Any]]
"""A JSON object, followed by its nested objects. The index of an object is the number that `FieldReader` gave to the object."""

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
"""Functions that convert a number to base units, by the number's unit."""

_MAX_READ_PLANS = 256
"""Maximum number of cached read plans of one reader, because a malicious QEMU can send other keys at each poll."""
MAX_BINS = 64
"""Maximum number of bins of a histogram, because each bin is a series. In a larger histogram, adjacent bins are merged."""
_MAX_COUNT = 2**63 - 1
"""Maximum sum of a histogram's counts, because JSON's integers have 64 bits in many programs."""
_MAX_SHARED_CHARACTERS = 32
"""Maximum length of texts that are interned, such as names of drivers and nodes. Longer texts are mostly paths, which seldom repeat."""
MAX_DETAIL_BYTES = 8192
"""Maximum JSON size of a DETAIL field. A larger value is omitted."""

_INTS = {int}
_CACHED_TYPES = {str, bool}
"""Types of values whose conversions are cached. Equal values of other types may have different conversions: 1 equals True."""
_MAX_CACHED = 4096
"""Maximum number of cached conversions of one reader. Two disks with the same names and flags share one conversion."""
_MAX_CACHED_CHARACTERS = 256
"""Maximum number of characters in one cached conversion. A cache for disks that a malicious QEMU has filled takes 4 MiB."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class FieldLocation(NamedTuple):
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


class FieldReadPlan(NamedTuple):
    """How to read objects that have the same fields. Counters and gauges are converted together, the other fields one by one.

    Attributes:
        number: distinguishes the plans of a reader.
        absent: pairs of an object's number and the keys that the object lacks.
        getters: pairs of an object's number and a getter of the values of the object's counters and gauges.
        names: the names of the counters and gauges, in the order of the getters, each with the value 0. `FieldReader` copies this dict.
        units: the counters and gauges that need a conversion to base units.
        other_getters: pairs of an object's number and a getter of the values of the object's other fields.
        others: the locations of the other fields.
    """

    number: int
    absent: list[tuple[int, list[str]]]
    getters: list[tuple[int, Getter]]
    names: dict[str, int]
    units: list[tuple[str, ToBase]]
    other_getters: list[tuple[int, Getter]]
    others: list[FieldLocation]

    def read_raw_values(self, objects: Objects) -> tuple[list[Any], list[Any]] | None:
        """Return the values of the counters and gauges, and of the other fields. Return None if the objects do not fit the plan."""
        numbers: list[Any] = []
        others: list[Any] = []
        try:
            for index, get in self.getters:
                numbers += get(objects[index])
            for index, get in self.other_getters:
                others += get(objects[index])
        except KeyError:
            return None
        for index, keys in self.absent:
            if not objects[index].keys().isdisjoint(keys):
                return None
        return numbers, others


class FieldReader:
    """Extracts the fields of one family from JSON objects in QMP replies. Each family has one reader, for all VMs and polls.

    The reader compiles a `FieldReadPlan` for each set of fields. With a plan, the reader reads all counters and gauges of an object
    at once. The reader caches the conversions of texts and flags.
    """

    def __init__(self, family: Family) -> None:
        self._unavailable = family.unavailable
        self._objects: dict[tuple[str, ...], int] = {(): 0}
        # For each nested object: the number of its parent object, and its key in the parent.
        self._parents: list[tuple[int, str]] = []
        self._sources = [
            FieldLocation(
                self._number_object(tuple(parents)), key, field.name, _CONVERTERS[field.kind](TO_BASE[field.unit])
            )
            for field in family.fields
            for *parents, key in (field.path.split("."),)
        ]
        numbers = [f for f in family.fields if f.kind in _NUMBERS and not family.unavailable]
        self._number_names = {f.name for f in numbers}
        self._units = {f.name: TO_BASE[f.unit] for f in numbers if f.unit is not Unit.BASE}
        self._read_plans: dict[tuple[str, ...], FieldReadPlan] = {}  # by the names of the fields that are present
        # The plan of the last object of each size. The size is the number of keys in the object and in its nested objects.
        self._last_read_plans: dict[int, FieldReadPlan] = {}
        # Converted fields, by the number of the plan and the values in the reply.
        self._converted: dict[tuple[int | str | bool, ...], FieldValues] = {}
        self._read_plan_count = 0  # number of plans so far

    def _number_object(self, path: tuple[str, ...]) -> int:
        """Return the number of the nested object at a path of keys. A new path gets the next number."""
        if path not in self._objects:
            self._parents.append((self._number_object(path[:-1]), path[-1]))
            self._objects[path] = len(self._parents)
        return self._objects[path]

    def __call__(self, item: Mapping[str, Any]) -> FieldValues:
        """Return the fields of a JSON object by name. Fields that are missing, unavailable or of a wrong type are left out."""
        objects, size = [item], len(item)
        for parent, key in self._parents:
            nested = objects[parent].get(key)
            if not isinstance(nested, dict):
                nested = _EMPTY
            objects.append(nested)
            size += len(nested)
        layout = self._last_read_plans.get(size)
        raw = layout.read_raw_values(objects) if layout is not None else None
        if layout is None or raw is None:
            layout = self._find_read_plan(objects, size)
            raw = layout.read_raw_values(objects)
            assert raw is not None
        numbers, others = raw
        if not numbers:
            return self._convert_others(layout, others, objects).copy()
        if set(map(type, numbers)) != _INTS or min(numbers) < 0:
            return self._convert(self._sources, objects)
        values: FieldValues = layout.names.copy()  # faster than a new dict, which would grow several times
        values.update(zip(layout.names, numbers, strict=True))
        for name, to_base in layout.units:
            values[name] = to_base(values[name])
        values |= self._convert_others(layout, others, objects)
        return values

    def _convert_others(self, layout: FieldReadPlan, raw: Sequence[Any], objects: Objects) -> FieldValues:
        """Return the fields that are not counters or gauges. The caller must not change the result, which may be in the cache.

        Args:
            layout: the plan that fits the objects.
            raw: the values of these fields in the reply.
            objects: the objects.
        """
        if not _CACHED_TYPES.issuperset(map(type, raw)):
            return self._convert(layout.others, objects)
        key = (layout.number, *raw)
        values = self._converted.get(key)
        if values is None:
            values = self._convert(layout.others, objects)
            if sum(len(value) for value in raw if type(value) is str) <= _MAX_CACHED_CHARACTERS:
                _put_bounded(self._converted, key, values, _MAX_CACHED)
        return values

    def _convert(self, sources: Iterable[FieldLocation], objects: Objects) -> FieldValues:
        """Read and convert the fields one by one, and return the values by name."""
        values: FieldValues = {}
        for index, key, name, convert in sources:
            raw = objects[index].get(key)
            if raw is not None and not (type(raw) is int and raw in self._unavailable):
                value = convert(raw)
                if value is not None:
                    values[name] = value
        return values

    def _find_read_plan(self, objects: Objects, size: int) -> FieldReadPlan:
        """Return the plan that fits the objects. The reader tries the returned plan first for the next objects of the same size."""
        names = tuple(source.name for source in self._sources if source.key in objects[source.object_index])
        layout = self._read_plans.get(names)
        if layout is None:
            layout = self._compile_read_plan(objects)
            _put_bounded(self._read_plans, names, layout, _MAX_READ_PLANS)
        _put_bounded(self._last_read_plans, size, layout, _MAX_READ_PLANS)
        return layout

    def _compile_read_plan(self, objects: Objects) -> FieldReadPlan:
        present: list[FieldLocation] = []
        absent: list[FieldLocation] = []
        for source in self._sources:
            (present if source.key in objects[source.object_index] else absent).append(source)
        numbers = sorted((s for s in present if s.name in self._number_names), key=lambda source: source.object_index)
        names = [source.name for source in numbers]
        others = [source for source in present if source.name not in self._number_names]
        self._read_plan_count += 1
        return FieldReadPlan(
            self._read_plan_count,
            list(_keys_by_object(absent).items()),
            _make_getters(numbers, objects),
            dict.fromkeys(names, 0),
            [(name, self._units[name]) for name in names if name in self._units],
            _make_getters(others, objects),
            others,
        )


def _put_bounded(cache: dict[Key, Value], key: Key, value: Value, maximum: int) -> None:
    """Store an entry in a cache. Clear a full cache first."""
    if len(cache) >= maximum:
        cache.clear()
    cache[key] = value


def _keys_by_object(sources: Iterable[FieldLocation]) -> dict[int, list[str]]:
    """Return the keys of field locations, grouped by the number of the object."""
    keys: dict[int, list[str]] = {}
    for source in sources:
        keys.setdefault(source.object_index, []).append(source.key)
    return keys


def _make_getters(sources: Iterable[FieldLocation], objects: Objects) -> list[tuple[int, Getter]]:
    """Return pairs of an object's number and a getter. The getter returns the values at the object's field locations.

    The getters use the key strings of the reply. orjson reuses one string for equal keys, so a lookup compares no characters.
    """
    getters = []
    for index, keys in _keys_by_object(sources).items():
        own = {key: key for key in objects[index]}
        getters.append((index, make_tuple_getter([own[key] for key in keys])))
    return getters


def make_tuple_getter(keys: Sequence[str]) -> Getter:
    """Return a function that returns the values of the keys as a tuple, even for one key. An `itemgetter` of one key returns no tuple."""
    first = keys[0]
    return itemgetter(*keys) if len(keys) > 1 else lambda item: (item[first],)


def find_nested_object(item: Any, path: tuple[str, ...]) -> Mapping[str, Any] | None:
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
    """Return a converter of a histogram: QEMU's `boundaries` and `bins`, and the `sum` that the collector adds.

    `boundaries` has the lower bounds of all bins except the first. `bins` has the count of each bin. `sum` is the total duration; None if
    unknown.
    """

    def convert(raw: Any) -> FieldValues | None:
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
