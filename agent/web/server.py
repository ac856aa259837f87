"""The HTTP endpoint: /metrics, /healthz, /readyz, /records (server-sent events) and a landing page. It only reads; it asks no QEMU."""

import asyncio
import html
import time
from importlib.resources import files
from string import Template
from typing import Protocol

import orjson
from aiohttp import web

from agent import __version__
from agent.record import Severity
from agent.web.exposition import render
from agent.web.live import Live, Onlooker, TooManyError
from agent.web.snapshot import Snapshot

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Server": "qmp-agent",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Sight(Protocol):
    """What the endpoint shows."""

    snapshot: Snapshot
    live: Live

    def own_metrics(self) -> bytes:
        """Return the text of the agent's own series."""

    def troubles(self) -> list[str]:
        """Return why the agent does not do all of its work, in words; empty when it does."""

    def notes(self) -> list[str]:
        """Return what a person should look at some time though all work is done."""

    def scraped(self, seconds: float) -> None:
        """Take note of how long a scrape took."""


def application(sight: Sight) -> web.Application:
    """Return the endpoint as an aiohttp application."""
    app = web.Application()
    app.on_response_prepare.append(_headers)
    handlers = _Handlers(sight)
    app.router.add_get("/", handlers.landing)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/healthz", handlers.healthz)
    app.router.add_get("/readyz", handlers.readyz)
    app.router.add_get("/records", handlers.records)
    app.router.add_get("/style.css", handlers.style)
    return app


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


class _Handlers:
    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    async def metrics(self, _: web.Request) -> web.Response:
        start = time.perf_counter()
        body = render(self._sight.snapshot).encode() + self._sight.own_metrics()
        self._sight.scraped(time.perf_counter() - start)
        return web.Response(body=body, headers={"Content-Type": TEXT_FORMAT})

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # whoever reads this has been answered by the loop that does all the work

    async def readyz(self, _: web.Request) -> web.Response:
        troubles = self._sight.troubles()
        lines = [*(troubles or ["ready"]), *self._sight.notes()]
        return web.Response(text="\n".join(lines) + "\n", status=503 if troubles else 200)

    async def style(self, _: web.Request) -> web.Response:
        return web.Response(
            text=files("agent.web").joinpath("page/style.css").read_text("utf-8"), content_type="text/css"
        )

    async def landing(self, _: web.Request) -> web.Response:
        page = files("agent.web").joinpath("page/landing.html").read_text("utf-8")
        rows = [
            (
                status.monitor.name,
                status.state.value,
                status.vm.name if status.vm else "",
                status.vm.uuid if status.vm else "",
                status.reason,
            )
            for status in self._sight.snapshot.monitors.values()
        ]
        table = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in sorted(rows))
        troubles = "".join(
            f"<li>{html.escape(trouble)}</li>" for trouble in (*self._sight.troubles(), *self._sight.notes())
        )
        text = Template(page).substitute(version=__version__, rows=table, troubles=troubles)
        return web.Response(text=text, content_type="text/html")

    async def records(self, request: web.Request) -> web.StreamResponse:
        """Records as server-sent events, those of one `vm`, of a `type` (its beginning), of a `severity` or worse."""
        try:
            severity = Severity[request.query.get("severity", "debug").upper()]
        except KeyError:
            raise web.HTTPBadRequest(text=f"severity is one of {', '.join(s.label for s in Severity)}\n") from None
        onlooker = Onlooker(
            vm=request.query.get("vm", ""), type_prefix=request.query.get("type", ""), severity=severity
        )
        try:
            with self._sight.live.join(onlooker):
                return await _stream(request, onlooker)
        except TooManyError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from None


QUIET_SECONDS = 15.0
"""How often a quiet stream is given a comment, so that a reader who left is noticed."""


async def _stream(request: web.Request, onlooker: Onlooker) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                stamped = await onlooker.get()
        except TimeoutError:
            await response.write(b": quiet\n\n")
            continue
        if onlooker.missed:
            missed, onlooker.missed = onlooker.missed, 0
            await response.write(b"event: missed\ndata: %b\n\n" % orjson.dumps({"records": missed}))
        await response.write(b"id: %b\ndata: %b\n\n" % (stamped.id.encode(), stamped.body))
