"""Type-checked accessors for parts of QMP replies. The replies are untrusted, because a compromised QEMU can send anything. Pure."""

from typing import Any


def list_of_objects_or_empty(raw: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the JSON objects among the first `limit` entries of a list; an empty list if the value is not a list."""
    return [entry for entry in raw[:limit] if isinstance(entry, dict)] if isinstance(raw, list) else []


def object_or_empty(raw: Any) -> dict[str, Any]:
    """Return the value if it is a JSON object, and an empty object otherwise."""
    return raw if isinstance(raw, dict) else {}


def text_or_empty(raw: Any) -> str:
    """Return the value if it is a string, and an empty string otherwise."""
    return raw if isinstance(raw, str) else ""
