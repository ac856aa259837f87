"""How the agent itself does, and what fires, as JSON can say it: for the page and `qmp-agent top`."""

from collections.abc import Iterable, Mapping
from typing import Any

from agent import __version__
from agent.alerts.store import Alert
from agent.delivery.pipeline import DeliveryPipeline

_OF_ALERT = (
    "free_bytes",
    "limit_bytes",
    "used_bytes",
    "growth_bytes_per_second",
    "time_to_full_seconds",
    "detected_by",
)
"""What is shown of an alert's data; the rest is in its record."""


def delivery(way: DeliveryPipeline) -> dict[str, Any]:
    """Return the state of the way out: the sink, the journal, what waits and what was lost."""
    outlet, journal = way.outlet, way.journal
    found: dict[str, Any] = {
        "sink": {"name": outlet.sink.name, "error": outlet.trouble if outlet.fails else None},
        "delivered": outlet.delivered,
        "reconnects": outlet.rebuilt,
        "queues": [
            {
                "name": lane.name,
                "records": len(lane),
                "memory_bytes": lane.memory_bytes,
                "disk_bytes": lane.disk.bytes,
                "oldest_record_age_seconds": round(lane.lag_seconds(), 1),
            }
            for lane in way.lanes
        ],
        "dropped": [
            {"queue": lane, "reason": reason, "records": count} for (lane, reason), count in way.losses.totals.items()
        ],
    }
    if journal is not None:
        found["journal"] = {"error": journal.trouble, "quarantined": journal.quarantined}
    return found


def agent(
    host: str,
    way: DeliveryPipeline,
    events_dropped: Mapping[str, float],
    unready_reasons: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    """Return how the agent does.

    Args:
        host: this host's name.
        way: the way out.
        events_dropped: events lost before they were records, by reason.
        unready_reasons: why it does not do all of its work.
        warnings: what somebody should look at some time.
    """
    said = {"host": host, "version": __version__, "unready_reasons": unready_reasons, "warnings": warnings}
    return said | delivery(way) | {"events_dropped": dict(events_dropped)}


def alerts(book: Iterable[Alert]) -> list[dict[str, Any]]:
    """Return what fires, the most severe first, of those the oldest."""
    return [
        {
            "alert": alert.name,
            "uuid": alert.vm.uuid,
            "vm": alert.vm.name,
            "subject": alert.subject,
            "level": alert.level,
            "severity": alert.severity.label,
            "since": alert.since_ns / 1e9,
            "fingerprint": alert.fingerprint,
        }
        | {name: alert.data[name] for name in _OF_ALERT if name in alert.data}
        for alert in sorted(book, key=lambda alert: (-alert.severity, alert.since_ns))
    ]
