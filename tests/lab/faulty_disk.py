"""Disks as they should not be: connections to a journal that hang, or fail where the test wants it."""

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

Call = Callable[[str], None]
_NO_WAIT: Final[dict[str, Any]] = {"timeout": 0.0, "isolation_level": None, "check_same_thread": False}


def instrumented(before: Call, after: Call = lambda _: None) -> Connect:
    """Return a way of connecting that calls these around each statement, and around reading each row of its answer; they may raise."""

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
            answer = call()
            try:
                after(self.sql)
            except sqlite3.Error:
                self.close()  # as SQLite resets a statement that fails
                raise
            return answer

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            return self.cursor(Cursor).execute(*args)

        def executemany(self, *args: Any) -> Any:
            return self.cursor(Cursor).executemany(*args)

        def executescript(self, *args: Any) -> Any:
            return self.cursor(Cursor).executescript(*args)

    return lambda path: sqlite3.connect(path, factory=Connection, **_NO_WAIT)


class HangingDisk:
    """A disk on which a commit takes until `release`.

    Attributes:
        begun: set once a commit has been begun.
    """

    def __init__(self) -> None:
        self.hanging = False
        self.begun = threading.Event()
        self._go = threading.Event()
        self.connect = instrumented(self._before)

    def connect_late(self, path: Path) -> sqlite3.Connection:
        """Connect as soon as it is let go."""
        self._go.wait(30)
        return self.connect(path)

    def release(self) -> None:
        """Let it, and all that come, go on."""
        self._go.set()

    def _before(self, sql: str) -> None:
        if self.hanging and sql == "COMMIT":
            self.begun.set()
            self._go.wait(30)


def failure(name: str) -> sqlite3.OperationalError:
    """Return the error that SQLite raises with a result code of that name."""
    error = sqlite3.OperationalError(f"scripted {name}")
    error.sqlite_errorname = name
    return error


class FailingDisk:
    """A disk that fails with one of SQLite's result codes while it is told to.

    Attributes:
        name: the result code's name, or None while all is well.
        only: what a statement must begin with to fail.
    """

    def __init__(self, only: str = "") -> None:
        self.name: str | None = None
        self.only = only
        self.connect = instrumented(self._before)

    def _before(self, sql: str) -> None:
        if self.name is not None and sql.startswith(self.only):
            raise failure(self.name)


class FailsOnce:
    """A disk that fails once, at the so manieth call; counted from 1, before the call or after it has been done.

    Attributes:
        calls: how many there were.
        failed: what failed.
    """

    def __init__(self, name: str, at: int, *, after: bool = False) -> None:
        self.calls = 0
        self.failed = ""
        self._name = name
        self._at = at
        self.connect = instrumented(*((lambda _: None, self._count) if after else (self._count,)))

    def _count(self, sql: str) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.failed = sql
            raise failure(self._name)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Have a file system in memory at a folder; skips where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounting here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
