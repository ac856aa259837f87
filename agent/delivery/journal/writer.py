"""The journal of all lanes: opens its file, saves in groups, reads back, and bears whatever the disk does.

All of SQLite's work is done in one thread. While one transaction is on its way to the disk, what comes meanwhile gathers for the next:
a lone event costs one fsync, a thousand at once cost one too. A file that is damaged is set aside, what can be read of it is saved into
a new one, and a disk that fails or is full leaves the lanes with memory alone until it works again.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.entry import Entry, QueueContents, StateNote
from agent.delivery.journal import recovery, statements
from agent.delivery.journal.database import Connect, JournalDatabase, JournalError, JournalFault, connect
from agent.delivery.journal.recovery import InFlightRows
from agent.delivery.queue import RecordQueue

_log = logging.getLogger(__name__)

FILE = "journal.db"
RETRY_SECONDS = 5.0
"""How long to wait before a disk that failed is tried again."""
TIDY_SECONDS = 1.0
"""How long deletions wait for something to be saved, so that they need no transaction of their own."""
PATIENCE_SECONDS = 60.0
DEAD_KEPT = 10_000
_NOT_YET = "not opened yet"
LOSSES = "losses"
"""The name of the note that keeps what was lost and is not told yet."""

T = TypeVar("T")


class Journal:
    """One file for some lanes. `run` does the work; until it has opened the file, and while it cannot, the lanes have memory alone."""

    def __init__(
        self, folder: Path, lanes: Sequence[RecordQueue], losses: DropLedger, connect: Connect = connect
    ) -> None:
        self.path = folder / FILE
        self.trouble: str | None = _NOT_YET
        """Why nothing is journaled, or None."""
        self.quarantined = 0
        """Damaged files that were set aside since the start."""
        self.commits = 0
        """Transactions since the start."""
        self.notes: dict[str, Any] = {}
        """What an earlier run kept, by name, as it was when the file was opened."""
        self.opened = asyncio.Event()
        """Set when opening has been tried once, whether it went well or not."""
        self._lanes = lanes
        self._losses = losses
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, "journal")
        self._store: JournalDatabase | None = None
        self._lock_fd = -1
        self._dead: list[tuple[str, Entry]] = []
        self._notes: list[tuple[StateNote, asyncio.Future[None]]] = []
        self._dirty = asyncio.Event()
        self._noted: object = None
        self._identity = ""
        self._turn = asyncio.Lock()  # the lanes' rows change while one thing is done with the file, and not meanwhile
        self._unread: JournalError | None = None
        self._stopping = asyncio.Event()
        self._worked_at = time.monotonic()
        self._called_at: float | None = None
        for lane in lanes:
            lane.dirty = self._dirty

    def silent_seconds(self, now: float) -> float:
        """Return for how long the disk has left a call unanswered; 0 where none is under way. Times are of time.monotonic."""
        return now - self._called_at if self._called_at is not None else 0.0

    # What the lanes' owners ask.

    def bury(self, reason: str, entries: Sequence[Entry]) -> None:
        """Keep refused entries, so that a person can look at them."""
        self._dead += [(reason, entry) for entry in entries][: DEAD_KEPT - len(self._dead)]
        self._dirty.set()

    async def keep(self, note: StateNote) -> None:
        """Keep a note; when this returns, it is on disk. The caller bounds the wait."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._notes.append((note, kept))
        self._dirty.set()
        await kept

    async def fetch(self, lane: RecordQueue, most: int, most_bytes: int) -> None:
        """Read the oldest of a lane's backlog and let it fly, or wait and leave it for the next call.

        A file that turns out to be damaged is set aside; the lane's backlog is then what could be saved of it. One that cannot be read
        for long is not waited for: what is in memory goes first then, and what is on disk after the next start.
        """
        async with self._turn:
            if self._store is not None and self._unread is None:
                try:
                    lane.fly_from_disk(
                        *await self._in_thread(self._store.read, lane.name, lane.backlog_from, most, most_bytes)
                    )
                except JournalError as error:
                    self._unread = error  # for `run` to see to
                    self._dirty.set()
                else:
                    return
        if self._store is None and time.monotonic() - self._worked_at > PATIENCE_SECONDS:
            _log.error("%s cannot be read (%s); going on without what is in it", self.path, self.trouble)
            lane.leave_backlog()
            return
        await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Have `run` come to an end."""
        self._stopping.set()
        self._dirty.set()

    async def finish(self) -> None:
        """Save all that is in memory, `run` having ended: the agent stops. Where the disk fails, it is tried once more."""
        for _ in range(2):
            if self._store is None:
                await self._try_to_open()
            for lane in self._lanes:
                lane.save_all()
            while self._store is not None and await self._save(self._store):
                if not self._wanted():
                    return

    async def close(self) -> None:
        """Close the file and let the lock go."""
        if self._store is not None:
            if self._losses.untold() != self._noted:
                await self._save(self._store)
            await self._in_thread(self._store.close)
            self._store = None
        self.let_go()

    def let_go(self) -> None:
        """Let the lock go, and the thread as soon as it can."""
        self._thread.shutdown(wait=False)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # Its work.

    async def run(self) -> None:
        """Open the file, then save and delete as the lanes want it, until stopped. Cancelling is for a disk that hangs."""
        while not self._stopping.is_set():
            async with self._turn:
                if self._store is None:
                    await self._try_to_open()
                    self.opened.set()
                elif self._unread is not None:
                    error, self._unread = self._unread, None
                    await self._failed(error)
            if self._store is None:
                await self._pause()
                continue
            await self._dirty.wait()
            if not self._urgent():
                await self._company()
            self._dirty.clear()
            if self._unread is None and not await self._save(self._store) and self.trouble is not None:
                await self._pause()
                self._dirty.set()

    async def _pause(self) -> None:
        """Wait before the disk is tried again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._stopping.wait()

    def _wanted(self) -> bool:
        return any(lane.wants_saving for lane in self._lanes) or bool(self._dead or self._notes)

    def _urgent(self) -> bool:
        return self._wanted() or self._unread is not None or self._stopping.is_set()

    async def _company(self) -> None:
        """Wait a moment for something to save, when there is only something to delete."""
        self._dirty.clear()
        try:
            async with asyncio.timeout(TIDY_SECONDS):
                while not self._urgent():
                    await self._dirty.wait()
                    self._dirty.clear()
        except TimeoutError:
            return

    async def _save(self, opened: JournalDatabase) -> bool:
        """One transaction: what the lanes want saved and deleted, what is over their budgets, refused entries, untold losses."""
        async with self._turn:
            return await self._save_now(opened)

    async def _save_now(self, opened: JournalDatabase) -> bool:
        places: dict[str, list[int]] = {lane.name: [] for lane in self._lanes}
        deleted = {lane.name: lane.to_delete for lane in self._lanes}
        changes = self._deletions(deleted)
        changes += [
            statements.insert(lane.name, entries, places[lane.name])
            for lane in self._lanes
            if (entries := lane.to_save())
        ]
        drops = [_Surplus(lane, size) for lane in self._lanes if (size := lane.over_budget) > 0]
        changes += [drop.change for drop in drops]
        dead, self._dead = self._dead, []
        changes += [statements.bury(reason, entry, DEAD_KEPT) for reason, entry in dead]
        untold = self._losses.untold()
        if untold != self._noted:
            changes.append(statements.keep(StateNote(LOSSES, untold)))
        notes, self._notes = self._notes, []
        changes += [statements.keep(note) for note, _ in notes]
        try:
            await self._in_thread(opened.commit, changes)
        except JournalError as error:
            self._dead = dead + self._dead
            self._notes = notes + self._notes
            await self._failed(error)
            return False
        self.commits += 1
        self._worked_at = time.monotonic()
        self._noted = untold
        for _, kept in notes:
            if not kept.done():
                kept.set_result(None)
        for drop in drops:
            drop.tell()
        for lane in self._lanes:
            lane.saved(places[lane.name], deleted[lane.name])
        if self.trouble is not None:
            self._works()
        return True

    def _deletions(self, deleted: Mapping[str, int]) -> list[statements.Change]:
        left = {lane.name: lane.left_to for lane in self._lanes}
        return [statements.delete(name, left[name], row) for name, row in deleted.items() if row]

    # Opening, and what a disk does to a file.

    async def _try_to_open(self) -> None:
        """Open the file; where it is damaged, set it aside and begin a new one with what could be read of it."""
        try:
            self._lock()
            opened = await self._in_thread(JournalDatabase, self.path, self._connect)
            if opened.identity == self._identity:
                self._store = opened
                self._works()
            else:
                await self._adopt(opened)
        except JournalError as error:
            await self._failed(error)
        except OSError as error:
            self._report(f"{self.path.parent}: {error.strerror}")

    async def _adopt(self, opened: JournalDatabase, flew: Mapping[str, InFlightRows] | None = None) -> None:
        """Begin with a file that is new to us, and tell the lanes what it has."""
        contents = [await self._in_thread(opened.contents, lane.name) for lane in self._lanes]
        self.notes = await self._in_thread(opened.notes)
        self._losses.restore(self.notes.pop(LOSSES, None))
        self._store, self._identity, self._noted = opened, opened.identity, None
        for lane, found in zip(self._lanes, contents, strict=True):
            first = flew[lane.name] if flew else InFlightRows()
            lane.found(found, opened.last_row, first.entries, first.rows)
            if found.records:
                _log.info("%s has %d records of lane %s from before", self.path, found.records, lane.name)
        self._works()

    def _lock(self) -> None:
        """Make sure that no other agent uses this folder; the lock goes with the process.

        Raises:
            OSError: the folder cannot be made or written.
            StoreError: another agent has it.
        """
        if self._lock_fd >= 0:
            return
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock_fd = lock(self.path.parent)

    def _works(self) -> None:
        if self.trouble not in (None, _NOT_YET):
            _log.info("journaling to %s again", self.path)
        self.trouble = None
        self._worked_at = time.monotonic()
        for lane in self._lanes:
            lane.resumed()

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.error("nothing is journaled: %s; records are kept in memory meanwhile", trouble)
        self.trouble = trouble
        for lane in self._lanes:
            lane.not_saved(has_journal=False)

    async def _failed(self, error: JournalError) -> None:
        """Bear a failure: make room where the disk is full, wait where waiting may help, set the file aside where it will not."""
        self._report(f"{self.path}: {error}")
        opened, self._unread = self._store, None
        if error.fault is JournalFault.FULL and opened is not None:
            await self._make_room(opened)
            return
        self._store = None
        if opened is not None:
            await self._in_thread(opened.close)
        if error.fault is JournalFault.DAMAGED:
            await self._replace()

    async def _make_room(self, opened: JournalDatabase) -> None:
        """On a full disk, let a part of what is least worth go: pages that are freed inside the file can be written again."""
        drops = [_Surplus(lane, lane.disk.bytes // 4) for lane in self._lanes if not lane.durable and lane.has_backlog]
        deleted = {lane.name: lane.to_delete for lane in self._lanes}
        try:
            await self._in_thread(opened.fold)
            await self._in_thread(opened.commit, [*self._deletions(deleted), *(drop.change for drop in drops)])
        except JournalError as error:
            _log.debug("no room can be made: %s", error)
            return
        for drop in drops:
            drop.tell()
        for lane in self._lanes:
            lane.saved((), deleted[lane.name])

    async def _replace(self) -> None:
        """Set a damaged file aside and begin a new one with what can be read of it."""
        flew = {lane.name: InFlightRows.of(lane, known=bool(self._identity)) for lane in self._lanes}
        try:
            aside, opened, kept, lost = await self._in_thread(recovery.renew, self.path, self._connect, flew)
        except JournalError as error:
            self._report(f"{self.path}: {error}")
            return
        if aside is not None:
            self.quarantined += 1
            _log.error("the damaged journal is set aside as %s; %d records of it could be read", aside, kept)
        for name, count in lost.items():
            self._losses.add(name, DropReason.CORRUPT, count, 0, 0, time.monotonic())
        try:
            await self._adopt(opened, flew)
        except JournalError as error:
            self._report(f"{self.path}: {error}")
            await self._in_thread(opened.close)

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        self._called_at = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        finally:
            self._called_at = None


class _Surplus:
    """What is to be dropped from a lane's backlog in one transaction."""

    def __init__(self, lane: RecordQueue, size: int) -> None:
        self._lane = lane
        self._gone = QueueContents()
        self._last: list[int] = []
        behind, self._through = lane.droppable
        self.change = statements.drop_oldest(lane.name, size, behind, self._through, self._gone, self._last)

    def tell(self) -> None:
        """Tell the lane, the transaction having been committed."""
        self._lane.dropped(self._gone, self._last[0] if self._last else self._through)


def lock(folder: Path) -> int:
    """Take a folder for this process, and return the descriptor that holds it.

    Raises:
        StoreError: another process has it.
        OSError: it cannot be written.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JournalError(JournalFault.UNUSABLE, f"another agent uses {folder}") from None
    return descriptor
