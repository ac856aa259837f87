"""Validation of records by independent libraries: a JSON schema validator and the CloudEvents SDK."""

import json
from collections.abc import Sequence
from typing import Any

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.formats.json import JSONFormat
from jsonschema import Draft202012Validator

from tests.lab.record_validation import FORMATS


def validator(schema: Any) -> Draft202012Validator:
    """Return a validator for a JSON schema. The schema must be valid."""
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FORMATS)


def validate_record(line: str | bytes, schema: Draft202012Validator) -> BaseCloudEvent:
    """Parse a line as a CloudEvent and validate it.

    Raises:
        AssertionError: The line violates the schema of records.
        CloudEventValidationError: The line is not a CloudEvent.
    """
    problems = [f"{error.json_path}: {error.message}" for error in schema.iter_errors(json.loads(line))]
    assert not problems, f"{problems} in {line!r}"
    return JSONFormat().read(None, line)


def sort_events(events: Sequence[BaseCloudEvent]) -> list[BaseCloudEvent]:
    """Return the events of one run of the agent in the order of their creation.

    Raises:
        AssertionError: An event is missing, an event is a duplicate, or the events of a queue are not in order.
    """
    queues: dict[str, list[int]] = {}
    for event in events:
        family = event.get_type().split(".")[1]
        queues.setdefault(family if family in {"alert", "sample"} else "event", []).append(sequence_number(event))
    for name, numbers in queues.items():
        assert numbers == sorted(numbers), name
    ordered = sorted(events, key=sequence_number)
    assert [sequence_number(event) for event in ordered] == list(range(1, len(ordered) + 1))
    return ordered


def sequence_number(event: BaseCloudEvent) -> int:
    """Return the number of an event within its run of the agent."""
    return record_number(event.get_id())


def record_number(record_id: str) -> int:
    """Return the number in an id: the position of the record in its run of the agent."""
    return int(record_id.partition("-")[2])
