"""Formats records and their values for people. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from agent.common.durations_and_sizes import format_bytes
from agent.model.record import sanitize

_COLOURS = {"DEBUG": "2", "WARN": "33", "ERROR": "31", "FATAL": "1;31"}
_ALERT_COLOUR = "1;35"


def format_record(record: Mapping[str, Any], *, width: int = 0, colour: bool = False) -> str:
    """Format a record as one line: time, VM, type, subject and values.

    Args:
        record: the record, as decoded JSON.
        width: maximum width of the line in characters; 0 for no maximum.
        colour: whether to add the escape codes of the severity's colour.
    """
    time = datetime.fromisoformat(record["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind = record["type"].removeprefix("qemu.")
    subject = record.get("subject", "")
    values = "  ".join(_format_fields(record["data"], subject))
    text = f"{time}  {record.get('vmname', record['partitionkey']):12.20}  {kind:27} {subject:10}  {values}"
    text = sanitize(text[:width] if width else text, 4096).rstrip()
    code = _ALERT_COLOUR if kind.startswith("alert.") else _COLOURS.get(record["severitytext"])
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


HIDDEN_FIELDS = frozenset({"event", "category", "alert", "fingerprint", "account_failed", "account_invalid", "qdev"})
"""Hidden fields of a record's data: people do not need these fields, or the line already shows their values."""


_QEMU_BYTES = frozenset({"write-threshold", "amount-exceeded", "actual"})
"""Fields of QEMU's events whose values are in bytes, although their names do not end in `_bytes`."""


def _format_fields(data: Mapping[str, Any], subject: str) -> Iterator[str]:
    """Yield `name=value` for each field. Fields that are zero, empty or equal to the subject are left out."""
    for key, value in data.items():
        if key == "qemu" and isinstance(value, dict):
            yield from _format_fields(value, subject)
        elif value not in (0, "", None, subject) and key not in HIDDEN_FIELDS:
            yield f"{_name_without_unit(key)}={format_value(key, value)}"


def _name_without_unit(key: str) -> str:
    return key.removesuffix("_total").removesuffix("_bytes").removesuffix("_timestamp_seconds")


def format_value(key: str, value: object) -> str:
    """Format the value of a field. The field's name `key`, such as `read_bytes_total`, contains the unit."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, int | float):
        return str(value)
    if "timestamp_seconds" in key and 0 <= value < 1 << 37:  # the dates that Python supports
        return datetime.fromtimestamp(value).astimezone().strftime("%H:%M:%S")
    if "bytes_per_second" in key:
        return f"{format_bytes(value)}/s"
    if "_bytes" in key or key in _QEMU_BYTES:
        return format_bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
