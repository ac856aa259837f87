"""Records as lines for people. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from agent.common.units import format_bytes
from agent.model.record import sanitize

_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
_ALERT_COLOUR = "1;35"


def line(event: Mapping[str, Any], *, width: int = 0, colour: bool = False) -> str:
    """Return a record as one line: when, whose, what, about whom, and its figures; cut to `width` columns where that is not 0."""
    when = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind = event["type"].removeprefix("qemu.")
    subject = event.get("subject", "")
    figures = "  ".join(_figures(event["data"], subject))
    text = f"{when}  {event.get('vmname', event['partitionkey']):12.20}  {kind:24} {subject:10}  {figures}"
    text = sanitize(text[:width] if width else text, 4096).rstrip()
    code = _ALERT_COLOUR if kind.startswith("alert.") else _COLOURS.get(event["severity"])
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


HIDDEN = frozenset({"event", "category", "alert", "account_failed", "account_invalid", "qdev"})
"""Fields that tell a person nothing that is not said already."""


def _figures(data: Mapping[str, Any], subject: str) -> Iterator[str]:
    """Yield what is worth a look: nothing that is zero, empty or said already."""
    for key, value in data.items():
        if key == "qemu" and isinstance(value, dict):
            yield from _figures(value, subject)
        elif value not in (0, "", None, subject) and key not in HIDDEN:
            yield f"{_name(key)}={figure(key, value)}"


def _name(key: str) -> str:
    return key.removesuffix("_total").removesuffix("_bytes").removesuffix("_timestamp_seconds")


def figure(key: str, value: object) -> str:
    """Return a field's value in the unit that its name tells."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "timestamp_seconds" in key and 0 <= value < 1 << 37:  # a date that Python knows; an event may say anything
        return datetime.fromtimestamp(value).astimezone().strftime("%H:%M:%S")
    if "bytes_per_second" in key:
        return f"{format_bytes(value)}/s"
    if "_bytes" in key:
        return format_bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
