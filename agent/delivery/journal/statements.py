"""The journal's SQL statements. Most functions return a change: a function that a transaction calls to execute the statements."""

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from agent.delivery.drops import DROP_REPORT_TYPE
from agent.delivery.sizes import RowsSummary, total_bytes_with_overhead
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import RECORD_OVERHEAD_BYTES, EncodedRecord, RecordDeliveryState


def record_from_row(row: Sequence[object]) -> EncodedRecord | None:
    """Return the record of a row; None if a column has a wrong type or if the checksum does not match."""
    number, record_id, key, record_type, time_ns, crc, body = row
    if not (isinstance(number, int) and isinstance(time_ns, int) and isinstance(crc, int) and isinstance(body, bytes)):
        return None
    if not (isinstance(record_id, str) and isinstance(key, str) and isinstance(record_type, str)):
        return None
    record = EncodedRecord(
        record_id, key, record_type, time_ns, body, row=number, delivery_state=RecordDeliveryState.JOURNALED
    )
    return record if checksum(record) == crc else None


def checksum(record: EncodedRecord) -> int:
    """Return the CRC-32 of a record's id, key, type, time and body."""
    head = f"{record.id}\n{record.key}\n{record.type}\n{record.time_ns}\n".encode()
    return zlib.crc32(record.body, zlib.crc32(head))


def read_persistent_entries(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the values of the persistent entries, by name. Leave out values that are not valid JSON."""
    entries: dict[str, Any] = {}
    for name, text in db.execute("SELECT name, text FROM entries WHERE name != 'identity'"):
        with contextlib.suppress(ValueError, TypeError):
            entries[str(name)] = json.loads(text)
    return entries


JournalChange = Callable[[sqlite3.Connection], None]
"""Executes the statements of one change inside a transaction that is already open."""

MAX_STATEMENT_BYTES = 1 << 20
"""Maximum bytes of the values in a statement that writes several rows, because sqlite3's statement cache keeps these values in memory."""
MAX_STATEMENT_ROWS = 512
"""Maximum number of rows that one statement writes. Few large statements are faster than many small statements.

The journal's thread releases the GIL during each statement, and then waits up to 5 ms for the GIL if the event loop is busy.
"""
_INSERT = "INSERT INTO records (queue, id, key, type, time_ns, crc, body) VALUES "
_ROW = "(?, ?, ?, ?, ?, ?, ?)"
_INSERT_ENTRIES = "INSERT INTO entries VALUES "
_ENTRY = "(?, ?, ?)"
_UNLESS_OLDER = " ON CONFLICT (name) DO UPDATE SET version = excluded.version, text = excluded.text WHERE excluded.version > version"


def insert_records(queue: str, records: Sequence[EncodedRecord], rows: list[int]) -> JournalChange:
    """Return a change that appends records to a queue, and stores the persistent entries that belong to the records.

    Args:
        queue: name of the queue.
        records: the records, oldest first.
        rows: receives the number of each record's row; valid once the transaction is committed.
    """

    def change(db: sqlite3.Connection) -> None:
        rows.clear()
        size = MAX_STATEMENT_ROWS
        while len(rows) < len(records):
            while size > len(records) - len(rows):
                size //= 2  # only powers of two, so that SQLite prepares few different statements
            chunk = records[len(rows) : len(rows) + size]
            while size > 1 and total_bytes_with_overhead(chunk) > MAX_STATEMENT_BYTES:
                size //= 2
                chunk = chunk[:size]
            values = [v for r in chunk for v in (queue, r.id, r.key, r.type, r.time_ns, checksum(r), r.body)]
            last = db.execute(_INSERT + ", ".join([_ROW] * size), values).lastrowid
            assert last is not None
            rows.extend(range(last - size + 1, last + 1))  # valid because AUTOINCREMENT leaves no gap
        for record in records:
            if record.persistent_entry is not None:
                upsert_entry(record.persistent_entry)(db)

    return change


def delete_row_range(queue: str, after_row: int, last_row: int) -> JournalChange:
    """Return a change that deletes a queue's rows after `after_row`, up to and including `last_row`."""
    return lambda db: _execute(
        db, "DELETE FROM records WHERE queue = ? AND row > ? AND row <= ?", (queue, after_row, last_row)
    )


def delete_all_rows_after(row: int) -> JournalChange:
    """Return a change that deletes the rows of all queues after a row."""
    return lambda db: _execute(db, "DELETE FROM records WHERE row > ?", (row,))


def insert_dead_letter(reason: str, record: EncodedRecord, limit: int) -> JournalChange:
    """Return a change that adds a dead letter and keeps only the newest `limit` dead letters."""

    def change(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO dead_letters (reason, id, key, type, time_ns, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (reason, record.id, record.key, record.type, record.time_ns, checksum(record), record.body),
        )
        db.execute("DELETE FROM dead_letters WHERE row <= (SELECT max(row) FROM dead_letters) - ?", (limit,))

    return change


def delete_oldest_rows(
    queue: str, size: int, after_row: int, through_row: int, deleted: RowsSummary, last_row: list[int]
) -> JournalChange:
    """Return a change that deletes the oldest rows of a queue, within a range of rows.

    Args:
        queue: name of the queue.
        size: minimum number of bytes to delete.
        after_row: the row before the first row that may be deleted.
        through_row: the last row that may be deleted.
        deleted: receives a summary of the deleted rows.
        last_row: receives the number of the last deleted row; stays empty if no row is deleted.
    """

    def change(db: sqlite3.Connection) -> None:
        query = (
            "SELECT row, type, time_ns, length(body), CASE type WHEN ? THEN body END FROM records"
            " WHERE queue = ? AND row > ? AND row <= ? ORDER BY row"
        )
        rows = db.execute(query, (DROP_REPORT_TYPE, queue, after_row, through_row))
        for row, record_type, time_ns, length, drop_report in rows:
            deleted.add_records_of_type(record_type, 1, length + RECORD_OVERHEAD_BYTES, time_ns, time_ns)
            if drop_report is not None:
                deleted.drop_reports.append(drop_report)
            last_row[:] = [row]
            if deleted.bytes >= size:
                break
        rows.close()
        if last_row:
            delete_row_range(queue, after_row, last_row[0])(db)

    return change


def delete_dead_letters() -> JournalChange:
    """Return a change that deletes all dead letters."""
    return lambda db: _execute(db, "DELETE FROM dead_letters", ())


def upsert_entry(entry: PersistentEntry) -> JournalChange:
    """Return a change that stores a persistent entry, unless the table has a newer entry of the same name."""
    return upsert_entries((entry,))


def upsert_entries(entries: Sequence[PersistentEntry]) -> JournalChange:
    """Return a change that stores persistent entries, unless the table has a newer entry of the same name.

    Args:
        entries: the entries. If several entries have one name, the newest of these entries comes last.
    """

    def change(db: sqlite3.Connection) -> None:
        for start in range(0, len(entries), MAX_STATEMENT_ROWS):
            chunk = entries[start : start + MAX_STATEMENT_ROWS]
            values = [value for entry in chunk for value in (entry.name, entry.version, json.dumps(entry.value))]
            db.execute(_INSERT_ENTRIES + ", ".join([_ENTRY] * len(chunk)) + _UNLESS_OLDER, values)

    return change


def _execute(db: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> None:
    db.execute(sql, values)
