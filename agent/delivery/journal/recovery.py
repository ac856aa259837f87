"""Recovery of a damaged journal: renames the damaged file, and copies the readable records into a new file. Every call blocks."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self

from agent.delivery.journal import statements
from agent.delivery.journal.database import (
    DATABASE_ERRORS,
    JournalDatabase,
    JournalError,
    JournalFaultKind,
    OpenDatabase,
    connect_readonly,
    raise_if_disk_full,
)
from agent.delivery.journal.statements import read_persistent_entries, record_from_row
from agent.delivery.queue import RecordQueue
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord

# NOT INDEXED: the index may be damaged.
_SELECT_RECORDS = "SELECT row, id, key, type, time_ns, crc, body FROM records NOT INDEXED WHERE queue = ? ORDER BY row"
_SELECT_INDEXED_ROWS = "SELECT row FROM records INDEXED BY by_queue WHERE queue = ? ORDER BY row"

LOG_SUFFIXES = ("-wal", "-shm")
"""Suffixes of the two files that SQLite creates beside a database in WAL mode."""

MAX_BACKWARD_RECORDS = 100_000
"""Maximum number of records that are recovered from behind a damaged page. Reading backwards needs all of these records in memory."""


def quarantine_file(path: Path) -> Path | None:
    """Rename a damaged journal file and the files that SQLite keeps beside it.

    Returns:
        the new path, `<name>.damaged-<milliseconds since the epoch>`; None if the file does not exist.

    Raises:
        JournalError: the file cannot be renamed.
    """
    renamed = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        _rename_with_logs(path, renamed)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(
            JournalFaultKind.UNUSABLE, f"damaged, and cannot be renamed to {renamed.name}: {error.strerror}"
        ) from error
    return renamed


def undo_quarantine(quarantined: Path, path: Path) -> None:
    """Move a quarantined file back to `path`. Ignore a failure."""
    with contextlib.suppress(OSError):
        for suffix in LOG_SUFFIXES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _rename_with_logs(quarantined, path)


def _rename_with_logs(path: Path, to: Path) -> None:
    path.rename(to)
    for suffix in LOG_SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(to.with_name(to.name + suffix))


def salvage_records(path: Path, queues: Sequence[str]) -> Iterator[tuple[str, list[EncodedRecord]]]:
    """Yield the readable records of a damaged file, oldest first, with the name of their queue.

    Read each queue forwards up to the damage, and then backwards from the end of the file to the damage.

    Raises:
        JournalError: the disk has no space for the temporary files with which SQLite reads the database.
    """
    try:
        db = connect_readonly(path)
    except DATABASE_ERRORS as error:
        raise_if_disk_full(error)
        return
    try:
        for queue in queues:
            last = 0
            for chunk in _split_chunks(_keep_in_order(_read_intact(db, _SELECT_RECORDS, queue), 1)):
                last = chunk[-1].row or 0
                yield queue, chunk
            backwards = _keep_in_order(_read_intact(db, f"{_SELECT_RECORDS} DESC", queue), -1)
            behind_damage = list(islice(takewhile(partial(_is_after_row, last), backwards), MAX_BACKWARD_RECORDS))
            if behind_damage:
                yield queue, behind_damage[::-1]
    finally:
        db.close()


def count_rows_in_index(path: Path, queue: str) -> int:
    """Return the number of a queue's rows in the readable part of the index.

    The index has its own pages, so it may still list records whose data is lost.
    """
    rows = set[int]()
    try:
        with contextlib.closing(connect_readonly(path)) as db:
            for query in (_SELECT_INDEXED_ROWS, f"{_SELECT_INDEXED_ROWS} DESC"):
                with contextlib.suppress(*DATABASE_ERRORS):
                    for (row,) in db.execute(query, (queue,)):
                        if row in rows:
                            break
                        rows.add(row)
    except DATABASE_ERRORS:
        return len(rows)
    return len(rows)


def read_salvageable_entries(path: Path) -> dict[str, Any]:
    """Return the values of the persistent entries in a damaged file, by name; empty if the table cannot be read to its end.

    Raises:
        JournalError: the disk has no space for the temporary files with which SQLite reads the database.
    """
    try:
        with contextlib.closing(connect_readonly(path)) as db:
            return read_persistent_entries(db)
    except DATABASE_ERRORS as error:
        raise_if_disk_full(error)
        return {}


def _read_intact(db: sqlite3.Connection, query: str, queue: str) -> Iterator[EncodedRecord]:
    """Yield the intact records that a query returns for a queue, up to the first read error."""
    try:
        for row in db.execute(query, (queue,)):
            record = record_from_row(row)
            if record is not None:
                yield record
    except DATABASE_ERRORS as error:
        raise_if_disk_full(error)


def _keep_in_order(records: Iterator[EncodedRecord], sign: int) -> Iterator[EncodedRecord]:
    """Yield the records in the order of their rows: rising with sign 1, falling with sign -1. Leave out records that break the order.

    Such records come from a damaged page.
    """
    yielded = held = None
    for record in records:
        row = sign * (record.row or 0)
        if yielded is not None and row <= yielded:
            continue
        if held is not None and sign * (held.row or 0) < row:
            yielded = sign * (held.row or 0)
            yield held
        held = record
    if held is not None:
        yield held


def _is_after_row(row: int, record: EncodedRecord) -> bool:
    return (record.row or 0) > row


def _split_chunks(records: Iterator[EncodedRecord]) -> Iterator[list[EncodedRecord]]:
    while chunk := list(islice(records, 500)):
        yield chunk


@dataclass(slots=True)
class QueueCopyPlan:
    """The records of one queue to copy into a new journal file after damage: first the records in flight, then the backlog.

    Attributes:
        in_flight: the records in flight; for a queue that is not durable, only the records in flight that were in the old file.
        in_flight_rows: row numbers of the records in flight in the new file; empty before the copy.
        after_row: the row in the old file before the first row of the backlog.
        last_row: the last row of the backlog in the old file; infinite if the backlog's rows are unknown.
    """

    in_flight: list[EncodedRecord] = field(default_factory=list)
    in_flight_rows: list[int] = field(default_factory=list)
    after_row: int = 0
    last_row: float = math.inf

    @classmethod
    def for_queue(cls, queue: RecordQueue, *, rows_known: bool) -> Self:
        """Return the plan for copying the records of a queue from a damaged file.

        Args:
            queue: the queue.
            rows_known: False if the file was damaged before the agent could read its row numbers.
        """
        records = [record for record in queue.in_flight if queue.durable or record.row is not None]
        if not rows_known or queue.backlog.postponed_record_count:
            return cls(records)
        return cls(records, [], queue.backlog.after_row, queue.backlog.last_row)


@dataclass(frozen=True, slots=True)
class RebuiltJournal:
    """A new journal file that replaces a damaged file.

    Attributes:
        quarantined: the new path of the damaged file; None if there was no file.
        database: the new file.
        recovered: number of records that were copied from the damaged file.
        lost: number of records of the damaged file that could not be copied, by queue. Queues with a finite `QueueCopyPlan.last_row`
            are left out, because these queues count their lost records themselves.
    """

    quarantined: Path | None
    database: JournalDatabase
    recovered: int
    lost: dict[str, int]


def rebuild_journal(path: Path, connect: OpenDatabase, plans: Mapping[str, QueueCopyPlan]) -> RebuiltJournal:
    """Quarantine a damaged file, and create a new file with the records in flight and the readable records of the backlog.

    Args:
        path: path of the damaged file. The damaged file gets another name, and the new file gets this path.
        connect: opens the new file.
        plans: what to copy, by queue.

    Raises:
        JournalError: the damaged file cannot be renamed, or the new file cannot be created or filled.
            The damaged file then has its old path.
    """
    quarantined = quarantine_file(path)
    try:
        database = JournalDatabase(path, connect)
        try:
            return RebuiltJournal(quarantined, database, *_copy_records(database, quarantined, plans))
        except JournalError:
            database.close()
            raise
    except JournalError:
        if quarantined is not None:
            undo_quarantine(quarantined, path)
        raise


def _copy_records(
    database: JournalDatabase, quarantined: Path | None, plans: Mapping[str, QueueCopyPlan]
) -> tuple[int, dict[str, int]]:
    """Copy records into a new file. Return the values of `RebuiltJournal.recovered` and `RebuiltJournal.lost`."""
    database.commit(
        [statements.insert_records(queue, plan.in_flight, plan.in_flight_rows) for queue, plan in plans.items()]
    )
    recovered = dict.fromkeys(plans, 0)
    lost = {}
    if quarantined is not None:
        entries = [PersistentEntry(name, value) for name, value in read_salvageable_entries(quarantined).items()]
        database.commit([statements.upsert_entry(entry) for entry in entries])
        for queue, records in salvage_records(quarantined, list(plans)):
            plan = plans[queue]
            backlog = [record for record in records if plan.after_row < (record.row or 0) <= plan.last_row]
            recovered[queue] += len(backlog)
            database.commit([statements.insert_records(queue, backlog, [])])
        unknown = [queue for queue, plan in plans.items() if plan.last_row == math.inf]
        lost = {queue: max(0, count_rows_in_index(quarantined, queue) - recovered[queue]) for queue in unknown}
    database.reread_last_row_number()
    return sum(recovered.values()), lost
