"""`qmp-agent journal`: what lies in the journal, taken out as JSON lines, or put back to be delivered. Works beside a running agent."""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.common.errors import CommandFailedError
from agent.common.units import format_bytes
from agent.delivery.journal import recovery, statements
from agent.delivery.journal.database import JournalDatabase, JournalError, connect_readonly
from agent.delivery.journal.writer import FILE, UNREPORTED_DROPS, lock
from agent.delivery.pipeline import QUEUE_NAMES
from agent.model.record import EncodedRecord

REPLAY_QUEUE = "events"


class JournalToolError(CommandFailedError):
    """It cannot be done; the text says why, for people."""


def quarantined_files(folder: Path) -> list[Path]:
    """Return the damaged files that lie in a journal's folder, oldest first."""
    names = folder.glob(f"{FILE}.damaged-*")
    return sorted(path for path in names if not path.name.endswith(recovery.LOGS))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[JournalDatabase]:
    """Open a file to be read, beside an agent that writes it.

    Raises:
        JournalToolError: there is none, or it cannot be read.
    """
    if not path.exists():
        raise JournalToolError(
            f"there is no {path}: no agent has journaled here yet, or journal.directory is another one"
        )
    try:
        opened = JournalDatabase(path, connect_readonly, readonly=True)
    except JournalError as error:
        raise JournalToolError(f"{path}: {error}") from error
    try:
        yield opened
    except JournalError as error:
        raise JournalToolError(f"{path}: {error}") from error
    finally:
        opened.close()


def show(folder: Path) -> Iterator[str]:
    """Yield, in words, what waits in the journal, what was refused, what was set aside.

    Raises:
        JournalToolError: it cannot be read.
    """
    path = folder / FILE
    with _reading(path) as opened:
        yield f"{path}: {format_bytes(path.stat().st_size)}"
        for queue in QUEUE_NAMES:
            found = opened.contents(queue)
            span = f", from {_when(found.first_ns)} to {_when(found.last_ns)}" if found.records else ""
            yield f"  {queue}: {found.records} records wait, {format_bytes(found.bytes)}{span}"
            for kind, count in sorted(found.types.items()):
                yield f"    {count:8} {kind}"
        dead = [(reason, entry.type) for reason, entry in opened.dead_letters()]
        yield f"  dead letters: {len(dead)}"
        for key in sorted(set(dead)):
            yield f"    {dead.count(key):8} {key[1]} ({key[0]})"
        untold = opened.notes().get(UNREPORTED_DROPS)
        for loss in untold if isinstance(untold, list) else ():
            yield f"  lost and not told downstream yet: {loss['records']} of lane {loss['queue']} ({loss['reason']})"
    for aside in quarantined_files(folder):
        yield f"{aside}: damaged, set aside; `qmp-agent journal export --file {aside.name}` shows what can be read of it"


def export(folder: Path, *, file: str | None, dead: bool) -> Iterator[bytes]:
    """Yield records of the journal, of its dead letters or of a file that was set aside, as JSON lines.

    Raises:
        JournalToolError: it cannot be read.
    """
    if file is not None:
        for entry in _salvaged(folder, file):
            yield entry.body + b"\n"
        return
    with _reading(folder / FILE) as opened:
        if dead:
            for _, entry in opened.dead_letters():
                yield entry.body + b"\n"
            return
        for queue in QUEUE_NAMES:
            for entry in _all(opened, queue):
                yield entry.body + b"\n"


def _all(opened: JournalDatabase, queue: str) -> Iterator[EncodedRecord]:
    after = 0
    while True:
        entries, _, last = opened.read(queue, after, 500, 8 << 20)
        if last == after:
            return
        yield from entries
        after = last


def _salvaged(folder: Path, file: str) -> Iterator[EncodedRecord]:
    path = folder / file
    if path.parent != folder or path not in quarantined_files(folder):
        known = ", ".join(aside.name for aside in quarantined_files(folder)) or "none"
        raise JournalToolError(f"{file} is no file that was set aside in {folder}; there are: {known}")
    for _, entries in recovery.salvage(path, QUEUE_NAMES):
        yield from entries


def replay(folder: Path, *, file: str | None) -> int:
    """Put dead letters, or what can be read of a file that was set aside, back to be delivered at the agent's next start.

    Records keep their ids, so consumers that have some of them already can tell.

    Raises:
        JournalToolError: the agent runs, or a file cannot be read or written.
    """
    try:
        held = lock(folder)
    except (JournalError, OSError) as error:
        raise JournalToolError(f"{error}; stop the agent first") from error
    try:
        opened = JournalDatabase(folder / FILE)
        try:
            entries = [entry for _, entry in opened.dead_letters()] if file is None else list(_salvaged(folder, file))
            changes = [statements.insert(REPLAY_QUEUE, entries, [])]
            if file is None:
                changes.append(statements.delete_dead_letters())
            opened.commit(changes)
        finally:
            opened.close()
    except JournalError as error:
        raise JournalToolError(f"{folder / FILE}: {error}") from error
    finally:
        os.close(held)
    return len(entries)


def _when(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
