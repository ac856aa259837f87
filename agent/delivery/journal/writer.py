"""The journal of all queues: opens its file, writes in groups, reads back, and copes with whatever the disk does.

One thread does all of SQLite's work. While it commits one transaction, new records wait for the next one: a single event costs one fsync,
and so do a thousand events at once. A damaged file is quarantined, and what is readable of it is copied into a new one. A disk that fails
or is full leaves the queues with memory alone until it works again.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent.delivery.backlog import Deletion
from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.journal import recovery, statements
from agent.delivery.journal.database import Connect, JournalDatabase, JournalError, JournalFault, connect
from agent.delivery.journal.deletions import Surplus, delete_changes
from agent.delivery.journal.lock import lock
from agent.delivery.journal.recovery import InFlightRows
from agent.delivery.queue import RecordQueue
from agent.delivery.timings import DeliveryTimings
from agent.model.record import EncodedRecord, StateNote

_log = logging.getLogger(__name__)

FILE = "journal.db"
MAX_DEAD_LETTERS = 10_000
"""The newest dead letters are kept."""
_NOT_OPENED = "not opened yet"
UNREPORTED_DROPS = "unreported_drops"
"""Name of the note with the drops that are not reported downstream yet."""

T = TypeVar("T")


class Journal:
    """One file for several queues. `run` does the work; while the file is not open, the queues have memory alone."""

    def __init__(
        self,
        directory: Path,
        queues: Sequence[RecordQueue],
        drops: DropLedger,
        *,
        timings: DeliveryTimings,
        connect: Connect = connect,
    ) -> None:
        self.path = directory / FILE
        self.error: str | None = _NOT_OPENED
        """Why nothing is journaled; None while the journal works."""
        self.quarantined = 0
        """Damaged files that were quarantined since the start."""
        self.commits = 0
        """Transactions since the start."""
        self.notes: dict[str, Any] = {}
        """Values of the notes of earlier runs, by name, as they were when the file was opened."""
        self.opened = asyncio.Event()
        """Set after the first attempt to open the file, whether it succeeded or not."""
        self._queues = queues
        self._drops = drops
        self._timings = timings
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, "journal")
        self._database: JournalDatabase | None = None
        self._lock_fd = -1
        self._dead_letters: list[tuple[str, EncodedRecord]] = []
        self._notes: list[tuple[StateNote, asyncio.Future[None]]] = []
        self._dirty = asyncio.Event()
        self._stored_drops: object = None
        self._identity = ""
        self._file_lock = asyncio.Lock()  # the queues' rows change only while one operation on the file is under way
        self._read_error: JournalError | None = None
        self._stopping = asyncio.Event()
        self._worked_at = time.monotonic()
        self._called_at: float | None = None
        for queue in queues:
            queue.dirty = self._dirty

    def silent_seconds(self, now: float) -> float:
        """Return how long the disk has left a call unanswered, by time.monotonic; 0 if no call is under way."""
        return now - self._called_at if self._called_at is not None else 0.0

    # For those who use the queues.

    def dead_letter(self, reason: str, records: Sequence[EncodedRecord]) -> None:
        """Store rejected records for the operator."""
        self._dead_letters += [(reason, record) for record in records][: MAX_DEAD_LETTERS - len(self._dead_letters)]
        self._dirty.set()

    async def persist_note(self, note: StateNote) -> None:
        """Store a note and wait until it is on disk. The caller bounds the wait."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._notes.append((note, stored))
        self._dirty.set()
        await stored

    async def fetch(self, queue: RecordQueue, records: int, size: int) -> None:
        """Read the oldest of a queue's backlog and move it into flight; or wait, and leave it for the next call.

        A file that turns out to be damaged is quarantined, and the backlog becomes what was readable of it. A file that stays unreadable
        is not waited for: what is in memory is delivered, and what is on disk after the next start.

        Args:
            queue: the queue; nothing of it is in flight.
            records: how many to read at most.
            size: bytes of bodies to read at most.
        """
        async with self._file_lock:
            if self._database is not None and self._read_error is None:
                after = queue.backlog.after_row
                try:
                    batch = await self._in_thread(self._database.read, queue.name, after, records, size)
                except JournalError as error:
                    self._read_error = error  # `run` handles it
                    self._dirty.set()
                else:
                    queue.take_from_disk(*batch)
                    return
        if self._database is None and time.monotonic() - self._worked_at > self._timings.read_patience:
            _log.error(
                "journal %s: its records are delivered after the next start: not readable: %s", self.path, self.error
            )
            queue.skip_backlog()
            return
        await asyncio.sleep(self._timings.journal_retry)

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()
        self._dirty.set()

    async def finish(self) -> None:
        """Write all that is in memory, after `run` has returned: the agent stops. A disk that fails gets one retry."""
        for _ in range(2):
            if self._database is None:
                await self._try_to_open()
            for queue in self._queues:
                queue.write_all()
            while self._database is not None and await self._write(self._database):
                if not self._has_writes():
                    return

    async def close(self) -> None:
        """Close the file and release the lock."""
        if self._database is not None:
            if self._drops.unreported() != self._stored_drops:
                await self._write(self._database)
            await self._in_thread(self._database.close)
            self._database = None
        self.release()

    def release(self) -> None:
        """Release the lock, and the thread as soon as its call returns."""
        self._thread.shutdown(wait=False)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # Writing.

    async def run(self) -> None:
        """Open the file, then write and delete what the queues have, until `stop`. Cancelling is for a disk that hangs."""
        while not self._stopping.is_set():
            async with self._file_lock:
                if self._database is None:
                    await self._try_to_open()
                    self.opened.set()
                elif self._read_error is not None:
                    error, self._read_error = self._read_error, None
                    await self._handle(error)
            if self._database is None:
                await self._pause()
                continue
            await self._dirty.wait()
            if not self._is_urgent():
                await self._wait_for_batch()
            self._dirty.clear()
            if self._read_error is None and not await self._write(self._database) and self.error is not None:
                await self._pause()
                self._dirty.set()

    async def _pause(self) -> None:
        """Wait before the disk is tried again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timings.journal_retry):
                await self._stopping.wait()

    def _has_writes(self) -> bool:
        return any(queue.has_writes for queue in self._queues) or bool(self._dead_letters or self._notes)

    def _is_urgent(self) -> bool:
        return self._has_writes() or self._read_error is not None or self._stopping.is_set()

    async def _wait_for_batch(self) -> None:
        """Wait for something to write when there is only something to delete, so that both share a transaction."""
        self._dirty.clear()
        try:
            async with asyncio.timeout(self._timings.delete_delay):
                while not self._is_urgent():
                    await self._dirty.wait()
                    self._dirty.clear()
        except TimeoutError:
            return

    async def _write(self, database: JournalDatabase) -> bool:
        """Commit one transaction of all that waits to be written or deleted; return whether it is on disk."""
        async with self._file_lock:
            return await self._write_locked(database)

    async def _write_locked(self, database: JournalDatabase) -> bool:
        rows: dict[str, list[int]] = {queue.name: [] for queue in self._queues}
        deletions = self._deletions()
        changes = delete_changes(deletions)
        changes += [
            statements.insert(queue.name, records, rows[queue.name])
            for queue in self._queues
            if (records := queue.start_write())
        ]
        surpluses = [Surplus(queue, size) for queue in self._queues if (size := queue.excess_bytes) > 0]
        changes += [surplus.change for surplus in surpluses]
        dead_letters, self._dead_letters = self._dead_letters, []
        changes += [statements.insert_dead_letter(reason, record, MAX_DEAD_LETTERS) for reason, record in dead_letters]
        unreported = self._drops.unreported()
        if unreported != self._stored_drops:
            changes.append(statements.upsert_note(StateNote(UNREPORTED_DROPS, unreported)))
        notes, self._notes = self._notes, []
        changes += [statements.upsert_note(note) for note, _ in notes]
        try:
            await self._in_thread(database.commit, changes)
        except JournalError as error:
            self._dead_letters = dead_letters + self._dead_letters
            self._notes = notes + self._notes
            await self._handle(error)
            return False
        self.commits += 1
        self._worked_at = time.monotonic()
        self._stored_drops = unreported
        for _, stored in notes:
            if not stored.done():
                stored.set_result(None)
        for surplus in surpluses:
            surplus.report()
        for queue in self._queues:
            queue.write_committed(rows[queue.name], deletions.get(queue.name))
        if self.error is not None:
            self._mark_working()
        return True

    def _deletions(self) -> dict[str, Deletion]:
        """Return which delivered rows can be deleted, by queue."""
        return {queue.name: deletion for queue in self._queues if (deletion := queue.backlog.deletion()) is not None}

    # Opening the file, and handling what a disk does to it.

    async def _try_to_open(self) -> None:
        """Open the file; quarantine a damaged one, and start a new one with what is readable of it."""
        try:
            self._lock()
            opened = await self._in_thread(JournalDatabase, self.path, self._connect)
            if opened.identity == self._identity:
                self._database = opened
                self._mark_working()
            else:
                await self._adopt(opened)
        except JournalError as error:
            await self._handle(error)
        except OSError as error:
            self._mark_failed(f"{self.path.parent}: {error.strerror}")

    async def _adopt(self, opened: JournalDatabase, in_flight: Mapping[str, InFlightRows] | None = None) -> None:
        """Use another file than before, and give its contents to the queues."""
        contents = [await self._in_thread(opened.contents, queue.name) for queue in self._queues]
        self.notes = await self._in_thread(opened.notes)
        self._drops.load(self.notes.pop(UNREPORTED_DROPS, None))
        self._database, self._identity, self._stored_drops = opened, opened.identity, None
        for queue, stored in zip(self._queues, contents, strict=True):
            copied = in_flight[queue.name] if in_flight else InFlightRows()
            queue.journal_opened(stored, opened.last_row, copied.records, copied.rows)
            if stored.records:
                _log.info(
                    "journal %s: queue %s has %d records of an earlier run", self.path, queue.name, stored.records
                )
        self._mark_working()

    def _lock(self) -> None:
        """Make sure that no other agent uses the directory; the lock ends with the process.

        Raises:
            OSError: the directory cannot be made or written.
            JournalError: another agent uses it.
        """
        if self._lock_fd >= 0:
            return
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock_fd = lock(self.path.parent)

    def _mark_working(self) -> None:
        if self.error not in (None, _NOT_OPENED):
            _log.info("journal %s: records are journaled again", self.path)
        self.error = None
        self._worked_at = time.monotonic()
        for queue in self._queues:
            queue.journal_resumed()

    def _mark_failed(self, error: str) -> None:
        if error != self.error:
            _log.error("journal: records are kept in memory only: %s", error)
        self.error = error
        for queue in self._queues:
            queue.write_failed(has_journal=False)

    async def _handle(self, error: JournalError) -> None:
        """Handle a failure: make room on a full disk, close a file that may work later, quarantine a damaged one."""
        self._mark_failed(f"{self.path}: {error}")
        opened, self._read_error = self._database, None
        if error.fault is JournalFault.FULL and opened is not None:
            await self._make_room(opened)
            return
        self._database = None
        if opened is not None:
            await self._in_thread(opened.close)
        if error.fault is JournalFault.DAMAGED:
            await self._replace()

    async def _make_room(self, opened: JournalDatabase) -> None:
        """On a full disk, drop a part of the least valuable records: SQLite reuses the pages inside the file."""
        surpluses = [
            Surplus(queue, queue.backlog.stored.bytes // 4)
            for queue in self._queues
            if not queue.durable and queue.backlog
        ]
        deletions = self._deletions()
        try:
            await self._in_thread(opened.checkpoint)
            changes = [*delete_changes(deletions), *(surplus.change for surplus in surpluses)]
            await self._in_thread(opened.commit, changes)
        except JournalError as error:
            _log.debug("journal %s: no room can be made: %s", self.path, error)
            return
        for surplus in surpluses:
            surplus.report()
        for queue in self._queues:
            queue.write_committed((), deletions.get(queue.name))

    async def _replace(self) -> None:
        """Quarantine a damaged file, and start a new one with what is readable of it."""
        in_flight = {queue.name: InFlightRows.of(queue, known=bool(self._identity)) for queue in self._queues}
        try:
            rebuilt = await self._in_thread(recovery.rebuild, self.path, self._connect, in_flight)
        except JournalError as error:
            self._mark_failed(f"{self.path}: {error}")
            return
        if rebuilt.quarantined is not None:
            self.quarantined += 1
            _log.error(
                "journal %s: damaged file quarantined as %s: %d of its records are readable",
                self.path,
                rebuilt.quarantined.name,
                rebuilt.recovered,
            )
        for name, count in rebuilt.lost.items():
            self._drops.add(name, DropReason.CORRUPT, count, 0, 0, time.monotonic())
        try:
            await self._adopt(rebuilt.database, in_flight)
        except JournalError as error:
            self._mark_failed(f"{self.path}: {error}")
            await self._in_thread(rebuilt.database.close)

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Call the disk; while it hangs, the queues deliver without it."""
        self._called_at = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        try:
            done, _ = await asyncio.wait({running}, timeout=self._timings.journal_hang)
            if not done:
                _log.warning("journal %s: alerts are delivered before they are journaled: the disk hangs", self.path)
                for queue in self._queues:
                    queue.journal_suspended()
            result = await running
        finally:
            self._called_at = None
        if not done and self.error is None:
            for queue in self._queues:
                queue.journal_resumed()
        return result
