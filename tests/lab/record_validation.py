"""Validates records with the published JSON schema and with an independent CloudEvents parser."""

import json
import re
from datetime import datetime
from typing import cast

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator, FormatChecker

from agent.schemas.record import record_schema

FORMATS = FormatChecker()
"""Formats that jsonschema checks only with further packages."""
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})+")  # RFC 3986's characters
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")  # RFC 3339 in UTC


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


def schema_violations(body: bytes) -> list[str]:
    """Return the record's violations of the schema; empty for a valid record."""
    return [f"{error.json_path}: {error.message}" for error in _VALIDATOR.iter_errors(json.loads(body))]


def parse_cloudevent(body: bytes) -> CloudEvent:
    """Parse a record with the independent CloudEvents parser, and check its attributes."""
    event = JSONFormat().read(CloudEvent, body)
    assert event.get_specversion() == "1.0"
    for name, value in event.get_attributes().items():
        assert name == name.lower().replace("_", ""), name
        assert not isinstance(value, str) or not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", value), name
    return cast("CloudEvent", event)
