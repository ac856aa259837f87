"""The journal's file: one SQLite database, used from one thread. Everything here blocks.

WAL with synchronous=FULL: what `commit` returned for survives a power cut (SQLite's documentation of `PRAGMA synchronous`). SQLite checks
no checksums of its own pages, so each row carries one of ours, and a row that fails it is counted instead of delivered.
"""

import contextlib
import json
import secrets
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from agent.delivery.drops import TELLING
from agent.delivery.entry import OVERHEAD_BYTES, Entry, Note

VERSION = 1

Connect = Callable[[Path], sqlite3.Connection]

_SCHEMA = f"""
CREATE TABLE records (row INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE dead (row INTEGER PRIMARY KEY AUTOINCREMENT, reason TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX by_lane ON records (lane, row);
PRAGMA user_version = {VERSION};
"""
_READ = "SELECT row, id, key, type, time_ns, crc, body FROM records WHERE lane = ? AND row > ? ORDER BY row"
# By the table alone: its index may be what is damaged.
_SALVAGE = "SELECT row, id, key, type, time_ns, crc, body FROM records NOT INDEXED WHERE lane = ? ORDER BY row"
_LISTED = "SELECT row FROM records INDEXED BY by_lane WHERE lane = ? ORDER BY row"
_READ_DEAD = "SELECT reason, row, id, key, type, time_ns, crc, body FROM dead ORDER BY row"


ERRORS = (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)
"""What reading and writing a file raises; the last three when its texts and types, or those of SQLite's own message, are damaged."""


class Fault(StrEnum):
    """What is wrong with the file."""

    FULL = "full"
    """The disk is full; later there may be room."""
    UNUSABLE = "unusable"
    """It cannot be opened or written here: no such folder, no permission, read-only, locked by another agent."""
    DAMAGED = "damaged"
    """It is not, or no more, a sound database."""


class StoreError(Exception):
    """The file failed; nothing of the transaction at hand is in it."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def _fault(error: Exception) -> StoreError:
    """Say which of SQLite's errors, by its result code (sqlite.org/rescode.html), means what to us."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return StoreError(Fault.FULL, "the disk is full")
    if name.startswith(
        ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_AUTH")
    ):
        return StoreError(Fault.UNUSABLE, str(error))
    return StoreError(Fault.DAMAGED, f"{name or type(error).__name__}: {error}")


Body = bytes
"""A record's bytes, by a name that `Contents` has not another meaning for."""


@dataclass(slots=True)
class Contents:
    """What a lane has in the file.

    Attributes:
        records: how many.
        bytes: what they count against the budget.
        first_ns, last_ns: when the oldest and the newest were seen, nanoseconds since the epoch.
        types: how many of each type.
        told: of what is dropped, the bodies of those that told of losses.
    """

    records: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    types: dict[str, int] = field(default_factory=dict)
    told: list[Body] = field(default_factory=list)

    def add(self, kind: str, records: int, size: int, first_ns: int, last_ns: int) -> None:
        """Count some more of one type."""
        self.types[kind] = self.types.get(kind, 0) + records
        self.records += records
        self.bytes += size
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that neither waits for locks nor begins transactions by itself."""
    return sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)


class Store:
    """An open journal file. Every method raises StoreError when the file fails, and leaves no transaction open."""

    def __init__(self, path: Path, connect: Connect = connect, *, readonly: bool = False) -> None:
        """Open the file, or make it; `readonly` only looks.

        Raises:
            StoreError: it cannot be opened, or is not a sound journal.
        """
        self.path = path
        self.identity = ""
        """What tells this file from another at the same path."""
        self.last_row = 0
        """The last row there was when it was opened or refreshed."""
        self._db: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        try:
            self._db = connect(path)
            if not readonly:
                self._prepare(self._db)
            self._check(self._db)
            self._place = self._look()
        except ERRORS as error:
            self.close()
            raise _fault(error) from error
        except StoreError:
            self.close()
            raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            self.path.chmod(0o640)
        if version in (0, VERSION):
            db.execute("INSERT OR IGNORE INTO notes VALUES ('identity', 0, ?)", (json.dumps(secrets.token_hex(8)),))
            db.execute("UPDATE notes SET version = 0 WHERE version > 0")  # versions count anew in each run
            db.execute("DELETE FROM notes WHERE text = 'null'")

    def _check(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise StoreError(Fault.DAMAGED, f"the journal is of format {version}; this agent knows {VERSION}")
        (identity,) = db.execute("SELECT text FROM notes WHERE name = 'identity'").fetchone()
        self.identity = str(identity)
        self._find_last(db)

    def _find_last(self, db: sqlite3.Connection) -> None:
        (last,) = db.execute("SELECT max(row) FROM records").fetchone()
        self.last_row = last or 0

    def refresh(self) -> None:
        """Look again for the last row."""
        try:
            self._find_last(self._open())
        except ERRORS as error:
            raise _fault(error) from error

    def close(self) -> None:
        """Close the file, folding the log into it."""
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:  # what was committed is in the log, and is found at the next start
                return

    def commit(self, changes: Iterable[Callable[[sqlite3.Connection], None]]) -> None:
        """Apply changes in one transaction, on disk when this returns."""
        db = self._open()
        try:
            db.execute("BEGIN IMMEDIATE")
            for change in changes:
                change(db)
            db.execute("COMMIT")
        except ERRORS as error:
            self._roll_back(db)
            raise _fault(error) from error
        if self._look() != self._place:
            raise StoreError(Fault.DAMAGED, "the file is not where it was any more")

    def _look(self) -> tuple[int, int] | None:
        """Return what tells which file is at the path; None where none is. SQLite writes on into one that was removed."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _roll_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def read(self, lane: str, after: int, most: int, most_bytes: int) -> tuple[list[Entry], int, int]:
        """Read a lane's oldest entries behind a row.

        Returns:
            the sound entries, how many were not sound, and the last row looked at (`after` where there is none).
        """
        entries: list[Entry] = []
        bad, size, last = 0, 0, after
        try:
            with contextlib.closing(self._open().execute(f"{_READ} LIMIT {most:d}", (lane, after))) as rows:
                for row in rows:
                    if row[0] <= last:
                        raise StoreError(Fault.DAMAGED, f"row {row[0]} stands behind row {last}")
                    entry = _entry(row)
                    if entry is not None and entries and size + len(entry.body) > most_bytes:
                        break
                    last = row[0]
                    if entry is None:
                        bad += 1
                    else:
                        size += len(entry.body)
                        entries.append(entry)
        except ERRORS as error:
            raise _fault(error) from error
        return entries, bad, last

    def dead(self) -> Iterator[tuple[str, Entry]]:
        """Yield the refused entries, each with the reason."""
        try:
            for reason, *row in self._open().execute(_READ_DEAD):
                entry = _entry(tuple(row))
                if entry is not None:
                    yield reason, entry
        except ERRORS as error:
            raise _fault(error) from error

    def contents(self, lane: str) -> Contents:
        """Return what a lane has here."""
        try:
            rows = self._open().execute(
                "SELECT type, count(*), sum(length(body)), min(time_ns), max(time_ns) FROM records WHERE lane = ? GROUP BY type",
                (lane,),
            )
            found = Contents()
            for kind, count, size, first, last in rows:
                found.add(str(kind), count, size + count * OVERHEAD_BYTES, first, last)
        except ERRORS as error:
            raise _fault(error) from error
        return found

    def notes(self) -> dict[str, Any]:
        """Return what was kept by `keep`, by name; what is damaged is left out."""
        try:
            return _notes(self._open())
        except ERRORS as error:
            raise _fault(error) from error

    def fold(self) -> None:
        """Bring the log into the file and begin it anew, so that a full disk needs no room for a longer log."""
        try:
            self._open().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except ERRORS as error:
            raise _fault(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(Fault.UNUSABLE, "the journal is closed")
        return self._db


def _notes(db: sqlite3.Connection) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    for name, text in db.execute("SELECT name, text FROM notes WHERE name != 'identity'"):
        with contextlib.suppress(ValueError, TypeError):
            notes[str(name)] = json.loads(text)
    return notes


def _entry(row: Sequence[object]) -> Entry | None:
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


# Changes, for `Store.commit`.

Change = Callable[[sqlite3.Connection], None]


def insert(lane: str, entries: Sequence[Entry], rows: list[int]) -> Change:
    """Append entries to a lane, and keep their notes; `rows` gets where each came to be, which holds once it is committed."""

    def change(db: sqlite3.Connection) -> None:
        rows.clear()
        for entry in entries:
            cursor = db.execute(
                "INSERT INTO records (lane, id, key, type, time_ns, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (lane, entry.id, entry.key, entry.type, entry.time_ns, checksum(entry), entry.body),
            )
            assert cursor.lastrowid is not None
            rows.append(cursor.lastrowid)
            if entry.note is not None:
                keep(entry.note)(db)

    return change


def delete(lane: str, behind: int, through: int) -> Change:
    """Delete a lane's entries behind a row, up to and with another."""
    return lambda db: _run(db, "DELETE FROM records WHERE lane = ? AND row > ? AND row <= ?", (lane, behind, through))


def bury(reason: str, entries: Sequence[Entry], most: int) -> Change:
    """Add entries to the dead ones, of which the newest `most` are kept."""

    def change(db: sqlite3.Connection) -> None:
        db.executemany(
            "INSERT INTO dead (reason, id, key, type, time_ns, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(reason, e.id, e.key, e.type, e.time_ns, checksum(e), e.body) for e in entries],
        )
        db.execute("DELETE FROM dead WHERE row <= (SELECT max(row) FROM dead) - ?", (most,))

    return change


def drop_oldest(lane: str, size: int, behind: int, through: int, dropped: Contents, last: list[int]) -> Change:
    """Delete a lane's oldest entries between two rows until `size` bytes are gone; `dropped` gets what they were, `last` the last row."""

    def change(db: sqlite3.Connection) -> None:
        query = (
            "SELECT row, type, time_ns, length(body), CASE type WHEN ? THEN body END FROM records"
            " WHERE lane = ? AND row > ? AND row <= ? ORDER BY row"
        )
        rows = db.execute(query, (TELLING, lane, behind, through))
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


def keep(note: Note) -> Change:
    """Keep a note, unless a younger one of its name is there."""
    query = (
        "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET version = excluded.version, text = excluded.text WHERE excluded.version > version"
    )
    return lambda db: _run(db, query, (note.name, note.version, json.dumps(note.value)))


def _run(db: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> None:
    db.execute(sql, values)


# A damaged file.

LOGS = ("-wal", "-shm")
"""What SQLite puts beside a file, by the ends of their names."""


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file and its log, keeping their names as beginnings; return the new name, or None where there is no file.

    Raises:
        StoreError: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        _rename(path, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            Fault.UNUSABLE, f"it is damaged, and cannot be set aside as {aside.name}: {error.strerror}"
        ) from error
    return aside


def put_back(aside: Path, path: Path) -> None:
    """Undo `set_aside`, as far as that can be done."""
    with contextlib.suppress(OSError):
        for end in LOGS:
            path.with_name(path.name + end).unlink(missing_ok=True)
        _rename(aside, path)


def _rename(path: Path, to: Path) -> None:
    path.rename(to)
    for end in LOGS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(to.with_name(to.name + end))


def salvage(path: Path, lanes: Sequence[str]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield, lane by lane and in order, what can still be read of a file: up to the damage, and from the end back to it."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except ERRORS:
        return
    try:
        for lane in lanes:
            seen = set[str]()
            for chunk in _chunks(_sound(db, _SALVAGE, lane, seen)):
                yield lane, chunk
            behind = list(islice(_sound(db, f"{_SALVAGE} DESC", lane, seen), SALVAGE_BEHIND))
            if behind:
                yield lane, behind[::-1]
    finally:
        db.close()


def listed(path: Path, lane: str) -> int:
    """Return how many entries the index says a lane has, as far as it can be read: it lies in other pages than the entries do."""
    rows = set[int]()
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for query in (_LISTED, f"{_LISTED} DESC"):
                with contextlib.suppress(*ERRORS):
                    for (row,) in db.execute(query, (lane,)):
                        if row in rows:
                            break
                        rows.add(row)
    except ERRORS:
        return 0
    return len(rows)


def salvage_notes(path: Path) -> dict[str, Any]:
    """Return the notes that can still be read of a file."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return _notes(db)
    except ERRORS:
        return {}


SALVAGE_BEHIND = 100_000
"""How many entries behind a damage are brought back; they have to be held in memory to be put in order."""


def _sound(db: sqlite3.Connection, query: str, lane: str, seen: set[str]) -> Iterator[Entry]:
    """Yield a lane's sound entries until the file can be read no further, or to one that was seen."""
    try:
        for row in db.execute(query, (lane,)):
            entry = _entry(row)
            if entry is None:
                continue
            if entry.id in seen:
                return
            seen.add(entry.id)
            yield entry
    except ERRORS:
        return


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while chunk := list(islice(entries, 500)):
        yield chunk
