"""The journal's file: one SQLite database, used from one thread. Everything here blocks.

WAL with synchronous=FULL: what `commit` returned for survives a power cut (SQLite's documentation of `PRAGMA synchronous`). SQLite checks
no checksums of its own pages, so each row carries one of ours, and a row that fails it is counted instead of delivered.
"""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.delivery.entry import OVERHEAD_BYTES, Entry, QueueContents
from agent.delivery.journal.statements import Change, entry_of, notes_of

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
_READ_DEAD = "SELECT reason, row, id, key, type, time_ns, crc, body FROM dead ORDER BY row"


ERRORS = (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)
"""What reading and writing a file raises; the last three when its texts and types, or those of SQLite's own message, are damaged."""


class JournalFault(StrEnum):
    """What is wrong with the file."""

    FULL = "full"
    """The disk is full; later there may be room."""
    UNUSABLE = "unusable"
    """It cannot be opened or written here: no such folder, no permission, read-only, locked by another agent."""
    DAMAGED = "damaged"
    """It is not, or no more, a sound database."""


class JournalError(Exception):
    """The file failed; nothing of the transaction at hand is in it."""

    def __init__(self, fault: JournalFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def _fault(error: Exception) -> JournalError:
    """Say which of SQLite's errors, by its result code (sqlite.org/rescode.html), means what to us."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return JournalError(JournalFault.FULL, "the disk is full")
    if name.startswith(
        ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_AUTH")
    ):
        return JournalError(JournalFault.UNUSABLE, str(error))
    return JournalError(JournalFault.DAMAGED, f"{name or type(error).__name__}: {error}")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Have what reading a file raises told as what is wrong with the file."""
    try:
        yield
    except ERRORS as error:
        raise _fault(error) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that neither waits for locks nor begins transactions by itself."""
    return sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)


def look_into(path: Path) -> sqlite3.Connection:
    """Open a connection that only reads, and makes no file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


class JournalDatabase:
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
        except JournalError:
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
            raise JournalError(JournalFault.DAMAGED, f"the journal is of format {version}; this agent knows {VERSION}")
        (identity,) = db.execute("SELECT text FROM notes WHERE name = 'identity'").fetchone()
        self.identity = str(identity)
        self._find_last(db)

    def _find_last(self, db: sqlite3.Connection) -> None:
        (last,) = db.execute("SELECT max(row) FROM records").fetchone()
        self.last_row = last or 0

    def refresh(self) -> None:
        """Look again for the last row."""
        with _faults():
            self._find_last(self._open())

    def close(self) -> None:
        """Close the file, folding the log into it."""
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:  # what was committed is in the log, and is found at the next start
                return

    def commit(self, changes: Iterable[Change]) -> None:
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
            raise JournalError(JournalFault.DAMAGED, "the file is not where it was any more")

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
        query = f"{_READ} LIMIT {most:d}"
        with _faults(), contextlib.closing(self._open().execute(query, (lane, after))) as rows:
            for row in rows:
                if row[0] <= last:
                    raise JournalError(JournalFault.DAMAGED, f"row {row[0]} stands behind row {last}")
                entry = entry_of(row)
                if entry is not None and entries and size + len(entry.body) > most_bytes:
                    break
                last = row[0]
                if entry is None:
                    bad += 1
                else:
                    size += len(entry.body)
                    entries.append(entry)
        return entries, bad, last

    def dead(self) -> Iterator[tuple[str, Entry]]:
        """Yield the refused entries, each with the reason."""
        with _faults():
            for reason, *row in self._open().execute(_READ_DEAD):
                entry = entry_of(row)
                if entry is not None:
                    yield reason, entry

    def contents(self, lane: str) -> QueueContents:
        """Return what a lane has here."""
        found = QueueContents()
        with _faults():
            rows = self._open().execute(
                "SELECT type, count(*), sum(length(body)), min(time_ns), max(time_ns) FROM records WHERE lane = ? GROUP BY type",
                (lane,),
            )
            for kind, count, size, first, last in rows:
                found.add(str(kind), count, size + count * OVERHEAD_BYTES, first, last)
        return found

    def notes(self) -> dict[str, Any]:
        """Return what was kept by `keep`, by name; what is damaged is left out."""
        with _faults():
            return notes_of(self._open())

    def fold(self) -> None:
        """Bring the log into the file and begin it anew, so that a full disk needs no room for a longer log."""
        with _faults():
            self._open().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(JournalFault.UNUSABLE, "the journal is closed")
        return self._db
