"""Whether a record is what it should be, by the judgement of programs that are not ours."""

import json
from collections.abc import Sequence
from typing import Any

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.formats.json import JSONFormat
from jsonschema import Draft202012Validator

from tests.lab.record_validation import FORMATS


def validator(schema: Any) -> Draft202012Validator:
    """Return a validator for a schema that is one."""
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FORMATS)


def check(line: str | bytes, schema: Draft202012Validator) -> BaseCloudEvent:
    """Return the CloudEvent that a line holds.

    Raises:
        AssertionError: it breaks our schema.
        CloudEventValidationError: it is no CloudEvent.
    """
    faults = [f"{error.json_path}: {error.message}" for error in schema.iter_errors(json.loads(line))]
    assert not faults, f"{faults} in {line!r}"
    return JSONFormat().read(None, line)


def put_in_order(events: Sequence[BaseCloudEvent]) -> list[BaseCloudEvent]:
    """Return a run's events in the order in which they were made.

    Raises:
        AssertionError: one is missing or there twice, or those of a lane (alerts; samples; all else) came out of order.
    """
    lanes: dict[str, list[int]] = {}
    for event in events:
        family = event.get_type().split(".")[1]
        lanes.setdefault(family if family in {"alert", "sample"} else "event", []).append(sequence(event))
    for name, lane in lanes.items():
        assert lane == sorted(lane), name
    ordered = sorted(events, key=sequence)
    assert [sequence(event) for event in ordered] == list(range(1, len(ordered) + 1))
    return ordered


def sequence(event: BaseCloudEvent) -> int:
    """Return an event's number in its run."""
    return int(event.get_extension("sequence"))
