"""Server-sent events: records as they come, and this host's overview as it changes."""

import asyncio
import time
from collections.abc import Mapping

import orjson
from aiohttp import web

from agent.http.overview import Overview, OverviewCursor
from agent.http.record_stream import MAX_STREAMS, RecordBroadcaster, StreamLimit, Subscriber, TooManySubscribersError
from agent.model.record import Severity

QUIET_SECONDS = 15.0
"""How often a quiet stream is given a comment, so that a reader who left is noticed."""

TURN_SECONDS = 1.0
"""How often it is looked whether the overview changed."""

_HEADERS = {"Content-Type": "text/event-stream"}


class EventStreams:
    """The handlers of both streams."""

    def __init__(self, live: RecordBroadcaster, overview: Overview) -> None:
        self._live = live
        self._overview = overview
        self._seats = StreamLimit(MAX_STREAMS)

    async def records(self, request: web.Request) -> web.StreamResponse:
        """Records of one `vm`, of some `type`s (their beginnings, with commas between), of a `severity` or worse.

        With `recent`, those of late come first that are no samples; of these only the ones `after` an id, where it is given.
        """
        query = request.query
        try:
            severity = Severity[query.get("severity", "debug").upper()]
        except KeyError:
            raise web.HTTPBadRequest(text=f"severity is one of {', '.join(s.label for s in Severity)}\n") from None
        onlooker = Subscriber(vm=query.get("vm", ""), types=tuple(query.get("type", "").split(",")), severity=severity)
        after = query.get("after", request.headers.get("Last-Event-ID", ""))
        try:
            with self._live.subscribe(onlooker, recent="recent" in query, after=after):
                return await _records(request, onlooker)
        except TooManySubscribersError as error:
            raise _full(error) from None

    async def overview(self, request: web.Request) -> web.StreamResponse:
        """What changed of the overview, each second; with all figures of one `vm`, by UUID."""
        onlook = OverviewCursor(self._overview)
        try:
            with self._seats.seat():
                return await _overview(request, onlook)
        except TooManySubscribersError as error:
            raise _full(error) from None


def _full(error: TooManySubscribersError) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=f"{error}\n")


async def _records(request: web.Request, onlooker: Subscriber) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
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
            await response.write(b"event: missed\n%b" % _data({"records": missed}))
        await response.write(b"id: %b\ndata: %b\n\n" % (stamped.id.encode(), stamped.body))


async def _overview(request: web.Request, onlook: OverviewCursor) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    told_at = time.monotonic()
    while True:
        news = onlook.changes(request.query.get("vm", ""))
        if news is not None:
            await response.write(_data(news))
        elif time.monotonic() - told_at >= QUIET_SECONDS:
            await response.write(b": quiet\n\n")
        else:
            await asyncio.sleep(TURN_SECONDS)
            continue
        told_at = time.monotonic()


def _data(value: Mapping[str, object]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)
