"""Renders the list of firing alerts and the list of monitors as lines of text. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, format_seconds, format_size, natural_key

_ALERT_WIDTHS = (8, 19, 22, 16)
_MONITOR_WIDTHS = (10, 16)
_MIN_MONITOR_WIDTH = 24


def alert_lines(alerts: Sequence[Mapping[str, Any]], width: int) -> Iterator[ScreenLine]:
    """Yield a heading, and a line for each firing alert, in the order of /overview.

    Args:
        alerts: the alerts in /overview.
        width: the maximum width in characters; 0 for no maximum.
    """
    yield ScreenLine(_join_cells(("SEVERITY", "SINCE", "ALERT", "VM", "SUBJECT"), _ALERT_WIDTHS, width), TextStyle.HEAD)
    for alert in alerts:
        since = datetime.fromtimestamp(alert["since"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        cells = (alert["severity"], since, alert["alert"], alert["vm"], _describe_alert(alert))
        style = TextStyle.BAD if alert["severity"] in ("critical", "error") else TextStyle.WARNING
        yield ScreenLine(_join_cells(cells, _ALERT_WIDTHS, width), style)
    if not alerts:
        yield ScreenLine("No alert fires.")


def _describe_alert(alert: Mapping[str, Any]) -> str:
    parts = [str(alert["subject"]), f"past {alert['level']}" if alert["level"] else ""]
    if "free_bytes" in alert:
        parts.append(f"{format_size(alert['free_bytes'])} free")
    if "time_to_full_seconds" in alert:
        parts.append(f"full in {format_seconds(alert['time_to_full_seconds'])}")
    return "  ".join(filter(None, parts))


def monitor_lines(monitors: Sequence[Mapping[str, Any]], width: int) -> Iterator[ScreenLine]:
    """Yield a heading, and a line for each monitor. Monitors that are not up come first; each group is sorted by name in natural order.

    Args:
        monitors: the monitors in /overview.
        width: the maximum width in characters; 0 for no maximum.
    """
    longest = max((len(str(monitor["monitor"])) for monitor in monitors), default=0)
    name = max(_MIN_MONITOR_WIDTH, longest if not width else min(longest, width - 45))
    widths = (name, *_MONITOR_WIDTHS)
    yield ScreenLine(_join_cells(("MONITOR", "STATE", "VM", "REASON"), widths, width), TextStyle.HEAD)
    for monitor in sorted(monitors, key=lambda known: (known["state"] == "up", natural_key(known["monitor"]))):
        cells = (monitor["monitor"], monitor["state"], monitor["vm"], monitor["reason"])
        style = TextStyle.PLAIN if monitor["state"] == "up" else TextStyle.WARNING
        yield ScreenLine(_join_cells(cells, widths, width), style)


def _join_cells(cells: Sequence[str], widths: Sequence[int], width: int) -> str:
    *fixed, last = cells
    row = " ".join(
        [*(fit_to_width(cell, remaining_width) for cell, remaining_width in zip(fixed, widths, strict=True)), last]
    )
    return fit_to_width(row, width or 4096).rstrip() if not width else fit_to_width(row, width)
