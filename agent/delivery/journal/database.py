"""The journal's file: one SQLite database, used from one thread. Every call blocks.

WAL with synchronous=FULL: once `commit` has returned, its changes survive a power cut (SQLite's documentation of `PRAGMA synchronous`).
SQLite has no checksums of its pages, so each row carries one. A row with a wrong checksum is counted instead of delivered.
"""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.delivery.journal.statements import Change, read_notes, record_of
from agent.delivery.sizes import QueueContents
from agent.model.record import OVERHEAD_BYTES, EncodedRecord

VERSION = 1

Connect = Callable[[Path], sqlite3.Connection]

_SCHEMA = f"""
CREATE TABLE records (row INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE dead_letters (row INTEGER PRIMARY KEY AUTOINCREMENT, reason TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX by_queue ON records (queue, row);
PRAGMA user_version = {VERSION};
"""
_READ = "SELECT row, id, key, type, time_ns, crc, body FROM records WHERE queue = ? AND row > ? ORDER BY row"
_READ_DEAD_LETTERS = "SELECT reason, row, id, key, type, time_ns, crc, body FROM dead_letters ORDER BY row"


ERRORS = (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)
"""Errors of reading and writing a file. Damaged texts and types in the file, or in SQLite's message, cause the last three."""


class JournalFault(StrEnum):
    """Why the journal's file failed."""

    FULL = "full"
    """The disk is full; there may be room later."""
    UNUSABLE = "unusable"
    """The file cannot be opened or written: no such directory, no permission, read-only, locked by another agent."""
    DAMAGED = "damaged"
    """The file is not an intact journal."""


class JournalError(Exception):
    """The file failed; the current transaction is not in it."""

    def __init__(self, fault: JournalFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def fault_of(error: Exception) -> JournalError:
    """Convert an error of SQLite by its result code (sqlite.org/rescode.html)."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_SHM")):  # SHM: no space for the log's shared-memory file
        return JournalError(JournalFault.FULL, "the disk is full")
    if name.startswith(
        ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_AUTH")
    ):
        return JournalError(JournalFault.UNUSABLE, str(error))
    return JournalError(JournalFault.DAMAGED, f"{name or type(error).__name__}: {error}")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Convert errors of SQLite to JournalError."""
    try:
        yield
    except ERRORS as error:
        raise fault_of(error) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that does not wait for locks and starts no transactions implicitly."""
    return sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)


def check_space(error: Exception) -> None:
    """Check whether a full disk, not a damaged file, caused an error.

    Raises:
        JournalError: the disk is full.
    """
    fault = fault_of(error)
    if fault.fault is JournalFault.FULL:
        raise fault from error


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open a connection that only reads and creates no file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


class JournalDatabase:
    """An open journal file. Every method raises JournalError when the file fails, and leaves no transaction open."""

    def __init__(self, path: Path, connect: Connect = connect, *, readonly: bool = False) -> None:
        """Open or create the file.

        Args:
            path: the file.
            connect: opens a connection.
            readonly: True to change nothing; the file must exist.

        Raises:
            JournalError: the file cannot be opened, or is not an intact journal.
        """
        self.path = path
        self.identity = ""
        """Distinguishes this file from another at the same path."""
        self.last_row = 0
        """The last row when the file was opened or refreshed."""
        self._db: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        try:
            self._db = connect(path)
            if not readonly:
                self._prepare(self._db)
            self._check(self._db)
            self._file_id = self._current_file_id()
        except ERRORS as error:
            self.close()
            raise fault_of(error) from error
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
            db.execute("UPDATE notes SET version = 0 WHERE version > 0")  # versions start at 1 in each run
            db.execute("DELETE FROM notes WHERE text = 'null'")

    def _check(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise JournalError(
                JournalFault.DAMAGED, f"the journal has format {version}; this agent reads format {VERSION}"
            )
        (identity,) = db.execute("SELECT text FROM notes WHERE name = 'identity'").fetchone()
        self.identity = str(identity)
        self._find_last(db)

    def _find_last(self, db: sqlite3.Connection) -> None:
        (last,) = db.execute("SELECT max(row) FROM records").fetchone()
        self.last_row = last or 0

    def refresh(self) -> None:
        """Read `last_row` again."""
        with _faults():
            self._find_last(self._open())

    def close(self) -> None:
        """Close the file; SQLite checkpoints the write-ahead log into it."""
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:  # committed transactions are in the log; the next start reads them
                return

    def commit(self, changes: Iterable[Change]) -> None:
        """Apply changes in one transaction, which is on disk when this returns."""
        db = self._open()
        try:
            db.execute("BEGIN IMMEDIATE")
            for change in changes:
                change(db)
            db.execute("COMMIT")
        except ERRORS as error:
            self._roll_back(db)
            raise fault_of(error) from error
        if self._current_file_id() != self._file_id:
            raise JournalError(JournalFault.DAMAGED, "the file was removed or replaced")

    def _current_file_id(self) -> tuple[int, int] | None:
        """Return device and inode of the file at the path; None if there is none. SQLite goes on writing to a removed file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _roll_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def read(self, queue: str, after: int, max_records: int, max_bytes: int) -> tuple[list[EncodedRecord], int, int]:
        """Read a queue's oldest records after a row.

        Args:
            queue: name of the queue.
            after: the row.
            max_records: how many to read at most.
            max_bytes: bytes of bodies to read at most; the first record is read whatever its size.

        Returns:
            the intact records, the number of rows with a wrong checksum, and the last row that was read (`after` if none).
        """
        records: list[EncodedRecord] = []
        corrupt, size, last = 0, 0, after
        query = f"{_READ} LIMIT {max_records:d}"
        with _faults(), contextlib.closing(self._open().execute(query, (queue, after))) as rows:
            for row in rows:
                if row[0] <= last:
                    raise JournalError(JournalFault.DAMAGED, f"row {row[0]} follows row {last}")
                record = record_of(row)
                if record is not None and records and size + len(record.body) > max_bytes:
                    break
                last = row[0]
                if record is None:
                    corrupt += 1
                else:
                    size += len(record.body)
                    records.append(record)
        return records, corrupt, last

    def dead_letters(self) -> Iterator[tuple[str, EncodedRecord]]:
        """Yield the dead letters, each with the reason."""
        with _faults():
            for reason, *row in self._open().execute(_READ_DEAD_LETTERS):
                record = record_of(row)
                if record is not None:
                    yield reason, record

    def contents(self, queue: str) -> QueueContents:
        """Return a summary of a queue's rows in the file."""
        contents = QueueContents()
        with _faults():
            rows = self._open().execute(
                "SELECT type, count(*), sum(length(body)), min(time_ns), max(time_ns) FROM records WHERE queue = ? GROUP BY type",
                (queue,),
            )
            for record_type, count, size, first, last in rows:
                contents.add(str(record_type), count, size + count * OVERHEAD_BYTES, first, last)
        return contents

    def notes(self) -> dict[str, Any]:
        """Return the values of the notes, by name; damaged ones are left out."""
        with _faults():
            return read_notes(self._open())

    def checkpoint(self) -> None:
        """Checkpoint the write-ahead log and restart it: the next writes reuse its space, which helps on a full disk."""
        with _faults():
            self._open().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(JournalFault.UNUSABLE, "the journal is closed")
        return self._db
