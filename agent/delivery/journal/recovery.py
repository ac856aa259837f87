"""Recovery of a damaged journal: quarantines the file, and copies its readable records into a new one. Every call blocks."""

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
    ERRORS,
    Connect,
    JournalDatabase,
    JournalError,
    JournalFault,
    check_space,
    connect_readonly,
)
from agent.delivery.journal.statements import read_notes, record_of
from agent.delivery.queue import RecordQueue
from agent.model.record import EncodedRecord, StateNote

# NOT INDEXED: the index may be damaged.
_SALVAGE = "SELECT row, id, key, type, time_ns, crc, body FROM records NOT INDEXED WHERE queue = ? ORDER BY row"
_INDEXED = "SELECT row FROM records INDEXED BY by_queue WHERE queue = ? ORDER BY row"

LOGS = ("-wal", "-shm")
"""Suffixes of the files that SQLite puts beside a database."""

SALVAGE_BEHIND = 100_000
"""How many records after a damaged page are recovered at most. They are held in memory, because they are read backwards."""


def quarantine(path: Path) -> Path | None:
    """Rename a damaged file and its log to `<name>.damaged-<milliseconds>`; return the new path, or None if there is no file.

    Raises:
        JournalError: it cannot be renamed.
    """
    renamed = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        _rename(path, renamed)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(
            JournalFault.UNUSABLE, f"damaged, and cannot be renamed to {renamed.name}: {error.strerror}"
        ) from error
    return renamed


def restore_quarantined(quarantined: Path, path: Path) -> None:
    """Undo `quarantine`, as far as possible."""
    with contextlib.suppress(OSError):
        for suffix in LOGS:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _rename(quarantined, path)


def _rename(path: Path, to: Path) -> None:
    path.rename(to)
    for suffix in LOGS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(to.with_name(to.name + suffix))


def salvage(path: Path, queues: Sequence[str]) -> Iterator[tuple[str, list[EncodedRecord]]]:
    """Yield the readable records of a damaged file, queue by queue and in order.

    It reads forwards up to the damage, then backwards from the end of the file to the damage.

    Raises:
        JournalError: the disk has no space for the files that SQLite needs to read it.
    """
    try:
        db = connect_readonly(path)
    except ERRORS as error:
        check_space(error)
        return
    try:
        for queue in queues:
            last = 0
            for chunk in _chunks(_in_order(_intact(db, _SALVAGE, queue), 1)):
                last = chunk[-1].row or 0
                yield queue, chunk
            backwards = _in_order(_intact(db, f"{_SALVAGE} DESC", queue), -1)
            behind = list(islice(takewhile(partial(_is_after, last), backwards), SALVAGE_BEHIND))
            if behind:
                yield queue, behind[::-1]
    finally:
        db.close()


def count_indexed(path: Path, queue: str) -> int:
    """Return how many records of a queue the readable part of the index has. The index is in other pages than the records."""
    rows = set[int]()
    try:
        with contextlib.closing(connect_readonly(path)) as db:
            for query in (_INDEXED, f"{_INDEXED} DESC"):
                with contextlib.suppress(*ERRORS):
                    for (row,) in db.execute(query, (queue,)):
                        if row in rows:
                            break
                        rows.add(row)
    except ERRORS:
        return len(rows)
    return len(rows)


def salvage_notes(path: Path) -> dict[str, Any]:
    """Return the readable notes of a damaged file.

    Raises:
        JournalError: the disk has no space for the files that SQLite needs to read it.
    """
    try:
        with contextlib.closing(connect_readonly(path)) as db:
            return read_notes(db)
    except ERRORS as error:
        check_space(error)
        return {}


def _intact(db: sqlite3.Connection, query: str, queue: str) -> Iterator[EncodedRecord]:
    """Yield a queue's intact records, up to the first read error."""
    try:
        for row in db.execute(query, (queue,)):
            record = record_of(row)
            if record is not None:
                yield record
    except ERRORS as error:
        check_space(error)


def _in_order(records: Iterator[EncodedRecord], sign: int) -> Iterator[EncodedRecord]:
    """Yield the records whose rows rise (sign 1) or fall (sign -1), and leave out others: a damaged page may have rows out of order."""
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


def _is_after(row: int, record: EncodedRecord) -> bool:
    return (record.row or 0) > row


def _chunks(records: Iterator[EncodedRecord]) -> Iterator[list[EncodedRecord]]:
    while chunk := list(islice(records, 500)):
        yield chunk


@dataclass(slots=True)
class InFlightRows:
    """A queue's records in flight while its file is replaced: they are the first in the new file.

    Attributes:
        records: the records; for a queue that is not durable, only those that were on disk.
        after: the row in the old file before the first row of the backlog.
        through: the last row of the backlog in the old file.
        rows: the rows of the records in the new file.
    """

    records: list[EncodedRecord] = field(default_factory=list)
    after: int = 0
    through: float = math.inf
    rows: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, queue: RecordQueue, *, known: bool) -> Self:
        """Return the rows of a queue; `known` says whether the contents of the old file were read."""
        records = [record for record in queue.in_flight if queue.durable or record.row is not None]
        if not known or queue.backlog.kept_through:
            return cls(records)
        return cls(records, queue.backlog.after_row, queue.backlog.last_row)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A file that replaces a damaged one.

    Attributes:
        quarantined: the new path of the old file; None if it was gone.
        database: the new file.
        recovered: how many records of the old file are in the new one.
        lost: how many are not, by queue; only for queues whose contents in the old file were not known.
    """

    quarantined: Path | None
    database: JournalDatabase
    recovered: int
    lost: dict[str, int]


def rebuild(path: Path, connect: Connect, in_flight: Mapping[str, InFlightRows]) -> Rebuilt:
    """Quarantine a file, and make a new one from the records in flight and the readable records of the backlog.

    Raises:
        JournalError: the file cannot be renamed, or the new one cannot be made. The old file is at its path again.
    """
    quarantined = quarantine(path)
    try:
        database = JournalDatabase(path, connect)
        try:
            return Rebuilt(quarantined, database, *_refill(database, quarantined, in_flight))
        except JournalError:
            database.close()
            raise
    except JournalError:
        if quarantined is not None:
            restore_quarantined(quarantined, path)
        raise


def _refill(
    database: JournalDatabase, quarantined: Path | None, in_flight: Mapping[str, InFlightRows]
) -> tuple[int, dict[str, int]]:
    """Copy records into a new file; return `recovered` and `lost` of `Rebuilt`."""
    database.commit([statements.insert(queue, rows.records, rows.rows) for queue, rows in in_flight.items()])
    recovered = dict.fromkeys(in_flight, 0)
    lost = {}
    if quarantined is not None:
        notes = [StateNote(name, value) for name, value in salvage_notes(quarantined).items()]
        database.commit([statements.upsert_note(note) for note in notes])
        for queue, records in salvage(quarantined, list(in_flight)):
            after, through = in_flight[queue].after, in_flight[queue].through
            waiting = [record for record in records if after < (record.row or 0) <= through]
            recovered[queue] += len(waiting)
            database.commit([statements.insert(queue, waiting, [])])
        unknown = [queue for queue, rows in in_flight.items() if rows.through == math.inf]
        lost = {queue: max(0, count_indexed(quarantined, queue) - recovered[queue]) for queue in unknown}
    database.refresh()
    return sum(recovered.values()), lost
