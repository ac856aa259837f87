"""Faulty disks for the journal: SQLite connections that hang or fail at a chosen statement, and small file systems."""

import contextlib
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from agent.delivery.journal.database import OpenDatabase

T = TypeVar("T")

Hook = Callable[[str], None]
"""Called with the SQL of a statement; it may block or raise."""
_OPTIONS: Final[dict[str, Any]] = {"timeout": 0.0, "isolation_level": None, "check_same_thread": False}


def connect_with_hooks(before: Hook, after: Hook = lambda _: None) -> OpenDatabase:
    """Return a function that opens an SQLite connection whose statements call two hooks.

    Args:
        before: called with the SQL before each statement, and before each row of the statement's result is read.
        after: called with the SQL after each of these.
    """

    class Cursor(sqlite3.Cursor):
        sql = ""

        def execute(self, sql: str, parameters: Any = (), /) -> Any:
            self.sql = sql
            return self._around(lambda: super(Cursor, self).execute(sql, parameters))

        def executemany(self, sql: str, parameters: Any, /) -> Any:
            self.sql = sql
            return self._around(lambda: super(Cursor, self).executemany(sql, parameters))

        def executescript(self, sql: str, /) -> Any:
            self.sql = sql
            return self._around(lambda: super(Cursor, self).executescript(sql))

        def __next__(self) -> Any:
            return self._around(super().__next__)

        def _around(self, call: Callable[[], T]) -> T:
            before(self.sql)
            result = call()
            try:
                after(self.sql)
            except sqlite3.Error:
                self.close()  # SQLite also resets a statement that fails
                raise
            return result

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            return self.cursor(Cursor).execute(*args)

        def executemany(self, *args: Any) -> Any:
            return self.cursor(Cursor).executemany(*args)

        def executescript(self, *args: Any) -> Any:
            return self.cursor(Cursor).executescript(*args)

    return lambda path: sqlite3.connect(path, factory=Connection, **_OPTIONS)


class HangingDisk:
    """A disk whose commits hang until `release`.

    Attributes:
        hanging: whether commits hang.
        begun: set when a commit begins to hang.
        prefix: statements that begin with this text hang.
    """

    def __init__(self) -> None:
        self.hanging = False
        self.prefix = "COMMIT"
        self.begun = threading.Event()
        self._released = threading.Event()
        self.connect = connect_with_hooks(self._before)

    def connect_after_release(self, path: Path) -> sqlite3.Connection:
        """Wait until `release` is called, and open a connection."""
        self._released.wait(120)
        return self.connect(path)

    def release(self) -> None:
        """Let the hanging commit continue. Later commits do not hang."""
        self._released.set()

    def _before(self, sql: str) -> None:
        if self.hanging and sql.startswith(self.prefix):
            self.begun.set()
            self._released.wait(120)


def sqlite_error(name: str) -> sqlite3.OperationalError:
    """Return the exception that Python's sqlite3 raises for a result code, such as `SQLITE_FULL`."""
    error = sqlite3.OperationalError(f"scripted {name}")
    error.sqlite_errorname = name
    return error


class FailingDisk:
    """A disk that fails with one of SQLite's result codes.

    Attributes:
        error_name: name of the result code; None while the disk works.
        prefix: statements that begin with this text fail.
    """

    def __init__(self, prefix: str = "") -> None:
        self.error_name: str | None = None
        self.prefix = prefix
        self.connect = connect_with_hooks(self._before)

    def _before(self, sql: str) -> None:
        if self.error_name is not None and sql.startswith(self.prefix):
            raise sqlite_error(self.error_name)


class FailsOnce:
    """A disk that fails exactly once.

    Attributes:
        calls: number of calls of SQLite so far.
        failed: the SQL of the failed call.
    """

    def __init__(self, error_name: str, at: int, *, after: bool = False) -> None:
        """Choose which call of SQLite fails.

        Args:
            error_name: name of SQLite's result code.
            at: number of the call, from 1.
            after: whether SQLite executes the call before the failure is reported.
        """
        self.calls = 0
        self.failed = ""
        self._error_name = error_name
        self._at = at
        self.connect = connect_with_hooks(*((lambda _: None, self._count_call) if after else (self._count_call,)))

    def _count_call(self, sql: str) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.failed = sql
            raise sqlite_error(self._error_name)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs at a new directory while the `with` block runs. Skip the test if this user may not mount."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def resize(folder: Path, size: str) -> None:
    """Change the size of a tmpfs."""
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
