"""Parts of QEMU's replies, taken for what they should be: a QEMU that was taken over says what it likes. Pure."""

from typing import Any


def as_list_of_objects(raw: Any, most: int | None = None) -> list[dict[str, Any]]:
    """Return the objects of a list, of its first `most` entries where that is given; none where it is no list."""
    return [one for one in raw[:most] if isinstance(one, dict)] if isinstance(raw, list) else []


def as_object(raw: Any) -> dict[str, Any]:
    """Return an object; an empty one where it is none."""
    return raw if isinstance(raw, dict) else {}


def as_text(raw: Any) -> str:
    """Return a text; an empty one where it is none."""
    return raw if isinstance(raw, str) else ""
