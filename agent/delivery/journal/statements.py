"""Rows of the journal: an entry as a row, with a checksum of ours, and back; and the changes that one transaction is made of."""

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from agent.delivery.drops import DROP_REPORT_TYPE
from agent.delivery.entry import OVERHEAD_BYTES, Entry, QueueContents, StateNote, size_of


def entry_of(row: Sequence[object]) -> Entry | None:
    """Return a row's entry, or None where it is not what was written."""
    number, record_id, key, kind, time_ns, crc, body = row
    if not (isinstance(number, int) and isinstance(time_ns, int) and isinstance(crc, int) and isinstance(body, bytes)):
        return None
    if not (isinstance(record_id, str) and isinstance(key, str) and isinstance(kind, str)):
        return None
    entry = Entry(record_id, key, kind, time_ns, body, row=number)
    return entry if checksum(entry) == crc else None


def checksum(entry: Entry) -> int:
    """Return what tells an entry from a damaged copy of it."""
    head = f"{entry.id}\n{entry.key}\n{entry.type}\n{entry.time_ns}\n".encode()
    return zlib.crc32(entry.body, zlib.crc32(head))


def notes_of(db: sqlite3.Connection) -> dict[str, Any]:
    """Return what was kept by `keep`, by name; what is damaged is left out."""
    notes: dict[str, Any] = {}
    for name, text in db.execute("SELECT name, text FROM notes WHERE name != 'identity'"):
        with contextlib.suppress(ValueError, TypeError):
            notes[str(name)] = json.loads(text)
    return notes


Change = Callable[[sqlite3.Connection], None]

MOST_STATEMENT_BYTES = 1 << 20
"""A statement that is kept for the next keeps what was bound to it, too."""
MOST_ROWS = 64
"""Rows written by one statement. For each statement SQLite's thread lets go of Python and waits to have it again, which a busy loop gives
after 5 ms; and a statement has its own price too."""
_INSERT = "INSERT INTO records (lane, id, key, type, time_ns, crc, body) VALUES "
_ROW = "(?, ?, ?, ?, ?, ?, ?)"


def insert(lane: str, entries: Sequence[Entry], rows: list[int]) -> Change:
    """Append entries to a lane, and keep their notes; `rows` gets where each came to be, which holds once it is committed."""

    def change(db: sqlite3.Connection) -> None:
        rows.clear()
        size = MOST_ROWS
        while len(rows) < len(entries):
            while size > len(entries) - len(rows):
                size //= 2  # so that there are few statements, which are prepared once
            some = entries[len(rows) : len(rows) + size]
            if size > 1 and size_of(some) > MOST_STATEMENT_BYTES:
                size, some = 1, some[:1]
            values = [v for e in some for v in (lane, e.id, e.key, e.type, e.time_ns, checksum(e), e.body)]
            last = db.execute(_INSERT + ", ".join([_ROW] * size), values).lastrowid
            assert last is not None
            rows.extend(range(last - size + 1, last + 1))  # AUTOINCREMENT leaves nothing out
        for entry in entries:
            if entry.note is not None:
                keep(entry.note)(db)

    return change


def delete(lane: str, behind: int, through: int) -> Change:
    """Delete a lane's entries behind a row, up to and with another."""
    return lambda db: _run(db, "DELETE FROM records WHERE lane = ? AND row > ? AND row <= ?", (lane, behind, through))


def bury(reason: str, entry: Entry, most: int) -> Change:
    """Add an entry to the dead ones, of which the newest `most` are kept."""

    def change(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO dead (reason, id, key, type, time_ns, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (reason, entry.id, entry.key, entry.type, entry.time_ns, checksum(entry), entry.body),
        )
        db.execute("DELETE FROM dead WHERE row <= (SELECT max(row) FROM dead) - ?", (most,))

    return change


def drop_oldest(lane: str, size: int, behind: int, through: int, dropped: QueueContents, last: list[int]) -> Change:
    """Delete a lane's oldest entries between two rows until `size` bytes are gone; `dropped` gets what they were, `last` the last row."""

    def change(db: sqlite3.Connection) -> None:
        query = (
            "SELECT row, type, time_ns, length(body), CASE type WHEN ? THEN body END FROM records"
            " WHERE lane = ? AND row > ? AND row <= ? ORDER BY row"
        )
        rows = db.execute(query, (DROP_REPORT_TYPE, lane, behind, through))
        for row, kind, time_ns, length, told in rows:
            dropped.add(kind, 1, length + OVERHEAD_BYTES, time_ns, time_ns)
            if told is not None:
                dropped.told.append(told)
            last[:] = [row]
            if dropped.bytes >= size:
                break
        rows.close()
        if last:
            db.execute("DELETE FROM records WHERE lane = ? AND row > ? AND row <= ?", (lane, behind, last[0]))

    return change


def forget_dead() -> Change:
    """Delete all refused entries."""
    return lambda db: _run(db, "DELETE FROM dead", ())


def keep(note: StateNote) -> Change:
    """Keep a note, unless a younger one of its name is there."""
    query = (
        "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET version = excluded.version, text = excluded.text WHERE excluded.version > version"
    )
    return lambda db: _run(db, query, (note.name, note.version, json.dumps(note.value)))


def _run(db: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> None:
    db.execute(sql, values)
