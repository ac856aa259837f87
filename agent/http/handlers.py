"""Request handlers of the endpoint: /metrics, /healthz, /readyz, /overview, the page and /resync.

They send no command to QEMU. All only read, except /resync, which has the agent write the state topic again.
"""

import asyncio
import gzip
import time
from importlib.resources import files
from math import ceil
from typing import Protocol

from aiohttp import web

from agent.exposition.prometheus import render_chunks
from agent.http.overview import Overview, OverviewCursor, OverviewSource
from agent.http.record_stream import RecordBroadcaster
from agent.http.sse import DEFAULT_TIMING, EventStreams, StreamTiming
from agent.model.json_encoding import encode_json

MAX_BLOCKING_SECONDS = 0.005
"""Maximum time that a scrape blocks the event loop. Events wait meanwhile."""
GZIP_LEVEL = 1
"""gzip's lowest compression level. It compresses nearly as well as the highest, because labels repeat."""

RESYNC_SECONDS = 10.0
"""Shortest time between two resyncs of the state topic."""

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
    "Cache-Control": "no-store",
}

CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Content types of the page's files, by suffix. Files with other suffixes are not served."""


class AgentView(OverviewSource, Protocol):
    """The state of the agent that the endpoint reads."""

    broadcaster: RecordBroadcaster

    def render_self_metrics(self) -> bytes:
        """Return the agent's metrics about itself in Prometheus' text format."""

    def unready_reasons(self) -> list[str]:
        """Return why the agent is not ready, one text for each reason; empty if it is ready."""

    def hang_reason(self) -> str:
        """Return why the agent makes no progress and should be restarted; empty if it makes progress."""

    def warnings(self) -> list[str]:
        """Return problems that need attention although the agent is ready."""

    def resync(self) -> int | None:
        """Write the state topic again. Return the number of states; None if there is no such topic."""

    def on_scrape(self, seconds: float) -> None:
        """Record the duration of a scrape of /metrics, in seconds."""


def create_application(view: AgentView, timing: StreamTiming = DEFAULT_TIMING) -> web.Application:
    """Return the endpoint as an aiohttp application, without access control."""
    app = web.Application()
    app.on_response_prepare.append(_set_headers)
    overview = Overview(view)
    handlers, streams = _RequestHandlers(view, overview), EventStreams(view.broadcaster, overview, timing)
    app.router.add_get("/", handlers.page)
    app.router.add_get("/page/{name}", handlers.page)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/healthz", handlers.healthz)
    app.router.add_get("/readyz", handlers.readyz)
    app.router.add_post("/resync", handlers.resync)
    app.router.add_get("/records", streams.records)
    app.router.add_get("/overview", handlers.overview)
    app.router.add_get("/overview/live", streams.overview)
    return app


async def _set_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _read_page_files() -> dict[str, tuple[bytes, str]]:
    """Return the page's files by name, each with its content type."""
    pages: dict[str, tuple[bytes, str]] = {}
    for file in files("agent.http").joinpath("page").iterdir():
        content_type = CONTENT_TYPES.get(file.name[file.name.rfind(".") :])
        if content_type is not None:
            pages[file.name] = file.read_bytes(), content_type
    return pages


class _RequestHandlers:
    def __init__(self, view: AgentView, overview: Overview) -> None:
        self._view = view
        self._overview = overview
        self._page_files = _read_page_files()
        self._resync_allowed_at = float("-inf")

    async def metrics(self, request: web.Request) -> web.Response:
        start = resumed = time.perf_counter()
        chunks = []
        for chunk in render_chunks(self._view.snapshot):
            chunks.append(chunk.encode())
            if time.perf_counter() - resumed > MAX_BLOCKING_SECONDS:
                await asyncio.sleep(0)
                resumed = time.perf_counter()
        body = b"".join((*chunks, self._view.render_self_metrics()))
        headers = {"Content-Type": TEXT_FORMAT, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._view.on_scrape(time.perf_counter() - start)
        return web.Response(body=body, headers=headers)

    async def healthz(self, _: web.Request) -> web.Response:
        reason = self._view.hang_reason()  # a response of any status shows that the event loop runs
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        reasons = self._view.unready_reasons()
        lines = [*(reasons or ["ready"]), *self._view.warnings()]
        return web.Response(text="\n".join(lines) + "\n", status=503 if reasons else 200)

    async def page(self, request: web.Request) -> web.Response:
        file = self._page_files.get(request.match_info.get("name", "index.html"))
        if file is None:
            raise web.HTTPNotFound
        body, content_type = file
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    async def resync(self, request: web.Request) -> web.Response:
        """Have the agent write the state topic again.

        A page of another site can send a request of a simple content type without the user's knowledge, so JSON is required.
        """
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the content type should be application/json\n")
        if (wait := self._resync_allowed_at - time.monotonic()) > 0:
            headers = {"Retry-After": str(ceil(wait))}
            raise web.HTTPTooManyRequests(text="the last resync was requested too recently\n", headers=headers)
        entities = self._view.resync()
        if entities is None:
            raise web.HTTPConflict(text="there is no state topic: set kafka and kafka.topics.state\n")
        self._resync_allowed_at = time.monotonic() + RESYNC_SECONDS
        return web.json_response({"entities": entities}, status=202)

    async def overview(self, request: web.Request) -> web.Response:
        """Return the host overview as JSON. The query parameter `vm` is the UUID of a VM whose values are all added."""
        changes = OverviewCursor(self._overview).changes(request.query.get("vm", ""))
        return web.Response(body=encode_json(changes or {}), content_type="application/json")
