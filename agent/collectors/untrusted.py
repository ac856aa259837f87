"""Type-checked accessors for parts of QMP replies, which are untrusted: a compromised QEMU can send anything. Pure."""

from typing import Any


def as_list_of_objects(raw: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the objects among a list's first `limit` entries; empty if it is not a list."""
    return [entry for entry in raw[:limit] if isinstance(entry, dict)] if isinstance(raw, list) else []


def as_object(raw: Any) -> dict[str, Any]:
    """Return an object; an empty one for anything else."""
    return raw if isinstance(raw, dict) else {}


def as_text(raw: Any) -> str:
    """Return a string; an empty one for anything else."""
    return raw if isinstance(raw, str) else ""
