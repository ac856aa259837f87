"""The metrics table: names that follow Prometheus' rules, and readers that return each field."""

import re
from collections import Counter
from typing import Any

import pytest

from agent.model import field_reader as model_reader
from agent.model.family import Family, Field, FieldKind, Sample, Unit
from agent.model.field_reader import FieldReader
from agent.model.metrics import FAMILIES
from agent.model.metrics.block import BLOCK
from agent.model.metrics.memory import GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION

ROWS = [pytest.param(family, field, id=family.metric_name(field)) for family in FAMILIES for field in family.fields]
SERIES = [
    pytest.param(family, field, id=family.metric_name(field))
    for family in FAMILIES
    for field in family.exported_fields()
]


def read_field(field: Field, raw: Any, *, unavailable: frozenset[int] = frozenset()) -> Any:
    return FieldReader(Family("f", "s", "h.", (), (field,), unavailable))({field.path: raw}).get(field.name)


@pytest.mark.parametrize(("family", "field"), ROWS)
def test_a_row_has_a_valid_name_and_a_help_sentence(family: Family, field: Field) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)
    assert re.fullmatch(r"[A-Z`][^\n]*\.", field.help)
    assert field.name not in (*family.labels, "vm", "vm_uuid")


@pytest.mark.parametrize(("family", "field"), SERIES)
def test_a_series_name_follows_prometheus_rules(family: Family, field: Field) -> None:
    name = family.metric_name(field)
    assert (field.kind is FieldKind.COUNTER) == name.endswith("_total")
    assert not re.search(r"_(ns|us|ms|milliseconds|kb|kib|mb|mbps|percent|percentage|count|sum|bucket)(_total)?$", name)
    if field.unit in (Unit.NANOSECONDS, Unit.MICROSECONDS, Unit.MILLISECONDS):
        assert re.search(r"_seconds(_total)?$", name)
    if field.unit is Unit.PERCENT:
        assert name.endswith("_ratio")
    if field.unit is Unit.MEGABITS:
        assert name.endswith("_bytes_per_second")


def test_series_names_and_paths_within_a_family_are_unique() -> None:
    series = Counter(family.metric_name(field) for family in FAMILIES for field in family.exported_fields())
    assert [name for name, count in series.items() if count > 1] == []
    for family in FAMILIES:
        for key in (lambda f: f.path, lambda f: f.name):
            assert [k for k, count in Counter(map(key, family.fields)).items() if count > 1] == []
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_families_have_a_help_sentence_and_valid_labels() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"[A-Z][^\n]*\.", family.help), family.name
        assert all(re.fullmatch(r"[a-z]+", label) for label in family.labels)


def test_texts_and_details_have_no_series() -> None:
    assert not {f.kind for family in FAMILIES for f in family.exported_fields()} & {FieldKind.TEXT, FieldKind.DETAIL}


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
def test_numbers_are_converted_to_base_units_exactly(unit: Unit, raw: Any, value: Any) -> None:
    assert read_field(Field("x", "y", FieldKind.GAUGE, "H.", unit), raw) == value


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (FieldKind.COUNTER, [0, 1, 1.5], [True, None, "1", [], {}, float("inf"), float("nan")]),
        (FieldKind.GAUGE, [0, -1, 1.5], [False, None, "1", [1], {}, float("-inf")]),
        (FieldKind.FLAG, [True, False], [0, 1, "true", None, []]),
        (FieldKind.STATE, ["running"], [5, None, True, [], {}]),
        (FieldKind.TEXT, ["", "x"], [5, None, [], {}]),
        (FieldKind.DETAIL, [[1, {"a": None}], "x", 5, False], [None, "x" * 9000]),
    ],
)
def test_values_of_a_wrong_type_are_omitted(kind: FieldKind, good: list[Any], bad: list[Any]) -> None:
    field = Field("x", "y", kind, "H.")
    assert [read_field(field, raw) for raw in good] == good
    assert [read_field(field, raw) for raw in bad] == [None] * len(bad)


def test_numbers_that_mean_unknown_are_omitted_in_families_that_use_them() -> None:
    field = Field("x", "y", FieldKind.GAUGE, "H.")
    assert [read_field(field, raw, unavailable=GUEST_MEMORY.unavailable) for raw in (-1, 2**64 - 1, 0)] == [
        None,
        None,
        0,
    ]
    assert [read_field(field, raw) for raw in (-1, 2**64 - 1)] == [-1, 2**64 - 1]
    assert BLOCK.unavailable == MIGRATION.unavailable == frozenset()


def test_states_and_texts_are_sanitized_and_truncated() -> None:
    assert read_field(Field("x", "y", FieldKind.STATE, "H."), "a\nb" + "x" * 100) == "a\ufffdb" + "x" * 61
    assert read_field(Field("x", "y", FieldKind.TEXT, "H."), "a\u202eb" + "x" * 2000) == "a\ufffdb" + "x" * 1021


def test_a_path_through_a_non_object_returns_no_value() -> None:
    reader = FieldReader(Family("f", "s", "h.", (), (Field("a.b.c", "y", FieldKind.GAUGE, "H."),)))
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


def test_a_samples_data_has_its_labels_and_values() -> None:
    sample = Sample(BLOCK, ("disk0",), {"reads_total": 5})
    assert sample.data == {"device": "disk0", "reads_total": 5}
    assert sample.subject == "disk0"
    assert Sample(MIGRATION, (), {}).subject == ""


def test_large_shapes_are_not_cached() -> None:
    reader = FieldReader(
        Family("f", "s", "h.", (), (Field("a", "a", FieldKind.GAUGE, "H."), Field("b", "b", FieldKind.GAUGE, "H.")))
    )
    assert reader({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert reader({"a": 1, "b": 2, **{chr(1024 + n): n for n in range(1000)}}) == {"a": 1, "b": 2}
    assert len(reader._read_plans) == 1


def _reader_of_two_objects() -> FieldReader:
    fields = (
        Field("number", "number", FieldKind.GAUGE, "H."),
        Field("inner.text", "text", FieldKind.TEXT, "H."),
        Field("inner.flag", "flag", FieldKind.DETAIL, "H."),
    )
    return FieldReader(Family("f", "s", "h.", (), fields))


def test_objects_with_as_many_keys_and_other_fields_are_read_by_their_own_fields() -> None:
    reader = _reader_of_two_objects()
    for _ in range(2):
        assert reader({"number": 1, "inner": {"text": "a"}}) == {"number": 1, "text": "a"}
        assert reader({"number": 1, "inner": {"flag": True}}) == {"number": 1, "flag": True}
        assert reader({"x": 1, "inner": {"text": "a"}}) == {"text": "a"}
        assert reader({"number": 1, "inner": {"x": "a"}}) == {"number": 1}


def test_equal_values_of_different_types_stay_different() -> None:
    reader = _reader_of_two_objects()
    for flag in (True, 1, 1.0, False, 0, "1"):
        value = reader({"number": 1, "inner": {"flag": flag}})["flag"]
        assert (type(value), value) == (type(flag), flag)


def test_a_change_of_returned_values_does_not_change_later_ones() -> None:
    reader = _reader_of_two_objects()
    reader({"inner": {"text": "a"}})["text"] = "b"
    assert reader({"inner": {"text": "a"}}) == {"text": "a"}


def test_cached_conversions_are_bounded_in_number_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reader, "_MAX_CACHED", 10)
    reader = _reader_of_two_objects()
    texts = [*map(str, range(35)), "x" * 2000]
    assert [reader({"number": 1, "inner": {"text": text}})["text"] for text in texts] == [text[:1024] for text in texts]
    assert len(reader._converted) == 5
