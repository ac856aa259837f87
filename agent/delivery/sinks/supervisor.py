"""Opens a sink, sends batches, and after a failure closes and reopens the sink with exponential backoff."""

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from agent.common.backoff import retry_delay
from agent.delivery.sinks.base import Sink, SinkError
from agent.delivery.waits_and_deadlines import DeliveryWaitsAndDeadlines
from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)


class SinkState(Enum):
    """The state of a sink's connection."""

    CLOSED = auto()
    """Not connected; the next attempt starts at once."""
    OPENING = auto()
    OPEN = auto()
    FAILED = auto()
    """Not connected; the next attempt starts after a wait."""


_Transitions = dict[SinkState, SinkState]

# Each table has the state transitions for one event. A KeyError is a bug: the event cannot occur in the sink's state.
OPEN_STARTED: Final[_Transitions] = {SinkState.CLOSED: SinkState.OPENING, SinkState.FAILED: SinkState.OPENING}
OPENED: Final[_Transitions] = {SinkState.OPENING: SinkState.OPEN}
OPEN_FAILED: Final[_Transitions] = {SinkState.OPENING: SinkState.FAILED}
OPEN_CANCELLED: Final[_Transitions] = {SinkState.OPENING: SinkState.CLOSED}
SEND_FAILED: Final[_Transitions] = {SinkState.OPEN: SinkState.FAILED}
SEND_INTERRUPTED: Final[_Transitions] = {SinkState.OPEN: SinkState.CLOSED}
STOPPED: Final[_Transitions] = dict.fromkeys(SinkState, SinkState.CLOSED)


class SinkSupervisor:
    """Opens a sink when there are records to send, and resends each batch until the sink accepts it. All queues share one supervisor."""

    def __init__(self, sink: Sink, timings: DeliveryWaitsAndDeadlines) -> None:
        self.sink = sink
        self.state = SinkState.CLOSED
        self.error: str | None = "not connected yet"
        """Why records are not delivered; None while the sink accepts records."""
        self.delivered = 0
        """Number of records delivered since the start."""
        self.reconnects = 0
        """Number of times since the start that an open sink failed and was closed."""
        self._timings = timings
        self._state_lock = asyncio.Lock()
        # Number of times that the sink was opened. `_close_failed` ignores failures of earlier connections.
        self._connection_number = 0
        self._failures = 0
        self._retry_at = float("-inf")

    @property
    def is_failing(self) -> bool:
        """True if the last attempt to open the sink or to send failed; False before the first attempt."""
        return self._failures > 0

    async def deliver(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Send a batch until the sink accepts the batch.

        Returns:
            The records that the sink will never accept. All other records are delivered.
        """
        while True:
            connection_number = await self._ensure_open()
            try:
                rejected = await self.sink.send(batch)
            except SinkError as error:
                await self._close_failed(error, connection_number)
                continue
            self.delivered += len(batch) - len(rejected)
            self._mark_working()
            return rejected

    async def open_without_records(self) -> None:
        """Open the sink before there are records to send, so that failures are reported early."""
        await self._ensure_open()
        self._mark_working()

    async def _ensure_open(self) -> int:
        """Try to open the sink until it is open; return the number of the connection."""
        async with self._state_lock:
            while self.state is not SinkState.OPEN:
                await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))
                await self._try_to_open()
            return self._connection_number

    async def _try_to_open(self) -> None:
        self.state = OPEN_STARTED[self.state]
        try:
            await self.sink.open()
        except SinkError as error:
            self.state = OPEN_FAILED[self.state]
            self._mark_failed(str(error))
        except BaseException:
            self.state = OPEN_CANCELLED[self.state]
            raise
        else:
            self.state = OPENED[self.state]
            self._connection_number += 1

    async def _close_failed(self, error: SinkError, connection_number: int) -> None:
        """Close the sink after a failed send, unless another queue has already closed the failed connection."""
        async with self._state_lock:
            if self.state is SinkState.OPEN and connection_number == self._connection_number:
                if error.retry_now:
                    self.state = SEND_INTERRUPTED[self.state]
                else:
                    self.state = SEND_FAILED[self.state]
                    self._mark_failed(str(error))
                self.reconnects += 1
                await self.sink.close()

    def _mark_working(self) -> None:
        if self.error is not None:
            _log.info("%s: records are delivered", self.sink.name)
        self.error, self._failures = None, 0

    def _mark_failed(self, error: str) -> None:
        if error != self.error:
            _log.warning("%s: %s; records wait until the sink works again", self.sink.name, error)
        self.error = error
        wait = retry_delay(self._failures, self._timings.first_retry, self._timings.max_retry)
        self._retry_at = time.monotonic() + wait
        self._failures += 1

    async def close(self) -> None:
        """Close the sink when the agent stops."""
        was_open = self.state is SinkState.OPEN
        self.state = STOPPED[self.state]
        if was_open:
            await self.sink.close()
