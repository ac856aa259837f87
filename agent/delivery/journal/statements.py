"""The journal's SQL statements: rows with a checksum for records, and the changes that make up a transaction."""

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from agent.delivery.drops import DROP_REPORT_TYPE
from agent.delivery.sizes import QueueContents, size_of
from agent.model.record import OVERHEAD_BYTES, EncodedRecord, RecordState, StateNote


def record_of(row: Sequence[object]) -> EncodedRecord | None:
    """Return the record of a row; None if the row differs from what was written."""
    number, record_id, key, record_type, time_ns, crc, body = row
    if not (isinstance(number, int) and isinstance(time_ns, int) and isinstance(crc, int) and isinstance(body, bytes)):
        return None
    if not (isinstance(record_id, str) and isinstance(key, str) and isinstance(record_type, str)):
        return None
    record = EncodedRecord(record_id, key, record_type, time_ns, body, row=number, state=RecordState.JOURNALED)
    return record if checksum(record) == crc else None


def checksum(record: EncodedRecord) -> int:
    """Return the CRC-32 of a record's body and of its other columns."""
    head = f"{record.id}\n{record.key}\n{record.type}\n{record.time_ns}\n".encode()
    return zlib.crc32(record.body, zlib.crc32(head))


def read_notes(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the values of the notes, by name; damaged ones are left out."""
    notes: dict[str, Any] = {}
    for name, text in db.execute("SELECT name, text FROM notes WHERE name != 'identity'"):
        with contextlib.suppress(ValueError, TypeError):
            notes[str(name)] = json.loads(text)
    return notes


Change = Callable[[sqlite3.Connection], None]
"""A part of a transaction."""

MAX_STATEMENT_BYTES = 1 << 20
"""Limit of the bytes bound to a statement with several rows. sqlite3's statement cache keeps them in memory."""
MAX_ROWS = 64
"""Rows that one statement writes. Each statement costs time: SQLite's thread releases the GIL and, beside a busy event loop, waits up to
5 ms to get it back."""
_INSERT = "INSERT INTO records (queue, id, key, type, time_ns, crc, body) VALUES "
_ROW = "(?, ?, ?, ?, ?, ?, ?)"


def insert(queue: str, records: Sequence[EncodedRecord], rows: list[int]) -> Change:
    """Append records to a queue, and store their notes.

    Args:
        queue: name of the queue.
        records: in order.
        rows: receives the row of each record; valid once the transaction is committed.
    """

    def change(db: sqlite3.Connection) -> None:
        rows.clear()
        size = MAX_ROWS
        while len(rows) < len(records):
            while size > len(records) - len(rows):
                size //= 2  # few sizes make few different statements, and each is prepared only once
            chunk = records[len(rows) : len(rows) + size]
            if size > 1 and size_of(chunk) > MAX_STATEMENT_BYTES:
                size, chunk = 1, chunk[:1]
            values = [v for r in chunk for v in (queue, r.id, r.key, r.type, r.time_ns, checksum(r), r.body)]
            last = db.execute(_INSERT + ", ".join([_ROW] * size), values).lastrowid
            assert last is not None
            rows.extend(range(last - size + 1, last + 1))  # AUTOINCREMENT leaves no gap
        for record in records:
            if record.note is not None:
                upsert_note(record.note)(db)

    return change


def delete(queue: str, after: int, through: int) -> Change:
    """Delete a queue's rows after the row `after`, up to and including the row `through`."""
    return lambda db: _run(db, "DELETE FROM records WHERE queue = ? AND row > ? AND row <= ?", (queue, after, through))


def insert_dead_letter(reason: str, record: EncodedRecord, limit: int) -> Change:
    """Add a dead letter, and keep only the newest `limit` dead letters."""

    def change(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO dead_letters (reason, id, key, type, time_ns, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (reason, record.id, record.key, record.type, record.time_ns, checksum(record), record.body),
        )
        db.execute("DELETE FROM dead_letters WHERE row <= (SELECT max(row) FROM dead_letters) - ?", (limit,))

    return change


def drop_oldest(queue: str, size: int, after: int, through: int, dropped: QueueContents, last_row: list[int]) -> Change:
    """Delete a queue's oldest rows between two rows.

    Args:
        queue: name of the queue.
        size: how many bytes to delete, at least.
        after: the row before the first that may be deleted.
        through: the last row that may be deleted.
        dropped: receives a summary of the deleted rows.
        last_row: receives the last deleted row, if any.
    """

    def change(db: sqlite3.Connection) -> None:
        query = (
            "SELECT row, type, time_ns, length(body), CASE type WHEN ? THEN body END FROM records"
            " WHERE queue = ? AND row > ? AND row <= ? ORDER BY row"
        )
        rows = db.execute(query, (DROP_REPORT_TYPE, queue, after, through))
        for row, record_type, time_ns, length, drop_report in rows:
            dropped.add(record_type, 1, length + OVERHEAD_BYTES, time_ns, time_ns)
            if drop_report is not None:
                dropped.drop_reports.append(drop_report)
            last_row[:] = [row]
            if dropped.bytes >= size:
                break
        rows.close()
        if last_row:
            delete(queue, after, last_row[0])(db)

    return change


def delete_dead_letters() -> Change:
    """Delete all dead letters."""
    return lambda db: _run(db, "DELETE FROM dead_letters", ())


def upsert_note(note: StateNote) -> Change:
    """Store a note, unless a newer one with its name is stored."""
    query = (
        "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET version = excluded.version, text = excluded.text WHERE excluded.version > version"
    )
    return lambda db: _run(db, query, (note.name, note.version, json.dumps(note.value)))


def _run(db: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> None:
    db.execute(sql, values)
