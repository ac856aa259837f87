"""Disks with faults: connections to a journal that hang, or fail where a test wants it; and small file systems."""

import contextlib
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from agent.delivery.journal.database import Connect

T = TypeVar("T")

Hook = Callable[[str], None]
"""Called with the SQL of a statement; it may block or raise."""
_OPTIONS: Final[dict[str, Any]] = {"timeout": 0.0, "isolation_level": None, "check_same_thread": False}


def hooked(before: Hook, after: Hook = lambda _: None) -> Connect:
    """Return a `connect` that calls hooks before and after each statement, and around reading each row of its result."""

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
                self.close()  # as SQLite resets a statement that fails
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
        begun: set once a commit hangs.
    """

    def __init__(self) -> None:
        self.hanging = False
        self.begun = threading.Event()
        self._released = threading.Event()
        self.connect = hooked(self._before)

    def connect_late(self, path: Path) -> sqlite3.Connection:
        """Connect after `release`."""
        self._released.wait(30)
        return self.connect(path)

    def release(self) -> None:
        """Let the commit that hangs continue, and all later ones."""
        self._released.set()

    def _before(self, sql: str) -> None:
        if self.hanging and sql == "COMMIT":
            self.begun.set()
            self._released.wait(30)


def sqlite_error(name: str) -> sqlite3.OperationalError:
    """Return the error that SQLite raises with a result code."""
    error = sqlite3.OperationalError(f"scripted {name}")
    error.sqlite_errorname = name
    return error


class FailingDisk:
    """A disk that fails with one of SQLite's result codes.

    Attributes:
        error_name: name of the result code; None while the disk works.
        prefix: statements with this prefix fail.
    """

    def __init__(self, prefix: str = "") -> None:
        self.error_name: str | None = None
        self.prefix = prefix
        self.connect = hooked(self._before)

    def _before(self, sql: str) -> None:
        if self.error_name is not None and sql.startswith(self.prefix):
            raise sqlite_error(self.error_name)


class FailsOnce:
    """A disk that fails at one call.

    Attributes:
        calls: number of calls so far.
        failed: the SQL that failed.
    """

    def __init__(self, error_name: str, at: int, *, after: bool = False) -> None:
        """Choose the call that fails.

        Args:
            error_name: name of SQLite's result code.
            at: number of the call, from 1.
            after: whether the call is executed before it fails.
        """
        self.calls = 0
        self.failed = ""
        self._error_name = error_name
        self._at = at
        self.connect = hooked(*((lambda _: None, self._count) if after else (self._count,)))

    def _count(self, sql: str) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.failed = sql
            raise sqlite_error(self._error_name)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs at a new directory; skip the test where that is not permitted."""
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
