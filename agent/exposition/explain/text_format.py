"""Formats figures for the sentences of an explanation. Pure."""

from collections.abc import Sequence

from agent.common.durations_and_sizes import format_bytes

_UNITS = (("s", 1.0, 100.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172_800.0), ("days", 86400.0, float("inf")))


def format_duration(seconds: float) -> str:
    """Format a duration, such as `45 s`, `12 min`, `5 h` or `31 days`."""
    seconds = max(0.0, seconds)
    unit, length, _ = next(row for row in _UNITS if seconds < row[2] or row is _UNITS[-1])
    return f"{seconds / length:.0f} {unit}"


def format_latency_text(seconds: float) -> str:
    """Format a latency, such as `0.35 ms`, `80 ms` or `2.1 s`."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.2g} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"


def format_percent(ratio: float) -> str:
    """Format a ratio in percent, such as `98 %`."""
    return f"{ratio * 100:.0f} %"


def format_rate(unit: str, rate: float) -> str:
    """Format a rate of bytes, such as `12 MiB/s`, or of another unit, such as `250 operations/s`."""
    if unit == "bytes":
        return f"{format_bytes(rate)}/s"
    return f"{rate:.3g} {unit}/s" if rate < 999.5 else f"{rate:.0f} {unit}/s"


def format_list(names: Sequence[str], maximum: int = 4) -> str:
    """Format names as a list, such as `disk0, disk1 and 3 more`."""
    shown = ", ".join(names[:maximum])
    return shown if len(names) <= maximum else f"{shown} and {len(names) - maximum} more"
