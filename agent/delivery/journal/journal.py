"""The journal of all queues: opens its file, writes records in transactions, reads records back, and handles failures of the disk.

New records wait while a transaction is committed, and share the next transaction. A thousand events at once need one fsync, like a single
event. The journal quarantines (renames) a damaged file, and copies its readable records into a new file. New records stay in memory while
the disk fails or is full.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.journal import recovery, statements
from agent.delivery.journal.database import JournalDatabase, JournalError, JournalFaultKind, OpenDatabase, connect
from agent.delivery.journal.lock import lock_directory
from agent.delivery.journal.recovery import QueueCopyPlan
from agent.delivery.journal.thread import JournalThread
from agent.delivery.journal.transaction import Transaction
from agent.delivery.journal.uncommitted_entries import UncommittedEntries
from agent.delivery.queue import RecordQueue
from agent.delivery.waits_and_deadlines import DeliveryWaitsAndDeadlines
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)

JOURNAL_FILE = "journal.db"
MAX_DEAD_LETTERS = 10_000
"""Maximum number of dead letters (records that the sink rejected) in the journal. Newer dead letters replace the oldest dead letters."""
_NOT_OPENED = "not opened yet"
UNREPORTED_DROPS = "unreported_drops"
"""Name of the persistent entry with the drops that no record has reported to consumers yet."""


class Journal:
    """The journal: one file for all queues. `run` opens the file and writes to the file.

    Args:
        directory: the directory of the journal's files; created if necessary.
        queues: the queues whose records the journal stores.
        drops: counts the dropped records.
        timings: waits and deadlines.
        connect: opens the database file.
    """

    def __init__(
        self,
        directory: Path,
        queues: Sequence[RecordQueue],
        drops: DropLedger,
        *,
        timings: DeliveryWaitsAndDeadlines,
        connect: OpenDatabase = connect,
    ) -> None:
        self.path = directory / JOURNAL_FILE
        self.error: str | None = _NOT_OPENED
        """Why nothing is journaled; None while the journal works."""
        self.quarantined_files = 0
        """Number of damaged files that were quarantined since the start."""
        self.commits = 0
        """Number of transactions since the start."""
        self.stored_persistent_entries: dict[str, Any] = {}
        """Values of the persistent entries that the file had when it was opened, by name."""
        self.pending_entries = UncommittedEntries()
        self.opened = asyncio.Event()
        """Set after the first attempt to open the file, successful or not."""
        self._queues = queues
        self._drops = drops
        self._timings = timings
        self._connect = connect
        self._thread = JournalThread(timings.journal_hang, self._on_disk_hang_changed)
        self._database: JournalDatabase | None = None
        self._lock_fd = -1
        # Dead letters that wait for a transaction, each with the reason of the rejection.
        self._dead_letters: list[tuple[str, EncodedRecord]] = []
        self._dirty = asyncio.Event()
        self._stored_drops: object = None  # the unreported drops in the file
        self._identity = ""  # `JournalDatabase.identity` of the file that the queues' rows belong to
        # Held during each operation on the file, because each operation changes the queues' rows.
        self._file_lock = asyncio.Lock()
        self._read_error: JournalError | None = None
        self._stopping = asyncio.Event()
        self._reads: dict[str, asyncio.Task[None]] = {}  # by queue
        self._last_row = 0  # the last row that was certainly committed
        # True if the file may have rows after `_last_row`, because a failed commit may still be on disk.
        self._may_have_later_rows = False
        for queue in queues:
            queue.journaling.dirty = self._dirty

    def current_call_seconds(self, now: float) -> float:
        """Return how many seconds the current call to the disk has taken; 0 if there is no current call.

        Args:
            now: the present time, by time.monotonic.
        """
        return self._thread.current_call_seconds(now)

    # For the pipeline and the sender.

    def store_dead_letters(self, reason: str, records: Sequence[EncodedRecord]) -> None:
        """Store rejected records as dead letters, for the operator."""
        self._dead_letters = [*self._dead_letters, *((reason, record) for record in records)][-MAX_DEAD_LETTERS:]
        self._dirty.set()

    async def persist_entry(self, entry: PersistentEntry) -> None:
        """Store a persistent entry. Wait without a deadline until the entry is on disk."""
        stored = self.pending_entries.add(entry)
        self._dirty.set()
        await stored

    async def fetch_backlog(self, queue: RecordQueue, max_records: int, max_bytes: int) -> None:
        """Read the oldest records of a queue's backlog (the rows on disk), and put the records in flight. Wait and retry after a failure.

        `run` quarantines a damaged file. The recovered records then become the backlog. If the file cannot be read within the queue's
        `backlog_seconds`, postpone the backlog and return without records. The queue then delivers the records in memory.

        Args:
            queue: the queue; it has a backlog, and none of its records is in flight.
            max_records: maximum number of records to read.
            max_bytes: maximum number of bytes of bodies to read. The first record is read even if it is larger.
        """
        reading = self._reads.get(queue.name)
        if reading is None:
            reading = self._reads[queue.name] = asyncio.create_task(self._read_backlog(queue, max_records, max_bytes))
        timeout = max(0.0, queue.backlog_seconds - self.current_call_seconds(time.monotonic()))
        if (await asyncio.wait({reading}, timeout=timeout))[0]:
            del self._reads[queue.name]
            reading.result()
        elif queue.backlog:
            text = "journal %s: the disk does not respond: the %s in memory are sent before the older ones on disk"
            _log.error(text, self.path, queue.name)
            queue.journaling.postpone_unreadable_backlog()

    async def _read_backlog(self, queue: RecordQueue, max_records: int, max_bytes: int) -> None:
        while queue.backlog and not queue.in_flight:
            async with self._file_lock:
                if self._database is not None and self._read_error is None:
                    read_records, after_row = self._database.read_records, queue.backlog.after_row
                    try:
                        batch = await self._thread.call(read_records, queue.name, after_row, max_records, max_bytes)
                    except JournalError as error:
                        self._read_error = error  # `run` handles the error
                        self._dirty.set()
                    else:
                        if queue.backlog and queue.backlog.after_row == after_row and not queue.in_flight:
                            queue.take_from_disk(*batch)
                        return  # without records if the backlog was postponed during the read
            await asyncio.sleep(self._timings.journal_retry)

    def _cancel_reads(self) -> None:
        for reading in self._reads.values():
            reading.cancel()

    def stop(self) -> None:
        """Make `run` return."""
        self._cancel_reads()
        self._stopping.set()
        self._dirty.set()

    async def write_remaining(self) -> None:
        """Write all records that are only in memory, before the agent ends. `run` must have returned. Retry once if the disk fails."""
        for _ in range(2):
            if self._database is None:
                await self._try_to_open()
            for queue in self._queues:
                queue.journaling.schedule_all_writes()
            while self._database is not None and await self._write(self._database):
                if not self._has_waiting_writes():
                    return

    async def close(self) -> None:
        """Close the file and release the lock."""
        if self._database is not None and self._drops.unreported() != self._stored_drops:
            await self._write(self._database)
        opened, self._database = self._database, None  # a write that failed has closed the file already
        if opened is not None:
            await self._thread.call(opened.close)
        self.release_lock()

    def release_lock(self) -> None:
        """Release the lock of the directory, and end the thread after its current call."""
        self._cancel_reads()
        self._thread.shutdown()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # Writing.

    async def run(self) -> None:
        """Open the file. Then write new records and delete delivered records, until `stop`. Cancel `run` only if the disk hangs."""
        while not self._stopping.is_set():
            async with self._file_lock:
                if self._database is None:
                    await self._try_to_open()
                    self.opened.set()
                elif self._read_error is not None:
                    error, self._read_error = self._read_error, None
                    await self._handle_failure(error)
            if self._database is None:
                await self._wait_for_retry()
                continue
            await self._dirty.wait()
            if not self._must_write_now():
                await self._wait_for_batch()
            self._dirty.clear()
            if self._read_error is None and not await self._write(self._database) and self.error is not None:
                await self._wait_for_retry()
                self._dirty.set()

    async def _wait_for_retry(self) -> None:
        """Wait before the next attempt to use the disk; return earlier if the agent stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timings.journal_retry):
                await self._stopping.wait()

    def _has_waiting_writes(self) -> bool:
        return any(queue.journaling.has_waiting_writes for queue in self._queues) or bool(
            self._dead_letters or self.pending_entries.has_waiting_callers
        )

    def _must_write_now(self) -> bool:
        return self._has_waiting_writes() or self._read_error is not None or self._stopping.is_set()

    async def _wait_for_batch(self) -> None:
        """Wait until records have to be written, for at most `delete_delay` seconds. One transaction then deletes and writes."""
        self._dirty.clear()
        try:
            async with asyncio.timeout(self._timings.delete_delay):
                while not self._must_write_now():
                    await self._dirty.wait()
                    self._dirty.clear()
        except TimeoutError:
            return

    async def _write(self, database: JournalDatabase) -> bool:
        """Commit all waiting writes and deletions in one transaction; return whether the transaction is on disk."""
        async with self._file_lock:
            return await self._commit_waiting_changes(database)

    async def _commit_waiting_changes(self, database: JournalDatabase) -> bool:
        transaction = self._new_transaction()
        transaction.delete_delivered()
        transaction.insert_waiting_records()
        for queue in self._queues:
            if (excess := queue.journaling.backlog_bytes_to_drop) > 0:
                transaction.trim_backlog(queue, excess)
        dead_letters, self._dead_letters = self._dead_letters, []
        transaction.changes += [
            statements.insert_dead_letter(reason, record, MAX_DEAD_LETTERS) for reason, record in dead_letters
        ]
        unreported = self._drops.unreported()
        if unreported != self._stored_drops:
            transaction.changes.append(statements.upsert_entry(PersistentEntry(UNREPORTED_DROPS, unreported)))
        transaction.changes.append(statements.upsert_entries(self.pending_entries.take_entries_for_transaction()))
        try:
            await self._thread.call(database.commit, transaction.changes)
        except JournalError as error:
            self._dead_letters = (dead_letters + self._dead_letters)[-MAX_DEAD_LETTERS:]
            self.pending_entries.on_transaction_failed()
            await self._handle_failure(error)
            return False
        self.commits += 1
        self._last_row, self._may_have_later_rows = max(self._last_row, transaction.last_inserted_row), False
        self._stored_drops = unreported
        self.pending_entries.on_transaction_committed()
        transaction.report_committed()
        if self.error is not None:
            self._mark_working()
        return True

    def _new_transaction(self) -> Transaction:
        """Return a transaction that first removes the rows that a failed transaction may have left on disk."""
        transaction = Transaction(self._queues)
        if self._may_have_later_rows:
            transaction.delete_all_rows_after(self._last_row)
        return transaction

    # Opening the file, and handling its failures.

    async def _try_to_open(self) -> None:
        """Open the file. Quarantine a damaged file, and create a new file with its readable records."""
        try:
            if self._lock_fd < 0:  # the lock is released when the process ends
                self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                self._lock_fd = lock_directory(self.path.parent)
            opened = await self._thread.call(JournalDatabase, self.path, self._connect)
            if opened.identity == self._identity:
                self._database = opened
                self._mark_working()
            else:
                await self._use_file(opened)
        except JournalError as error:
            await self._handle_failure(error)
        except OSError as error:
            self._mark_failed(f"{self.path.parent}: {error.strerror}")

    async def _use_file(self, opened: JournalDatabase, plans: Mapping[str, QueueCopyPlan] | None = None) -> None:
        """Use a file that was not in use before, and report its rows to the queues.

        Args:
            opened: the file.
            plans: what `recovery.rebuild_journal` copied into the file, by queue; None for any other file.

        Raises:
            JournalError: the file cannot be read. The file is closed.
        """
        try:
            summaries = [await self._thread.call(opened.summarize_rows, queue.name) for queue in self._queues]
            self.stored_persistent_entries = await self._thread.call(opened.persistent_entries)
        except JournalError:
            await self._thread.call(opened.close)
            raise
        self._drops.restore_stored_drops(self.stored_persistent_entries.pop(UNREPORTED_DROPS, None))
        if self._identity:
            self.pending_entries.on_new_file()
        self._database, self._identity, self._stored_drops = opened, opened.identity, None
        self._last_row, self._may_have_later_rows = opened.last_row, False
        for queue, stored in zip(self._queues, summaries, strict=True):
            plan = plans[queue.name] if plans else QueueCopyPlan()
            queue.journaling.on_opened(stored, opened.last_row, plan.in_flight, plan.in_flight_rows)
            if records := stored.records:
                _log.info("journal %s: queue %s: the file has %d undelivered records", self.path, queue.name, records)
        self._mark_working()

    def _mark_working(self) -> None:
        if self.error not in (None, _NOT_OPENED):
            _log.info("journal %s: works again: records are journaled", self.path)
        self.error = None
        for queue in self._queues:
            queue.journaling.on_journal_works_again()

    def _mark_failed(self, error: str) -> None:
        if error != self.error:
            _log.error("journal %s; records are kept in memory only", error)
        self.error = error
        for queue in self._queues:
            queue.journaling.on_journal_failed(available=False)

    async def _handle_failure(self, error: JournalError) -> None:
        """Make room on a full disk, or replace a damaged file. Close the file after any other failure; `run` opens the file again."""
        self._mark_failed(f"{self.path}: {error}")
        self._may_have_later_rows = True
        opened, self._read_error = self._database, None
        if error.fault is JournalFaultKind.FULL and opened is not None:
            await self._make_room(opened)
            return
        self._database = None
        if opened is not None:
            await self._thread.call(opened.close)
        if error.fault is JournalFaultKind.DAMAGED:
            await self._replace_damaged_file()

    async def _make_room(self, opened: JournalDatabase) -> None:
        """Drop a quarter of the samples on disk, because samples are the least valuable records. SQLite reuses the freed pages."""
        transaction = self._new_transaction()
        transaction.delete_delivered()
        for queue in self._queues:
            if not queue.durable and queue.backlog:
                transaction.trim_backlog(queue, queue.backlog.stored_size.bytes // 4)
        try:
            await self._thread.call(opened.checkpoint)
            await self._thread.call(opened.commit, transaction.changes)
        except JournalError as error:
            _log.debug("journal %s: cannot make room on the full disk: %s", self.path, error)
            return
        transaction.report_committed()

    async def _replace_damaged_file(self) -> None:
        """Quarantine a damaged file, and use a new file with its readable records."""
        rows_known = bool(self._identity)
        plans = {queue.name: QueueCopyPlan.for_queue(queue, rows_known=rows_known) for queue in self._queues}
        try:
            rebuilt = await self._thread.call(recovery.rebuild_journal, self.path, self._connect, plans)
            self._report_quarantine(rebuilt)
            await self._use_file(rebuilt.database, plans)
        except JournalError as error:
            self._mark_failed(f"{self.path}: {error}")

    def _report_quarantine(self, rebuilt: recovery.RebuiltJournal) -> None:
        if rebuilt.quarantined is not None:
            self.quarantined_files += 1
            name, records = rebuilt.quarantined.name, rebuilt.recovered
            _log.error("journal %s: damaged; renamed to %s; %d records recovered", self.path, name, records)
        for name, count in rebuilt.lost.items():
            self._drops.add(name, DropReason.CORRUPT, count, 0, 0, time.monotonic())

    def _on_disk_hang_changed(self, hangs: bool) -> None:  # noqa: FBT001 - a callback's only argument
        """Report to the queues whether the disk hangs. During a hang, the queues send alerts without waiting for the journal."""
        if hangs:
            _log.warning("journal %s: the disk hangs: alerts no longer wait for the journal", self.path)
        for queue in self._queues:
            queue.journaling.on_disk_hang_changed(hangs=hangs)
