"""Where records wait until they are delivered: the newest in memory, what does not fit there in the journal, with a budget for each.

A lane is a queue. Its front is what is being sent (`flying`); then what is only on disk (the backlog); then what is in memory (the tail).
A durable lane has every record journaled; another only what its tail cannot hold. Nothing here waits for a disk: the journal comes and
asks what there is to save, and says what it saved.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from agent.delivery.drops import DROP_REPORT_TYPE, DropLedger, DropReason
from agent.delivery.entry import Entry, QueueContents, QueueSize, size_of

SAVE_ENTRIES = 20_000
"""Entries in one transaction: some 0.2 s, so that a reading never waits long behind it; and all that a busy loop may take in at once."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a lane may hold, in bytes: in memory and on disk."""

    memory: int
    disk: int


class RecordQueue:
    """One queue of records.

    From its front to its end, each entry is in one of these:

    - `flying`: being sent. In memory; on disk too, where its `row` says.
    - the backlog: on disk alone, rows behind `backlog_from` up to `backlog_to`.
    - the tail: in memory. Those of it that the journal is to have are in `_unsaved` until `to_save` takes them, in `_writing` until
      `saved` or `not_saved`, and have a `row` from then on.

    An entry is `done` when it was delivered or given up; its row goes with the next commit.
    """

    def __init__(
        self, name: str, budget: QueueLimits, losses: DropLedger, *, durable: bool, gather_seconds: float = 0.0
    ) -> None:
        self.name = name
        self.gather_seconds = gather_seconds
        """How long a record may wait for others, so that a batch has several."""
        self.budget = budget
        self.disk = QueueSize()
        """What the journal has of this lane, delivered entries that are not deleted yet included."""
        self.backlog = QueueSize()
        """What waits and is only on disk."""
        self.journaled = 0
        """Entries written to the journal since the start."""
        self.has_journal = False
        """Whether the journal works; where it does not, memory is all there is."""
        self.dirty = asyncio.Event()
        """Set when there is something to save or to delete."""
        self.flying: Sequence[Entry] = ()
        """What is being sent."""
        self.sent_at = 0.0
        """Since when, by time.monotonic."""
        self.backlog_from = 0
        """The row behind which the backlog begins."""
        self.backlog_to = 0
        """The row with which it ends."""
        self.left_to = 0
        """Rows up to this one are left for the next start."""
        self._losses = losses
        self.durable = durable
        """Whether every record is journaled, not only what memory cannot hold."""
        self._tail: deque[Entry] = deque()
        self._tail_bytes = 0
        self._unsaved: deque[Entry] = deque()  # to be written, in order: the oldest in memory that the journal has not
        self._writing: list[Entry] = []
        self._done_row = 0  # rows up to this one are delivered
        self._deletable = QueueSize()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._ending = asyncio.Event()

    def __len__(self) -> int:
        return len(self.flying) + self.backlog.records + len(self._tail)

    @property
    def memory_bytes(self) -> int:
        """Bytes of entries in memory."""
        return self._tail_bytes + size_of(self.flying)

    def lag_seconds(self) -> float:
        """Return the age of the oldest record that is being sent; 0 where none is."""
        return max(0.0, time.time() - self.flying[0].time_ns / 1e9) if self.flying else 0.0

    def silent_seconds(self, now: float) -> float:
        """Return for how long what is being sent has been on its way, whatever the clock on the wall says; 0 where nothing is."""
        return now - self.sent_at if self.flying else 0.0

    @property
    def has_backlog(self) -> bool:
        """Whether entries wait that are only on disk."""
        return self.backlog_to > self.backlog_from

    # In.

    def put(self, entry: Entry) -> None:
        """Take an entry at the queue's end. Never waits."""
        self._tail.append(entry)
        self._tail_bytes += entry.size
        if self.durable:
            self._save(entry)
        if self._tail_bytes > self.budget.memory:
            self._relieve()
            self._look()
        elif len(self._tail) == 1:  # behind another it changes nothing for those who wait
            self._look()

    def _look(self) -> None:
        """Tell those who wait whether there is something."""
        if self.flying or self.has_backlog or self._tail:
            self._some.set()
            self._none.clear()
        else:
            self._none.set()

    def _save(self, entry: Entry) -> None:
        self._unsaved.append(entry)
        if self.has_journal:
            self.dirty.set()

    def save_all(self) -> None:
        """Have everything in memory journaled, in a lane that is not durable too: the agent is about to stop."""
        memory = (*self.flying, *self._tail)
        self._unsaved = deque(entry for entry in memory if entry.row is None and not (entry.writing or entry.done))

    def _relieve(self) -> None:
        """Bring the tail back under its budget: by what is on disk already, by having more put there, or by dropping."""
        while self._tail_bytes > self.budget.memory and self._tail and self._tail[0].row is not None:
            entry = self._pop_tail()
            assert entry.row is not None
            if not self.has_backlog:
                self.backlog_from = entry.row - 1
            self.backlog_to = entry.row
            self.backlog.add((entry,))
        if (
            self.has_journal
            and not self.durable
            and not self._unsaved
            and not self._writing
            and self._tail_bytes > self.budget.memory
        ):
            # What flies goes first, or it would come behind the backlog after a restart.
            for entry in (*self.flying, *islice(self._tail, len(self._tail) // 2 + 1)):
                if entry.row is None:
                    self._save(entry)
        # A journal that works gets time to catch up; one that hangs must not make the agent grow.
        most = 2 * self.budget.memory if self.has_journal else self.budget.memory
        if self._tail_bytes > most:
            self._drop(
                self._tail_bytes - most + self.budget.memory // 16
            )  # some more, so that it is not for each entry anew

    def _pop_tail(self) -> Entry:
        entry = self._tail.popleft()
        self._tail_bytes -= entry.size
        return entry

    def _drop(self, size: int) -> None:
        """Give up the oldest entries in memory that are not being written at this moment."""
        kept = []
        while self._tail and (self._tail[0].writing or self._tail[0].row is not None):
            kept.append(self._tail.popleft())
        dropped = []
        while size > 0 and self._tail:
            dropped.append(self._pop_tail())
            size -= dropped[-1].size
        self._tail.extendleft(reversed(kept))
        for entry in dropped:
            entry.done = True
        self._unsaved = deque(entry for entry in self._unsaved if not entry.done)
        self._lost(DropReason.JOURNAL_UNAVAILABLE if self.durable else DropReason.QUEUE_FULL, dropped)

    def _lost(self, reason: DropReason, entries: Sequence[Entry]) -> None:
        self._losses.add_entries(self.name, reason, entries, time.monotonic())
        self._losses.untell(entry.body for entry in entries if entry.type == DROP_REPORT_TYPE)

    def _skip_done(self) -> None:
        while self._unsaved and self._unsaved[0].done:
            self._unsaved.popleft()

    # Out.

    def _held(self, entry: Entry) -> bool:
        """Whether an entry has to be journaled before it is sent, and is not yet."""
        return entry.note is not None and entry.row is None and self.has_journal

    async def some(self) -> None:
        """Wait until something is to be delivered."""
        while not (self.flying or self.has_backlog or (self._tail and not self._held(self._tail[0]))):
            self._some.clear()
            await self._some.wait()

    async def gathered(self, enough: int, enough_bytes: int) -> None:
        """Give others so long to come as is allowed, unless there are enough already, or the agent ends."""
        if self.gather_seconds and len(self) < enough and self._tail_bytes < enough_bytes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.gather_seconds):
                    await self._ending.wait()

    def end(self) -> None:
        """Let nothing wait for others any more."""
        self._ending.set()

    def fly_from_memory(self, most: int, most_bytes: int) -> None:
        """Let the oldest entries of the tail fly; only where there is no backlog."""
        assert not self.flying
        assert not self.has_backlog
        flying: list[Entry] = []
        size = 0
        for entry in islice(self._tail, most):
            size += len(entry.body)
            if (flying and size > most_bytes) or self._held(entry):
                break
            flying.append(entry)
        for _ in flying:
            self._tail.popleft()
        self._tail_bytes -= size_of(flying)
        self.flying = flying

    def fly_from_disk(self, entries: Sequence[Entry], bad: int, last: int) -> None:
        """Let what was read from the backlog fly: the sound entries, how many were not sound, and the last row looked at."""
        assert not self.flying
        if bad:
            self._losses.add(self.name, DropReason.CORRUPT, bad, 0, 0, time.monotonic())
        # Rows behind the backlog are in memory too, and fly from there.
        self.flying = [entry for entry in entries if entry.row is not None and entry.row <= self.backlog_to]
        self.backlog.take(len(self.flying) + bad, size_of(self.flying))
        at_end = last <= self.backlog_from or last >= self.backlog_to
        self.backlog_from = self.backlog_to if at_end else last
        if at_end:
            self._losses.add(self.name, DropReason.CORRUPT, self.backlog.records, 0, 0, time.monotonic())
            self.backlog = QueueSize()
        self._look()

    def landed(self) -> None:
        """Let go of what flew: it was delivered, or refused for good."""
        for entry in self.flying:
            entry.done = True
        self._delivered([entry for entry in self.flying if entry.row is not None])
        self.flying = ()
        self._skip_done()
        self._look()

    def _delivered(self, on_disk: Sequence[Entry]) -> None:
        if on_disk:
            self._done_row = max(self._done_row, *(entry.row or 0 for entry in on_disk))
            self._deletable.add(on_disk)
            self.dirty.set()

    async def drained(self) -> None:
        """Wait until nothing is left to be delivered."""
        await self._none.wait()

    def abandon(self) -> None:
        """Count as lost what is neither delivered nor journaled: the agent stops."""
        lost = [entry for entry in (*self.flying, *self._tail) if entry.row is None and not entry.done]
        for entry in lost:
            entry.done = True
        self._lost(DropReason.SHUTDOWN, lost)

    # The journal's side.

    def found(
        self, contents: QueueContents, last_row: int, flew: Sequence[Entry] = (), rows: Sequence[int] = ()
    ) -> None:
        """Take what a journal has at its opening as the backlog. What is in memory comes behind it, and is to be saved anew.

        Before it lies, in these rows, what flew when the journal was made.
        """
        lost = self.backlog.records
        self.has_journal = True
        for entry in (*self.flying, *self._tail):
            entry.row, entry.writing = None, False
        for entry, row in zip(flew, rows, strict=True):
            entry.row = row
        self.disk = QueueSize(contents.records, contents.bytes)
        self.backlog = QueueSize(contents.records, contents.bytes)
        self.backlog.take(len(flew), size_of(flew))
        self.backlog_from = max(rows, default=0)
        self.backlog_to = last_row if self.backlog.records else self.backlog_from
        self.left_to = 0
        self._losses.add(self.name, DropReason.CORRUPT, max(0, lost - self.backlog.records), 0, 0, time.monotonic())
        self._done_row, self._deletable = 0, QueueSize()
        self._delivered([entry for entry in flew if entry.done])
        self._writing = []
        unsaved = (entry for entry in (*self.flying, *self._tail) if entry.row is None)
        self._unsaved = deque(unsaved if self.durable else ())
        self._look()
        if self._unsaved:
            self.dirty.set()

    def resumed(self) -> None:
        """Take note that the same journal works again."""
        self.has_journal = True
        if self._unsaved:
            self.dirty.set()

    def leave_backlog(self) -> None:
        """Go on with what is in memory: what is on disk cannot be read, and is delivered after the next start instead."""
        self.backlog_from = self.left_to = self.backlog_to
        self.backlog = QueueSize()
        self._look()

    @property
    def wants_saving(self) -> bool:
        """Whether something in memory is to be written."""
        return bool(self._unsaved)

    @property
    def to_delete(self) -> int:
        """The row up to which all but what is left for the next start may be deleted; 0 where nothing need be."""
        return self._done_row if self._deletable.records else 0

    def to_save(self) -> list[Entry]:
        """Return the entries to be written next, in order. `saved` or `not_saved` must follow."""
        assert not self._writing
        while self._unsaved and len(self._writing) < SAVE_ENTRIES:
            entry = self._unsaved.popleft()
            if not entry.done:
                entry.writing = True
                self._writing.append(entry)
        return list(self._writing)

    @property
    def over_budget(self) -> int:
        """How many bytes of the backlog have to go; some more than is over, so that it is not for each entry anew. 0 for none."""
        over = self.disk.bytes - self._deletable.bytes - self.budget.disk
        behind, through = self.droppable
        return over + self.budget.disk // 50 if over > 0 and through > behind else 0

    @property
    def droppable(self) -> tuple[int, int]:
        """The rows between which entries wait that do not fly: behind the first, up to the second."""
        return max([self.backlog_from, *(entry.row or 0 for entry in self.flying)]), self.backlog_to

    def saved(self, rows: Sequence[int], deleted_through: int) -> None:
        """Take note that the entries of `to_save` are on disk in these rows, and all is deleted up to that one."""
        for entry, row in zip(self._writing, rows, strict=True):
            entry.row, entry.writing = row, False
        written, self._writing = self._writing, []
        self.disk.add(written)
        self.journaled += len(written)
        if deleted_through:
            self.disk.take(self._deletable.records, self._deletable.bytes)
            self._deletable = QueueSize()
        self._delivered([entry for entry in written if entry.done])
        self._skip_done()
        if self._tail_bytes > self.budget.memory:
            self._relieve()
        if self._unsaved or self.over_budget:
            self.dirty.set()
        self._some.set()

    def not_saved(self, *, has_journal: bool) -> None:
        """Take back the entries of `to_save`: the journal failed."""
        for entry in self._writing:
            entry.writing = False
        self._unsaved.extendleft(entry for entry in reversed(self._writing) if not entry.done)
        self._writing = []
        self.has_journal = has_journal
        self._some.set()
        self._skip_done()
        if self._tail_bytes > self.budget.memory:
            self._relieve()

    def dropped(self, contents: QueueContents, last_row: int) -> None:
        """Take note of what the budget took from the backlog."""
        self.backlog_from = max(self.backlog_from, last_row)
        self.backlog.take(contents.records, contents.bytes)
        self.disk.take(contents.records, contents.bytes)
        self._look()
        self._losses.add(
            self.name, DropReason.QUEUE_FULL, contents.records, contents.first_ns, contents.last_ns, time.monotonic()
        )
        self._losses.untell(contents.told)
