"""What a sink is, and the pump that moves a lane's records into one."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from agent.backoff import back_off
from agent.delivery.lane import Drop, MemoryLane, OnDrop
from agent.record import Stamped

_log = logging.getLogger(__name__)

BATCH_RECORDS = 2000
BATCH_BYTES = 1024 * 1024


class SinkError(Exception):
    """A sink cannot take anything now; trying again later may help. The text is for people."""


class Sink(Protocol):
    """Where records go."""

    name: str

    async def open(self) -> None:
        """Make ready to send.

        Raises:
            SinkError: it cannot be reached or will not have us.
        """

    async def send(self, batch: Sequence[Stamped]) -> Sequence[Stamped]:
        """Deliver a batch; when it returns, the records are where they should be. Return those that it refuses for themselves.

        Raises:
            SinkError: not all of them are known to be delivered; sending the same batch again may deliver some twice.
        """

    async def close(self) -> None:
        """Let go, within a deadline of its own."""


class Outlet:
    """A sink that is kept open: opened again, with waits that grow, whenever it fails."""

    def __init__(self, sink: Sink, on_drop: OnDrop) -> None:
        self.sink = sink
        self.trouble: str | None = "not connected yet"
        """Why nothing is being delivered, or None."""
        self.delivered = 0
        self._on_drop = on_drop
        self._lock = asyncio.Lock()
        self._is_open = False
        self._failures = 0

    async def deliver(self, batch: Sequence[Stamped]) -> None:
        """Send a batch, as often as it takes."""
        while True:
            try:
                await self._ready()
                refused = await self.sink.send(batch)
            except SinkError as error:
                await self._failed(str(error))
            else:
                if refused:
                    self._on_drop(Drop.REFUSED, refused)
                self.delivered += len(batch) - len(refused)
                self._works()
                return

    async def _ready(self) -> None:
        async with self._lock:
            if not self._is_open:
                await self.sink.open()
                self._is_open = True

    def _works(self) -> None:
        if self.trouble is not None:
            _log.info("delivering to %s", self.sink.name)
        self.trouble, self._failures = None, 0

    async def _failed(self, trouble: str) -> None:
        async with self._lock:
            if trouble != self.trouble:
                _log.warning("cannot deliver to %s: %s; records wait", self.sink.name, trouble)
            self.trouble = trouble
            if self._is_open:
                self._is_open = False
                await self.sink.close()
        self._failures += 1
        await asyncio.sleep(back_off(self._failures, 0.25, 15.0))

    async def close(self) -> None:
        """Let the sink go."""
        async with self._lock:
            if self._is_open:
                self._is_open = False
                await self.sink.close()


async def pump(lane: MemoryLane, outlet: Outlet) -> None:
    """Move a lane's records out, in order, until cancelled."""
    while True:
        await outlet.deliver(await lane.take(BATCH_RECORDS, BATCH_BYTES))
        lane.done()
