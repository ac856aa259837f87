"""What a sink is, and the pump that moves a lane's records into one."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from agent.common.backoff import back_off
from agent.delivery.entry import Entry
from agent.delivery.journal.writer import Journal
from agent.delivery.queue import RecordQueue

_log = logging.getLogger(__name__)

BATCH_RECORDS = 8000
BATCH_BYTES = 3 * 1024 * 1024
"""What is under way at once, at most; and no more than a quarter of what a lane may have in memory."""

FIRST_RETRY_SECONDS = 0.25
MOST_RETRY_SECONDS = 15.0


class SinkError(Exception):
    """A sink cannot take anything now; opening it anew later may help, or with `at_once` will. The text is for people."""

    def __init__(self, text: str, *, at_once: bool = False) -> None:
        super().__init__(text)
        self.at_once = at_once


class Sink(Protocol):
    """Where records go."""

    name: str

    async def open(self) -> None:
        """Make ready to send.

        Raises:
            SinkError: it cannot be reached or will not have us.
        """

    async def send(self, batch: Sequence[Entry]) -> Sequence[Entry]:
        """Deliver a batch; when it returns, the records are where they should be. Return those that it refuses for themselves.

        Raises:
            SinkError: not all of them are known to be delivered; sending the same batch again may deliver some twice.
        """

    async def close(self) -> None:
        """Let go, within a deadline of its own; never raises."""


class SinkSupervisor:
    """A sink that is kept open: closed and opened again, with waits that grow, whenever it fails."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.trouble: str | None = "not connected yet"
        """Why nothing is being delivered, or None."""
        self.delivered = 0
        self.rebuilt = 0
        """How often a sink that had been open was opened anew."""
        self._turn = asyncio.Lock()
        self._life = 0  # counts the sink's openings: a failure of an earlier life must not end this one
        self._is_open = False
        self._failures = 0
        self._retry_at = float("-inf")

    @property
    def fails(self) -> bool:
        """Whether the last attempt failed; not that none was made yet."""
        return self._failures > 0

    async def deliver(self, batch: Sequence[Entry]) -> Sequence[Entry]:
        """Send a batch, as often as it takes; return the entries that were refused for themselves."""
        while True:
            life = await self._opened()
            try:
                refused = await self.sink.send(batch)
            except SinkError as error:
                await self._broke(error, life)
                continue
            self.delivered += len(batch) - len(refused)
            self._works()
            return refused

    async def keep_open(self) -> None:
        """Open the sink before there is anything to send, so that trouble is known early."""
        await self._opened()
        self._works()

    async def _opened(self) -> int:
        """Open the sink where it is not, as often as it takes, one after the other for all lanes; return which life of its this is."""
        async with self._turn:
            while not self._is_open:
                await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))
                try:
                    await self.sink.open()
                except SinkError as error:
                    self._failed(str(error))
                else:
                    self._is_open = True
                    self._life += 1
            return self._life

    async def _broke(self, error: SinkError, life: int) -> None:
        """Close a sink that failed, unless it is for another lane's failure that it did."""
        async with self._turn:
            if self._is_open and life == self._life:
                if not error.at_once:
                    self._failed(str(error))
                self._is_open = False
                self.rebuilt += 1
                await self.sink.close()

    def _works(self) -> None:
        if self.trouble is not None:
            _log.info("delivering to %s", self.sink.name)
        self.trouble, self._failures = None, 0

    def _failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.warning("cannot deliver to %s: %s; records wait", self.sink.name, trouble)
        self.trouble = trouble
        self._retry_at = time.monotonic() + back_off(self._failures, FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS)
        self._failures += 1

    async def close(self) -> None:
        """Let the sink go."""
        if self._is_open:
            self._is_open = False
            await self.sink.close()


async def pump(
    lane: RecordQueue,
    outlet: SinkSupervisor,
    journal: Journal | None,
    landed: Callable[[RecordQueue, Sequence[Entry]], None],
) -> None:
    """Move a lane's records out, in order, until cancelled; `landed` is told after each batch which of it were refused."""
    most_bytes = min(BATCH_BYTES, lane.budget.memory // 4)
    while True:
        await lane.some()
        await lane.gathered(BATCH_RECORDS, most_bytes)
        if not lane.flying and lane.has_backlog and journal is not None:
            await journal.fetch(lane, BATCH_RECORDS, most_bytes)
        elif not lane.flying:
            lane.fly_from_memory(BATCH_RECORDS, most_bytes)
        if lane.flying:
            lane.sent_at = time.monotonic()
            refused = await outlet.deliver(lane.flying)
            landed(lane, refused)
            lane.landed()
