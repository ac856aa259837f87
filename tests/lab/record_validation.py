"""What makes a record valid: the published schema, and a CloudEvents reader that is not ours."""

import json
import re
from datetime import datetime
from typing import cast

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator, FormatChecker

from agent.cli.schema import record_schema

FORMATS = FormatChecker()
"""What jsonschema itself does not look at without further packages."""
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})+")  # RFC 3986's characters
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")  # RFC 3339, in UTC as ours are


@FORMATS.checks("uri-reference")
def _uri_reference(value: object) -> bool:
    return not isinstance(value, str) or _URI_REFERENCE.fullmatch(value) is not None


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    return not isinstance(value, str) or (
        _DATE_TIME.fullmatch(value) is not None and bool(datetime.fromisoformat(value))
    )


Draft202012Validator.check_schema(record_schema())
_VALIDATOR = Draft202012Validator(record_schema(), format_checker=FORMATS)


def faults(body: bytes) -> list[str]:
    """Return what the schema has to say against a record; nothing is good."""
    return [f"{error.json_path}: {error.message}" for error in _VALIDATOR.iter_errors(json.loads(body))]


def understood(body: bytes) -> CloudEvent:
    """Return a record as the independent reader understands it, having found it valid."""
    event = JSONFormat().read(CloudEvent, body)
    assert event.get_specversion() == "1.0"
    for name, value in event.get_attributes().items():
        assert name == name.lower().replace("_", ""), name
        assert not isinstance(value, str) or not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", value), name
    return cast("CloudEvent", event)
