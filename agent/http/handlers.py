"""Request handlers of the endpoint: /metrics, /healthz, /readyz, /overview, /explain, the page and its data, and /rewrite-state.

No handler sends a command to QEMU. /rewrite-state makes the agent write the state topic again; all other handlers only read.
"""

import asyncio
import gzip
import time
from math import ceil
from typing import Protocol

from aiohttp import web

from agent.exposition.prometheus import render_chunks
from agent.http.overview import OverviewBuilder, OverviewSource
from agent.http.page_data_handlers import PageDataHandlers
from agent.http.page_stream import SharedPageState
from agent.http.record_stream import RecordBroadcaster
from agent.http.slow_vm_explanation_handler import SlowVmExplanationHandler
from agent.http.sse import DEFAULT_INTERVALS, SseHandlers, SseSendIntervals
from agent.http.static_files import StaticFiles
from agent.model.json_encoding import encode_json

MAX_BLOCKING_SECONDS = 0.005
"""Maximum seconds for which a scrape may block the event loop. QMP events wait meanwhile."""
GZIP_LEVEL = 1
"""gzip's lowest compression level, which compresses repeated labels nearly as well as the highest level."""

REWRITE_SECONDS = 10.0
"""Minimum seconds between two rewrites of the state topic."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Server": "qmp-agent",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every response."""

CACHE_CONTROL = "no-store"
"""Default of the header Cache-Control."""


class EndpointSource(OverviewSource, Protocol):
    """Interface through which the endpoint reads the agent's state."""

    broadcaster: RecordBroadcaster

    def render_self_metrics(self) -> bytes:
        """Return the agent's metrics about itself in Prometheus' text format."""

    def unready_reasons(self) -> list[str]:
        """Return why the agent is not ready, one text for each reason; empty if the agent is ready."""

    def hang_reason(self) -> str:
        """Return why the agent makes no progress and should be restarted; empty if all is well."""

    def warnings(self) -> list[str]:
        """Return problems that need attention although the agent is ready."""

    def describe_alerts(self) -> dict[str, dict[str, str]]:
        """Return `help`, `cause` and `action` of each alert in Markdown, by the alert's name."""

    def rewrite_state_topic(self) -> int | None:
        """Schedule a rewrite of the state topic. Return the number of states to write; None without a state topic."""

    def set_last_scrape_duration_seconds(self, seconds: float) -> None:
        """Record the duration of a scrape of /metrics, in seconds."""


def create_application(source: EndpointSource, timing: SseSendIntervals = DEFAULT_INTERVALS) -> web.Application:
    """Return the endpoint as an aiohttp application, without access control."""
    app = web.Application()
    app.on_response_prepare.append(_set_headers)
    handlers, page, data = (
        _RequestHandlers(source),
        StaticFiles(),
        PageDataHandlers(source.snapshot, source.describe_alerts()),
    )
    streams = SseHandlers(source.broadcaster, SharedPageState(source), timing)
    app.router.add_get("/", page.index)
    app.router.add_get("/page/{digest}/{name}", page.file)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/healthz", handlers.healthz)
    app.router.add_get("/readyz", handlers.readyz)
    app.router.add_post("/rewrite-state", handlers.rewrite_state)
    app.router.add_get("/records", streams.records)
    app.router.add_get("/overview", handlers.overview)
    app.router.add_get("/explain", SlowVmExplanationHandler(source).explain_slow_vm)
    app.router.add_get("/overview/live", streams.overview)
    app.router.add_get("/fields", data.metric_families)
    app.router.add_get("/history", data.history)
    app.router.add_get("/alert-descriptions", data.alert_descriptions)
    return app


async def _set_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", CACHE_CONTROL)


class _RequestHandlers:
    def __init__(self, source: EndpointSource) -> None:
        self._source = source
        self._overview = OverviewBuilder(source)
        self._rewrite_allowed_at = float("-inf")

    async def metrics(self, request: web.Request) -> web.Response:
        start = resumed = time.perf_counter()
        chunks = []
        for chunk in render_chunks(self._source.snapshot):
            chunks.append(chunk.encode())
            if time.perf_counter() - resumed > MAX_BLOCKING_SECONDS:
                await asyncio.sleep(0)
                resumed = time.perf_counter()
        body = b"".join((*chunks, self._source.render_self_metrics()))
        headers = {"Content-Type": TEXT_FORMAT, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._source.set_last_scrape_duration_seconds(time.perf_counter() - start)
        return web.Response(body=body, headers=headers)

    async def healthz(self, _: web.Request) -> web.Response:
        reason = self._source.hang_reason()  # any response, even an error, proves that the event loop runs
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        reasons = self._source.unready_reasons()
        lines = [*(reasons or ["ready"]), *self._source.warnings()]
        return web.Response(text="\n".join(lines) + "\n", status=503 if reasons else 200)

    async def rewrite_state(self, request: web.Request) -> web.Response:
        """Schedule a rewrite of the state topic.

        The content type must be JSON, to prevent cross-site request forgery: browsers send simple content types to other sites without
        a preflight request.
        """
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the content type should be application/json\n")
        if (wait := self._rewrite_allowed_at - time.monotonic()) > 0:
            headers = {"Retry-After": str(ceil(wait))}
            raise web.HTTPTooManyRequests(
                text="the last rewrite of the state topic was requested too recently\n", headers=headers
            )
        entities = self._source.rewrite_state_topic()
        if entities is None:
            raise web.HTTPConflict(text="there is no state topic: set kafka and kafka.topics.state\n")
        self._rewrite_allowed_at = time.monotonic() + REWRITE_SECONDS
        return web.json_response({"entities": entities}, status=202)

    async def overview(self, request: web.Request) -> web.Response:
        """Return the host overview as JSON. Include all values of the VM whose UUID is in the query parameter `vm`."""
        overview = await self._overview.build(request.query.get("vm", ""))
        return web.Response(body=encode_json(overview), content_type="application/json")
