"""Parses and formats durations and sizes such as `10s`, `5m` and `1GiB`. Pure."""

import re

_SECONDS = {"us": 0.000001, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def parse_seconds(value: object) -> float:
    """Parse a duration such as `500ms`, `10s`, `5m`, `1h` or `2d`, or a number of seconds. Return seconds.

    Raises:
        ValueError: the value has another form.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*(us|ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match:
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
        return float(value)
    raise ValueError("should be a duration such as 10s, 500ms, 5m or 1h")


def parse_bytes(value: object) -> int:
    """Parse a size such as `64KiB`, `1GiB` or `10MB`, or a number of bytes. Return bytes.

    Raises:
        ValueError: the value has another form.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kKMGT]i?B|B|)", value) if isinstance(value, str) else None
    if match and match[2] in _BYTES:
        return int(float(match[1]) * _BYTES[match[2]])
    if type(value) is int and value >= 0:
        return value
    raise ValueError("should be a size such as 64KiB, 100MiB or 1GiB")


def format_bytes(size: float) -> str:
    """Format a size in bytes with about three digits, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.{3 if abs(size) < 999.5 else 4}g} {unit}"  # 1023, not 1.02e+03
        size /= 1024
    return f"{size:.4g} TiB"
