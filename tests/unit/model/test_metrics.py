"""The table of metrics: its names follow Prometheus' rules, and a row reads what it says."""

import re
from collections import Counter
from typing import Any

import pytest

from agent.model.family import Family, Field, Kind, Sample, Unit
from agent.model.metrics import FAMILIES
from agent.model.metrics.block import BLOCK
from agent.model.metrics.memory import GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.reader import Reader

ROWS = [pytest.param(family, field, id=family.series(field)) for family in FAMILIES for field in family.fields]
SERIES = [
    pytest.param(family, field, id=family.series(field)) for family in FAMILIES for field in family.exported_fields()
]


def read(field: Field, raw: Any, *, unavailable: frozenset[int] = frozenset()) -> Any:
    return Reader(Family("f", "s", "h.", (), (field,), unavailable))({field.path: raw}).get(field.name)


@pytest.mark.parametrize(("family", "field"), ROWS)
def test_a_row_is_named_and_explained(family: Family, field: Field) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)
    assert re.fullmatch(r"[A-Z`][^\n]*\.", field.help)
    assert field.name not in (*family.labels, "vm", "vm_uuid")


@pytest.mark.parametrize(("family", "field"), SERIES)
def test_a_series_is_named_by_prometheus_rules(family: Family, field: Field) -> None:
    name = family.series(field)
    assert (field.kind is Kind.COUNTER) == name.endswith("_total")
    assert not re.search(r"_(ns|us|ms|milliseconds|kb|kib|mb|mbps|percent|percentage|count|sum|bucket)(_total)?$", name)
    if field.unit in (Unit.NANOSECONDS, Unit.MICROSECONDS, Unit.MILLISECONDS):
        assert re.search(r"_seconds(_total)?$", name)
    if field.unit is Unit.PERCENT:
        assert name.endswith("_ratio")
    if field.unit is Unit.MEGABITS:
        assert name.endswith("_bytes_per_second")


def test_no_two_series_have_one_name_and_no_two_rows_of_a_family_one_path() -> None:
    series = Counter(family.series(field) for family in FAMILIES for field in family.exported_fields())
    assert [name for name, count in series.items() if count > 1] == []
    for family in FAMILIES:
        for key in (lambda f: f.path, lambda f: f.name):
            assert [k for k, count in Counter(map(key, family.fields)).items() if count > 1] == []
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_families_are_explained_and_their_labels_are_names() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"[A-Z][^\n]*\.", family.help), family.name
        assert all(re.fullmatch(r"[a-z]+", label) for label in family.labels)


def test_texts_and_details_have_no_series() -> None:
    assert not {f.kind for family in FAMILIES for f in family.exported_fields()} & {Kind.TEXT, Kind.DETAIL}


# --- Reading ---


@pytest.mark.parametrize(
    ("unit", "raw", "value"),
    [
        (Unit.BASE, 7, 7),
        (Unit.BASE, 2**64 - 1, 2**64 - 1),
        (Unit.BASE, -5, -5),
        (Unit.BASE, 0.5, 0.5),
        (Unit.NANOSECONDS, 123_456_789_123, 123.456789123),
        (Unit.NANOSECONDS, 1, 1e-9),
        (Unit.MICROSECONDS, 1500, 0.0015),
        (Unit.MILLISECONDS, 1, 0.001),
        (Unit.MEGABITS, 8, 1_000_000),
        (Unit.PERCENT, 99, 0.99),
    ],
)
def test_numbers_are_read_into_base_units_to_the_last_digit(unit: Unit, raw: Any, value: Any) -> None:
    assert read(Field("x", "y", Kind.GAUGE, "H.", unit), raw) == value


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.COUNTER, [0, 1, 1.5], [True, None, "1", [], {}, float("inf"), float("nan")]),
        (Kind.GAUGE, [0, -1, 1.5], [False, None, "1", [1], {}, float("-inf")]),
        (Kind.FLAG, [True, False], [0, 1, "true", None, []]),
        (Kind.STATE, ["running"], [5, None, True, [], {}]),
        (Kind.TEXT, ["", "x"], [5, None, [], {}]),
        (Kind.DETAIL, [[1, {"a": None}], "x", 5, False], [None, "x" * 9000]),
    ],
)
def test_what_is_not_of_the_fields_kind_is_left_out(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    field = Field("x", "y", kind, "H.")
    assert [read(field, raw) for raw in good] == good
    assert [read(field, raw) for raw in bad] == [None] * len(bad)


def test_numbers_by_which_qemu_says_that_it_does_not_know_are_left_out_where_they_say_that() -> None:
    field = Field("x", "y", Kind.GAUGE, "H.")
    assert [read(field, raw, unavailable=GUEST_MEMORY.unavailable) for raw in (-1, 2**64 - 1, 0)] == [None, None, 0]
    assert [read(field, raw) for raw in (-1, 2**64 - 1)] == [-1, 2**64 - 1]
    assert BLOCK.unavailable == MIGRATION.unavailable == frozenset()


def test_words_and_texts_are_cleaned_and_bounded() -> None:
    assert read(Field("x", "y", Kind.STATE, "H."), "a\nb" + "x" * 100) == "a\ufffdb" + "x" * 61
    assert read(Field("x", "y", Kind.TEXT, "H."), "a\u202eb" + "x" * 2000) == "a\ufffdb" + "x" * 1021


def test_a_path_that_leads_through_something_else_leads_nowhere() -> None:
    reader = Reader(Family("f", "s", "h.", (), (Field("a.b.c", "y", Kind.GAUGE, "H."),)))
    assert reader({"a": {"b": {"c": 1}}}) == {"y": 1}
    items: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"a": None},
        {"a": []},
        {"a": {"b": "x"}},
        {"a": {"b": {}}},
        {"a.b.c": 1},
    ]
    for item in items:
        assert reader(item) == {}


def test_a_samples_data_are_its_labels_and_its_values() -> None:
    sample = Sample(BLOCK, ("disk0",), {"reads_total": 5})
    assert sample.data == {"device": "disk0", "reads_total": 5}
    assert sample.subject == "disk0"
    assert Sample(MIGRATION, (), {}).subject == ""


def test_of_shapes_that_take_much_none_is_kept() -> None:
    reader = Reader(Family("f", "s", "h.", (), (Field("a", "a", Kind.GAUGE, "H."), Field("b", "b", Kind.GAUGE, "H."))))
    assert reader({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert reader({"a": 1, "b": 2, **{chr(1024 + n): n for n in range(1000)}}) == {"a": 1, "b": 2}
    assert len(reader._layouts) == 1
