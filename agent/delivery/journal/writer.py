"""The journal of all queues: opens its file, writes records in groups, reads them back, and handles failures of the disk.

One thread makes all calls to SQLite. While it commits a transaction, new records wait for the next one: a single event costs one fsync,
and a thousand events at once cost one fsync too. A damaged file is quarantined, and its readable records are copied into a new file.
While the disk fails or is full, the queues are in memory only.
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
    """One file for several queues. `run` does the work. While the file is not open, the queues are in memory only."""

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
        """Values of the notes in the file when it was opened, by name."""
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
        self._file_lock = asyncio.Lock()  # one operation on the file at a time, because each changes the queues' rows
        self._read_error: JournalError | None = None
        self._stopping = asyncio.Event()
        self._worked_at = time.monotonic()
        self._called_at: float | None = None
        for queue in queues:
            queue.dirty = self._dirty

    def silent_seconds(self, now: float) -> float:
        """Return how long the current call to the disk has taken, by time.monotonic; 0 if no call is under way."""
        return now - self._called_at if self._called_at is not None else 0.0

    # For the users of the queues.

    def dead_letter(self, reason: str, records: Sequence[EncodedRecord]) -> None:
        """Store rejected records for the operator."""
        self._dead_letters += [(reason, record) for record in records][: MAX_DEAD_LETTERS - len(self._dead_letters)]
        self._dirty.set()

    async def persist_note(self, note: StateNote) -> None:
        """Store a note and wait until it is on disk. There is no deadline: the caller sets one."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._notes.append((note, stored))
        self._dirty.set()
        await stored

    async def fetch(self, queue: RecordQueue, records: int, size: int) -> None:
        """Read the oldest records of a queue's backlog and put them in flight. If the file cannot be read now, wait for the next attempt.

        `run` quarantines a file that is damaged; the backlog then has its readable records. If the file stays unreadable for
        `read_patience`, the records in memory are delivered now, and those on disk after the next start.

        Args:
            queue: the queue; none of its records is in flight.
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
                "journal %s: cannot be read: %s; its records stay on disk until the next start", self.path, self.error
            )
            queue.skip_backlog()
            return
        await asyncio.sleep(self._timings.journal_retry)

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()
        self._dirty.set()

    async def finish(self) -> None:
        """Write all records in memory when the agent stops, after `run` has returned. If the disk fails, retry once."""
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
        """Release the lock, and end the thread once its current call returns."""
        self._thread.shutdown(wait=False)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # Writing.

    async def run(self) -> None:
        """Open the file, then write the queues' records and delete the delivered ones, until `stop`. Cancel it only if the disk hangs."""
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
        """Wait before the next attempt to use the disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timings.journal_retry):
                await self._stopping.wait()

    def _has_writes(self) -> bool:
        return any(queue.has_writes for queue in self._queues) or bool(self._dead_letters or self._notes)

    def _is_urgent(self) -> bool:
        return self._has_writes() or self._read_error is not None or self._stopping.is_set()

    async def _wait_for_batch(self) -> None:
        """Delay deletions by `delete_delay`, or until there are records to write, so that both share a transaction."""
        self._dirty.clear()
        try:
            async with asyncio.timeout(self._timings.delete_delay):
                while not self._is_urgent():
                    await self._dirty.wait()
                    self._dirty.clear()
        except TimeoutError:
            return

    async def _write(self, database: JournalDatabase) -> bool:
        """Commit all waiting writes and deletions in one transaction; return whether it is on disk."""
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
        """Return the delivered rows that can be deleted, by queue."""
        return {queue.name: deletion for queue in self._queues if (deletion := queue.backlog.deletion()) is not None}

    # Opening the file, and handling its failures.

    async def _try_to_open(self) -> None:
        """Open the file. If it is damaged, quarantine it and start a new one with its readable records."""
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
        """Use a new or newly opened file, and give its contents to the queues."""
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
            _log.info("journal %s: works again: records are journaled", self.path)
        self.error = None
        self._worked_at = time.monotonic()
        for queue in self._queues:
            queue.journal_resumed()

    def _mark_failed(self, error: str) -> None:
        if error != self.error:
            _log.error("journal %s; records are kept in memory only", error)
        self.error = error
        for queue in self._queues:
            queue.write_failed(has_journal=False)

    async def _handle(self, error: JournalError) -> None:
        """Handle a failure: make room on a full disk, quarantine a damaged file, and close any other file until the next attempt."""
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
        """On a full disk, drop a part of the samples, the least valuable records: SQLite reuses their pages in the file."""
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
            _log.debug("journal %s: cannot make room: %s", self.path, error)
            return
        for surplus in surpluses:
            surplus.report()
        for queue in self._queues:
            queue.write_committed((), deletions.get(queue.name))

    async def _replace(self) -> None:
        """Quarantine a damaged file, and start a new one with its readable records."""
        in_flight = {queue.name: InFlightRows.of(queue, known=bool(self._identity)) for queue in self._queues}
        try:
            rebuilt = await self._in_thread(recovery.rebuild, self.path, self._connect, in_flight)
        except JournalError as error:
            self._mark_failed(f"{self.path}: {error}")
            return
        if rebuilt.quarantined is not None:
            self.quarantined += 1
            _log.error(
                "journal %s: damaged; renamed to %s; %d records recovered",
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
        """Make a call to the disk in the journal's thread. While the call takes too long, alerts do not wait for the journal."""
        self._called_at = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        try:
            if not (await asyncio.wait({running}, timeout=self._timings.journal_hang))[0]:
                _log.warning("journal %s: the disk hangs: alerts no longer wait for the journal", self.path)
                self._set_hangs(hangs=True)
            return await running
        finally:
            self._called_at = None
            self._set_hangs(hangs=False)

    def _set_hangs(self, *, hangs: bool) -> None:
        for queue in self._queues:
            queue.set_journal_hangs(hangs=hangs)
