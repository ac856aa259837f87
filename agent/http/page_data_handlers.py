"""Request handlers of the page's data that is not in the page's stream: the table of metrics, alert descriptions, and histories."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from agent.exposition.history import RESOLUTIONS, History
from agent.exposition.history_recorder import HISTORY_COLUMNS, POOL_COLUMNS
from agent.exposition.snapshot import Snapshot
from agent.exposition.vm_table_rows import round_significant
from agent.model.family import FieldKind
from agent.model.json_encoding import encode_json
from agent.model.metrics import FAMILIES

DIGITS = 4
"""Number of significant digits of the values in a history."""


def metric_families_json() -> dict[str, Any]:
    """Return the table of metrics: each family with its source and labels, and each field with kind, help and metric name."""
    return {
        family.name: {
            "help": family.help,
            "source": family.source,
            "labels": family.labels,
            "per_host": family.per_host,
            "fields": {
                field.name: [field.kind.value, field.help, _metric_name(family.metric_name(field), field.kind)]
                for field in family.fields
            },
        }
        for family in FAMILIES
    }


def _metric_name(name: str, kind: FieldKind) -> str:
    """Return the metric name of a field; empty for a field that is only in records."""
    return "" if kind in (FieldKind.TEXT, FieldKind.DETAIL) else name


class PageDataHandlers:
    """Request handlers of /fields, /alert-descriptions and /history."""

    def __init__(self, snapshot: Snapshot, alerts: Mapping[str, Mapping[str, str]]) -> None:
        self._snapshot = snapshot
        self._alerts = encode_json(alerts)
        self._fields = encode_json(metric_families_json())

    async def metric_families(self, _: web.Request) -> web.Response:
        """Return the table of metrics, which does not change while the agent runs."""
        return web.Response(body=self._fields, content_type="application/json")

    async def alert_descriptions(self, _: web.Request) -> web.Response:
        """Return each alert's meaning, usual causes and remedy in Markdown, by the alert's name."""
        return web.Response(body=self._alerts, content_type="application/json")

    async def history(self, request: web.Request) -> web.Response:
        """Return the history of a VM (`vm`: its UUID), of a pool (`pool` and `kind`), or of the host.

        `range`: length of the history in seconds. `after`: return only points after this time, in seconds since the epoch.
        """
        query = request.query
        try:
            seconds, after = float(query.get("range", RESOLUTIONS[0].range_seconds)), float(query.get("after", 0))
        except ValueError:
            raise web.HTTPBadRequest(text="range and after should be numbers of seconds\n") from None
        columns: Sequence[str] = HISTORY_COLUMNS
        history = self._snapshot.host_history
        if "vm" in query:
            history = self._snapshot.vm_history(query["vm"]) or History(len(HISTORY_COLUMNS))
        elif "pool" in query:
            columns = POOL_COLUMNS
            found = self._snapshot.storage_pool_history((query["pool"], query.get("kind", "")))
            history = found or History(len(POOL_COLUMNS))
        body = encode_json({"columns": columns, "points": list(_points(history, seconds, after))})
        return web.Response(body=body, content_type="application/json")


def _points(history: History, seconds: float, after: float) -> Iterator[list[float | None]]:
    for time, values in history.points(seconds, after):
        yield [round(time, 1), *(round_significant(value, DIGITS) for value in values)]  # NaN becomes null in JSON
