"""Encoding of untrusted values as JSON. Pure."""

from collections.abc import Mapping
from typing import Any

import orjson


def encode_json(data: Mapping[str, Any]) -> bytes:
    """Encode untrusted values as JSON. Replace only the values that JSON cannot represent."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return orjson.dumps({key: _to_encodable(value) for key, value in data.items()})


def _to_encodable(value: Any) -> Any:
    """Return the closest value that JSON can represent; an empty object if the value is nested too deep or has an unknown type."""
    try:
        value = _replace_large_integers(value)
        orjson.dumps(value)
    except (TypeError, RecursionError):  # orjson reads 1024 levels and writes 254
        return {}
    return value


def _replace_large_integers(value: Any) -> Any:
    """Return the value with each integer beyond 64 bits replaced by a float. A sum of counters can exceed 64 bits."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, Mapping):
        return {key: _replace_large_integers(inner) for key, inner in value.items()}
    return [_replace_large_integers(inner) for inner in value] if isinstance(value, list | tuple) else value
