"""Records before they are numbered: taken at once, sent on some at each turn of the loop, and in a flood given up by rule.

Reading goes before all else. Were all that there is to do for an event done as it is read, a flood would leave no turns for delivering; and
what will have to be dropped is dropped here, before it costs a number, its bytes and a place in the journal.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable

from agent.delivery.lane import Lane
from agent.delivery.losses import Drop, Losses
from agent.record import Record, Severity

TURN_RECORDS = 500
"""Records sent on at each turn of the loop: some 3 ms."""
FULL_TURN_RECORDS = 50
"""The same while the lane has more than its memory: what is delivered and journaled has to catch up."""
RECORD_BYTES = 1024
"""About what a record takes before it is bytes."""


class Intake:
    """One queue of records on their way to a lane, in order."""

    def __init__(self, send: Callable[[Record], None], lane: Lane, losses: Losses) -> None:
        """Have records sent on to the lane by `send`; those that are given up are counted in `losses`."""
        self._send = send
        self._lane = lane
        self._losses = losses
        self._most = lane.budget.memory // RECORD_BYTES
        self._waiting: deque[Record] = deque()
        self._turn: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, record: Record) -> None:
        """Take a record. Never waits."""
        self._waiting.append(record)
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._go_on)
        if len(self._waiting) > self._most:
            self._relieve()

    def flush(self) -> None:
        """Send all on: the agent is about to stop."""
        self._forward(len(self._waiting))

    def _go_on(self) -> None:
        self._turn = None
        try:
            self._forward(TURN_RECORDS if self._lane.has_room else FULL_TURN_RECORDS)
        finally:  # a record that cannot be sent on is a bug, and must not keep back all others
            if self._waiting:
                self._turn = asyncio.get_running_loop().call_soon(self._go_on)

    def _forward(self, most: int) -> None:
        waiting, send = self._waiting, self._send
        for _ in range(min(most, len(waiting))):
            send(waiting.popleft())

    def _relieve(self) -> None:
        """Send a part on at once where the lane has room; where it has none, give up what nobody would be woken for."""
        part = self._most // 4
        quotas = {} if self._lane.has_room else self._quotas(part)
        if sum(quotas.values()) < part // 2:  # or all would be looked through again for the next few
            self._forward(part)
            return
        kept, lost_ns = deque[Record](), list[int]()
        for record in self._waiting:
            if _is_mild(record) and quotas.get(record.vm.key):
                quotas[record.vm.key] -= 1
                lost_ns.append(record.time_ns)
            else:
                kept.append(record)
        self._waiting = kept
        self._losses.add(self._lane.name, Drop.FLOOD, len(lost_ns), min(lost_ns), max(lost_ns), time.monotonic())

    def _quotas(self, enough: int) -> dict[str, int]:
        """Return how many are to go of which VM: half of what those have here that have most, until it is enough."""
        counts = Counter(record.vm.key for record in self._waiting if _is_mild(record))
        quotas: dict[str, int] = {}
        for key, count in counts.most_common():
            if sum(quotas.values()) >= enough:
                break
            quotas[key] = (count + 1) // 2
        return quotas


def _is_mild(record: Record) -> bool:
    """Return whether a record is an event that nobody would be woken for."""
    return record.severity < Severity.WARNING and record.kind == "event"
