"""The HTTP endpoint: /metrics, /healthz, /readyz, the page and what feeds it. It only reads; it asks no QEMU."""

import asyncio
import gzip
import time
from importlib.resources import files
from typing import Protocol

import orjson
from aiohttp import web

from agent.exposition.prometheus import pieces
from agent.http.overview import Overview, OverviewCursor, OverviewSource
from agent.http.record_stream import RecordBroadcaster
from agent.http.sse import EventStreams

BREATH_SECONDS = 0.005
"""How long a scrape keeps the loop to itself: an event that comes meanwhile waits no longer."""
GZIP_LEVEL = 1
"""Labels repeat so much that the first level has nearly all there is to win."""

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

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""What the page is made of."""


class AgentView(OverviewSource, Protocol):
    """What the endpoint shows."""

    broadcaster: RecordBroadcaster

    def render_self_metrics(self) -> bytes:
        """Return the text of the agent's own series."""

    def unready_reasons(self) -> list[str]:
        """Return why the agent does not do all of its work, in words; empty when it does."""

    def hang_reason(self) -> str:
        """Return why this process had better be started anew, in words; empty when it lives."""

    def warnings(self) -> list[str]:
        """Return what a person should look at some time though all work is done."""

    def on_scrape(self, seconds: float) -> None:
        """Take note of how long a scrape took."""


def create_application(view: AgentView) -> web.Application:
    """Return the endpoint as an aiohttp application."""
    app = web.Application()
    app.on_response_prepare.append(_headers)
    overview = Overview(view)
    handlers, streams = _Handlers(view, overview), EventStreams(view.broadcaster, overview)
    app.router.add_get("/", handlers.page)
    app.router.add_get("/page/{name}", handlers.page)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/healthz", handlers.healthz)
    app.router.add_get("/readyz", handlers.readyz)
    app.router.add_get("/records", streams.records)
    app.router.add_get("/overview", handlers.overview)
    app.router.add_get("/overview/live", streams.overview)
    return app


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _page() -> dict[str, tuple[bytes, str]]:
    """Read the page's files, each with its type, by name."""
    found: dict[str, tuple[bytes, str]] = {}
    for file in files("agent.http").joinpath("page").iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            found[file.name] = file.read_bytes(), kind
    return found


class _Handlers:
    def __init__(self, view: AgentView, overview: Overview) -> None:
        self._sight = view
        self._overview = overview
        self._page = _page()

    async def metrics(self, request: web.Request) -> web.Response:
        start = breath = time.perf_counter()
        texts = []
        for text in pieces(self._sight.snapshot):
            texts.append(text.encode())
            if time.perf_counter() - breath > BREATH_SECONDS:
                await asyncio.sleep(0)
                breath = time.perf_counter()
        body = b"".join((*texts, self._sight.render_self_metrics()))
        headers = {"Content-Type": TEXT_FORMAT, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._sight.on_scrape(time.perf_counter() - start)
        return web.Response(body=body, headers=headers)

    async def healthz(self, _: web.Request) -> web.Response:
        why = self._sight.hang_reason()  # who reads the answer has it from the loop that does all the work
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        troubles = self._sight.unready_reasons()
        lines = [*(troubles or ["ready"]), *self._sight.warnings()]
        return web.Response(text="\n".join(lines) + "\n", status=503 if troubles else 200)

    async def page(self, request: web.Request) -> web.Response:
        found = self._page.get(request.match_info.get("name", "index.html"))
        if found is None:
            raise web.HTTPNotFound
        body, kind = found
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def overview(self, request: web.Request) -> web.Response:
        """This host, whole, as JSON; with all figures of one `vm`, by UUID."""
        news = OverviewCursor(self._overview).changes(request.query.get("vm", ""))
        return web.Response(body=orjson.dumps(news), content_type="application/json")
