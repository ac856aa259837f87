"""The journal's file: one SQLite database, which one thread uses. Every call blocks.

The database is in WAL mode with synchronous=FULL, so a committed transaction survives a power cut (see SQLite's documentation of
`PRAGMA synchronous`). SQLite has no checksums of its pages, so each row has a checksum. A record with a wrong checksum is not delivered,
but counted as dropped.
"""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.delivery.journal.statements import JournalChange, read_persistent_entries, record_from_row
from agent.delivery.sizes import RowsSummary
from agent.model.record import RECORD_OVERHEAD_BYTES, EncodedRecord

FORMAT_VERSION = 1
"""Version of the tables. The file contains the version as SQLite's user_version."""

OpenDatabase = Callable[[Path], sqlite3.Connection]
"""Opens the database file at a path. Tests pass another function, to make the disk fail."""

_SCHEMA = f"""
CREATE TABLE records (row INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE dead_letters (row INTEGER PRIMARY KEY AUTOINCREMENT, reason TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL, time_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE entries (name TEXT PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX by_queue ON records (queue, row);
PRAGMA user_version = {FORMAT_VERSION};
"""
_READ = "SELECT row, id, key, type, time_ns, crc, body FROM records WHERE queue = ? AND row > ? ORDER BY row"
_READ_DEAD_LETTERS = "SELECT reason, row, id, key, type, time_ns, crc, body FROM dead_letters ORDER BY row"


DATABASE_ERRORS = (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)
"""Errors of reading and writing a database. A damaged file can cause the last three errors by values of wrong types."""


class JournalFaultKind(StrEnum):
    """Why the journal's file failed."""

    FULL = "full"
    """The disk is full. Writes may succeed later."""
    UNUSABLE = "unusable"
    """The file cannot be opened or written. Causes are a missing directory or permission, a read-only file system, or another agent."""
    DAMAGED = "damaged"
    """The file is not an intact journal."""


class JournalError(Exception):
    """The journal's file failed. The current transaction was rolled back."""

    def __init__(self, fault: JournalFaultKind, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def to_journal_error(error: Exception) -> JournalError:
    """Return the JournalError for an error of SQLite, by SQLite's result code (sqlite.org/rescode.html)."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_SHM")):  # SHM: no space for the log's shared-memory file
        return JournalError(JournalFaultKind.FULL, "the disk is full")
    if name.startswith(
        ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_AUTH")
    ):
        return JournalError(JournalFaultKind.UNUSABLE, str(error))
    return JournalError(JournalFaultKind.DAMAGED, f"{name or type(error).__name__}: {error}")


@contextlib.contextmanager
def _convert_sqlite_errors() -> Iterator[None]:
    """Replace an error of SQLite by a JournalError."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise to_journal_error(error) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that fails at once if the file is locked, and that starts a transaction only at `BEGIN`."""
    return sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)


def raise_if_disk_full(error: Exception) -> None:
    """Raise JournalError if a full disk caused an error of SQLite. Ignore an error with another cause, such as a damaged file.

    Raises:
        JournalError: the disk is full.
    """
    journal_error = to_journal_error(error)
    if journal_error.fault is JournalFaultKind.FULL:
        raise journal_error from error


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open a connection that only reads and creates no file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


class JournalDatabase:
    """An open journal file. Every method rolls back its transaction and raises JournalError if the file fails."""

    def __init__(self, path: Path, connect: OpenDatabase = connect, *, readonly: bool = False) -> None:
        """Open or create the file.

        Args:
            path: the file.
            connect: opens the database.
            readonly: True to open an existing file without changing it.

        Raises:
            JournalError: the file cannot be opened, or is not an intact journal.
        """
        self.path = path
        self.identity = ""
        """Random text in the file, by which the agent detects another file at the same path."""
        self.last_row = 0
        """Number of the last row, read when the file was opened and at each call of `reread_last_row_number`."""
        self._db: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        try:
            self._db = connect(path)
            if not readonly:
                self._create_tables(self._db)
            self._check_format(self._db)
            self._file_id = self._current_file_id()
        except DATABASE_ERRORS as error:
            self.close()
            raise to_journal_error(error) from error
        except JournalError:
            self.close()
            raise

    def _create_tables(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            self.path.chmod(0o640)
        if version in (0, FORMAT_VERSION):
            db.execute("INSERT OR IGNORE INTO entries VALUES ('identity', 0, ?)", (json.dumps(secrets.token_hex(8)),))
            db.execute("UPDATE entries SET version = 0 WHERE version > 0")  # versions start at 1 in each run
            db.execute("DELETE FROM entries WHERE text = 'null'")

    def _check_format(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != FORMAT_VERSION:
            raise JournalError(
                JournalFaultKind.DAMAGED, f"the journal has format {version}; this agent reads format {FORMAT_VERSION}"
            )
        (identity,) = db.execute("SELECT text FROM entries WHERE name = 'identity'").fetchone()
        self.identity = str(identity)
        self._read_last_row(db)

    def _read_last_row(self, db: sqlite3.Connection) -> None:
        (last,) = db.execute("SELECT max(row) FROM records").fetchone()
        self.last_row = last or 0

    def reread_last_row_number(self) -> None:
        """Read `last_row` from the file."""
        with _convert_sqlite_errors():
            self._read_last_row(self._require_connection())

    def close(self) -> None:
        """Close the file. SQLite first copies the changes in the write-ahead log into the file."""
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:  # committed transactions are in the log, and the next start reads the log
                return

    def commit(self, changes: Iterable[JournalChange]) -> None:
        """Execute changes in one transaction. The transaction is on disk when the call returns."""
        db = self._require_connection()
        try:
            db.execute("BEGIN IMMEDIATE")
            for change in changes:
                change(db)
            db.execute("COMMIT")
        except DATABASE_ERRORS as error:
            self._roll_back(db)
            raise to_journal_error(error) from error
        if self._current_file_id() != self._file_id:
            raise JournalError(JournalFaultKind.DAMAGED, "the file was removed or replaced")

    def _current_file_id(self) -> tuple[int, int] | None:
        """Return device and inode of the file at the path; None if no file exists. SQLite does not detect that its file was removed."""
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

    def read_records(
        self, queue: str, after_row: int, max_records: int, max_bytes: int
    ) -> tuple[list[EncodedRecord], int, int]:
        """Read the oldest records of a queue that follow a row.

        Args:
            queue: name of the queue.
            after_row: the row before the first row to read.
            max_records: maximum number of records to read.
            max_bytes: maximum number of bytes of bodies to read. The first record is read even if it is larger.

        Returns:
            the intact records, the number of rows with a wrong checksum, and the last row that was read (`after_row` if no row was read).
        """
        records: list[EncodedRecord] = []
        corrupt, size, last_row = 0, 0, after_row
        query = f"{_READ} LIMIT {max_records:d}"
        with (
            _convert_sqlite_errors(),
            contextlib.closing(self._require_connection().execute(query, (queue, after_row))) as rows,
        ):
            for row in rows:
                if row[0] <= last_row:
                    raise JournalError(JournalFaultKind.DAMAGED, f"row {row[0]} follows row {last_row}")
                record = record_from_row(row)
                if record is not None and records and size + len(record.body) > max_bytes:
                    break
                last_row = row[0]
                if record is None:
                    corrupt += 1
                else:
                    size += len(record.body)
                    records.append(record)
        return records, corrupt, last_row

    def dead_letters(self) -> Iterator[tuple[str, EncodedRecord]]:
        """Yield the reason and the record of each dead letter, oldest first. Leave out rows with a wrong checksum."""
        with _convert_sqlite_errors():
            for reason, *row in self._require_connection().execute(_READ_DEAD_LETTERS):
                record = record_from_row(row)
                if record is not None:
                    yield reason, record

    def summarize_rows(self, queue: str) -> RowsSummary:
        """Return a summary of a queue's rows in the file."""
        summary = RowsSummary()
        with _convert_sqlite_errors():
            rows = self._require_connection().execute(
                "SELECT type, count(*), sum(length(body)), min(time_ns), max(time_ns) FROM records WHERE queue = ? GROUP BY type",
                (queue,),
            )
            for record_type, count, size, first, last in rows:
                summary.add_records_of_type(str(record_type), count, size + count * RECORD_OVERHEAD_BYTES, first, last)
        return summary

    def persistent_entries(self) -> dict[str, Any]:
        """Return the values of the persistent entries, by name. Leave out values that are not valid JSON."""
        with _convert_sqlite_errors():
            return read_persistent_entries(self._require_connection())

    def checkpoint(self) -> None:
        """Checkpoint and restart the write-ahead log. Later writes reuse the log's space, and so can succeed on a full disk."""
        with _convert_sqlite_errors():
            self._require_connection().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _require_connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(JournalFaultKind.UNUSABLE, "the journal is closed")
        return self._db
