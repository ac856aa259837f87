"""Where records wait until they are delivered, within a byte budget."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum

from agent.record import Stamped


class Drop(StrEnum):
    """Why a record was not delivered."""

    BUDGET = "budget"
    """The lane's budget was full; the oldest went."""
    REFUSED = "refused"
    """The sink will not have this one, ever."""
    STOPPED = "stopped"
    """The agent stopped before it could be delivered."""


OnDrop = Callable[[Drop, Sequence[Stamped]], None]
"""Takes note of records that are lost."""


class MemoryLane:
    """A queue in memory. `put` never waits; past the budget the oldest go."""

    def __init__(self, name: str, budget_bytes: int, on_drop: OnDrop) -> None:
        self.name = name
        self.bytes = 0
        self._budget = budget_bytes
        self._on_drop = on_drop
        self._waiting: deque[Stamped] = deque()
        self._flying: list[Stamped] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flying)

    def put(self, record: Stamped) -> None:
        """Take a record; room is made for it by dropping the oldest that are not being sent at this moment."""
        self._waiting.append(record)
        self.bytes += len(record.body)
        if self.bytes > self._budget:
            self._make_room()
        self._some.set()
        self._none.clear()

    def _make_room(self) -> None:
        dropped = []
        while self.bytes > self._budget and self._waiting:
            dropped.append(self._waiting.popleft())
            self.bytes -= len(dropped[-1].body)
        if dropped:
            self._on_drop(Drop.BUDGET, dropped)

    async def take(self, most: int, most_bytes: int) -> Sequence[Stamped]:
        """Wait for records and return the oldest, in order; the same ones until `done` is called."""
        while not self._flying:
            while not self._waiting:
                self._some.clear()
                await self._some.wait()
            size = 0
            while (
                self._waiting
                and len(self._flying) < most
                and (not self._flying or size + len(self._waiting[0].body) <= most_bytes)
            ):
                size += len(self._waiting[0].body)
                self._flying.append(self._waiting.popleft())
        return self._flying

    def done(self) -> None:
        """Let go what `take` returned: it was delivered."""
        self.bytes -= sum(len(record.body) for record in self._flying)
        self._flying = []
        if not self._waiting:
            self._none.set()

    async def drained(self) -> None:
        """Wait until nothing is left here."""
        await self._none.wait()

    def abandon(self) -> None:
        """Count what is left as lost."""
        left = [*self._flying, *self._waiting]
        self._flying, self.bytes = [], 0
        self._waiting.clear()
        self._none.set()
        if left:
            self._on_drop(Drop.STOPPED, left)
