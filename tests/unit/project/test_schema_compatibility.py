"""The check of schemas against the last release: it finds each broken promise, and nothing else."""

import json
from copy import deepcopy
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agent.schemas.data import data_schemas, published_data_schemas
from tests.lab.record_checks import validator
from tools import reference, schemas
from tools.schema_compatibility import find_broken_promises
from tools.schemas import find_incompatibilities

URI = "urn:qmp-agent:qemu.vm.x:1"
OLD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "description": "Why."},
        "kind": {"enum": ["a", "b"]},
        "count": {"type": "number", "minimum": 0},
        "alert": {"const": "x"},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    },
    "required": ["reason"],
}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the old schema with other fields. None removes a field."""
    new = deepcopy(OLD)
    new["properties"] |= fields
    new["properties"] = {name: field for name, field in new["properties"].items() if field is not None}
    return new


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        changed(reason={"type": "string", "description": "The cause."}),
        changed(more={"type": "string"}),
        changed(kind={"enum": ["a"]}),
        changed(kind={"const": "a"}),
        changed(count={"type": "integer", "minimum": 1}),
        {**OLD, "required": ["reason", "kind"]},
    ],
    ids=["same", "description", "new field", "fewer values", "one value", "narrower", "required"],
)
def test_compatible_changes_pass(new: dict[str, Any]) -> None:
    assert list(find_broken_promises(OLD, new)) == []


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (changed(count=None), "data.count: is gone"),
        (changed(count={"type": "string"}), "data.count: the type was number and is string"),
        (changed(count={"minimum": 0}), "data.count: the type was number and is any"),
        (changed(count={"type": "number"}), "data.count: minimum was 0 and is absent"),
        (changed(count={"type": "number", "minimum": -1}), "data.count: minimum was 0 and is -1"),
        (changed(kind={"enum": ["a", "b", "c"]}), "data.kind: new values: c"),
        (changed(kind={"type": "string"}), "data.kind: new values: any"),
        (changed(alert={"const": "y"}), "data.alert: const was x and is y"),
        (changed(id={"type": "string"}), "data.id: pattern was ^[0-9]+$ and is absent"),
        (changed(sizes={"type": "array", "items": {"type": "string"}}), "data.sizes[]: the type was integer"),
        ({**OLD, "required": []}, "data.reason: was required"),
    ],
)
def test_each_broken_promise_is_found(new: dict[str, Any], problem: str) -> None:
    problems = list(find_broken_promises(OLD, new))
    assert problems
    assert problems[0].startswith(problem)


def test_a_keyword_that_the_check_does_not_know_may_not_change() -> None:
    assert list(find_broken_promises({"oneOf": []}, {"oneOf": [{}]})) == ["data: oneOf changed"]


def test_a_new_version_may_break_promises_and_a_type_may_not_vanish() -> None:
    assert list(find_incompatibilities({URI: OLD}, {URI: changed(count=None)})) == [f"{URI}: data.count: is gone"]
    assert list(find_incompatibilities({URI: OLD}, {"urn:qmp-agent:qemu.vm.x:2": changed(count=None)})) == []
    assert list(find_incompatibilities({URI: OLD}, {})) == [f"{URI}: the record type is gone"]


def test_the_schemas_of_now_keep_the_promises_of_the_last_release() -> None:
    current = {schema["$id"]: schema for schema in published_data_schemas().values()}
    assert list(find_incompatibilities(json.loads(schemas.RELEASED.read_text()), current)) == []
    assert list(find_incompatibilities(current, current)) == []


def test_the_check_knows_every_keyword_of_the_schemas() -> None:
    """A schema without any constraint must break a promise of each field that has one."""
    for name, schema in data_schemas().items():
        problems = list(find_broken_promises(schema, {"properties": {key: {} for key in schema["properties"]}}))
        found = {problem.split(":")[0].split(".")[1] for problem in problems if problem.startswith("data.")}
        constrained = {field for field, body in schema["properties"].items() if body.keys() - {"description"}}
        assert constrained <= found, name


def test_published_schemas_accept_fields_of_later_versions() -> None:
    for schema in published_data_schemas().values():
        Draft202012Validator.check_schema(schema)
        assert "additionalProperties" not in schema
    examples = map(json.loads, reference.EXAMPLES.read_text().splitlines())
    by_uri = {schema["$id"]: schema for schema in published_data_schemas().values()}
    for record in examples:
        data = record["data"] | {"a_field_of_tomorrow": 1}
        assert list(validator(by_uri[record["dataschema"]]).iter_errors(data)) == [], record["type"]
