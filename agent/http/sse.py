"""Server-sent events: a stream of records, and a stream of changes of the host's state for the page."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from agent.http.page_stream import PageChangeTracker, SharedPageState
from agent.http.record_stream import MAX_STREAMS, RecordBroadcaster, StreamLimit, Subscriber, TooManySubscribersError
from agent.model.json_encoding import encode_json
from agent.model.record import Severity

_HEADERS = {"Content-Type": "text/event-stream"}


@dataclass(frozen=True, slots=True)
class SseSendIntervals:
    """Intervals of the record stream and the overview stream.

    Attributes:
        keepalive_seconds: interval of keepalive comments on an idle stream, which detect a disconnected client.
        overview_seconds: interval at which changes of the host's state are sent.
    """

    keepalive_seconds: float = 15.0
    overview_seconds: float = 1.0


DEFAULT_INTERVALS = SseSendIntervals()


class SseHandlers:
    """Request handlers of the record stream and the overview stream."""

    def __init__(
        self, broadcaster: RecordBroadcaster, state: SharedPageState, timing: SseSendIntervals = DEFAULT_INTERVALS
    ) -> None:
        self._broadcaster = broadcaster
        self._state = state
        self._timing = timing
        self._overview_limit = StreamLimit(MAX_STREAMS)

    async def records(self, request: web.Request) -> web.StreamResponse:
        """Stream records. All query parameters are optional.

        `vm`: name or UUID of a VM. `type`: prefixes of record types, separated by commas. `severity`: the lowest severity.
        `recent`: send recent records first, without samples. `after`: send only the recent records after the record with this id. The
        header `Last-Event-ID` is an alternative to `after`.
        """
        query = request.query
        try:
            severity = Severity[query.get("severity", "debug").upper()]
        except KeyError:
            raise web.HTTPBadRequest(
                text=f"severity should be one of {', '.join(s.label for s in Severity)}\n"
            ) from None
        subscriber = Subscriber(
            vm=query.get("vm", ""), types=tuple(query.get("type", "").split(",")), severity=severity
        )
        after = query.get("after", request.headers.get("Last-Event-ID", ""))
        try:
            with self._broadcaster.subscribe(subscriber, recent="recent" in query, after=after):
                return await self._send_records(request, subscriber)
        except TooManySubscribersError as error:
            raise _unavailable_response(error) from None

    async def overview(self, request: web.Request) -> web.StreamResponse:
        """Stream the changes of the host's state to the page. All query parameters are optional.

        `vm`: a UUID; send all values of this VM in place of the rows of all VMs. `monitors`: also send the monitors that are up.
        """
        cursor = PageChangeTracker(self._state, request.query.get("vm", ""), all_monitors="monitors" in request.query)
        try:
            with self._overview_limit.acquire():
                return await self._send_changes(request, cursor)
        except TooManySubscribersError as error:
            raise _unavailable_response(error) from None

    async def _send_records(self, request: web.Request, subscriber: Subscriber) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        while True:
            try:
                async with asyncio.timeout(self._timing.keepalive_seconds):
                    encoded = await subscriber.get()
            except TimeoutError:
                await response.write(b": keepalive\n\n")
                continue
            if subscriber.missed:
                missed, subscriber.missed = subscriber.missed, 0
                await response.write(b"event: missed\n%b" % _format_message({"records": missed}))
            await response.write(b"id: %b\ndata: %b\n\n" % (encoded.id.encode(), encoded.body))

    async def _send_changes(self, request: web.Request, cursor: PageChangeTracker) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        sent_at = time.monotonic()
        while True:
            changes = await cursor.next_changes()
            if changes is not None:
                await response.write(_format_message(changes))
                sent_at = time.monotonic()
            elif time.monotonic() - sent_at >= self._timing.keepalive_seconds:
                await response.write(b": keepalive\n\n")
                sent_at = time.monotonic()
            await asyncio.sleep(self._timing.overview_seconds)


def _unavailable_response(error: TooManySubscribersError) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=f"{error}\n")


def _format_message(value: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(value)
