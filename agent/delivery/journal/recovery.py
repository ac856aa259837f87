"""A damaged journal: set aside, and what can still be read of it brought into a new one. Everything here blocks."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self

from agent.delivery.entry import Entry, StateNote
from agent.delivery.journal import statements
from agent.delivery.journal.database import ERRORS, Connect, JournalDatabase, JournalError, JournalFault, look_into
from agent.delivery.journal.statements import entry_of, notes_of
from agent.delivery.queue import RecordQueue

# By the table alone: its index may be what is damaged.
_SALVAGE = "SELECT row, id, key, type, time_ns, crc, body FROM records NOT INDEXED WHERE lane = ? ORDER BY row"
_LISTED = "SELECT row FROM records INDEXED BY by_lane WHERE lane = ? ORDER BY row"

LOGS = ("-wal", "-shm")
"""What SQLite puts beside a file, by the ends of their names."""


def quarantine(path: Path) -> Path | None:
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
        raise JournalError(
            JournalFault.UNUSABLE, f"it is damaged, and cannot be set aside as {aside.name}: {error.strerror}"
        ) from error
    return aside


def restore_quarantined(aside: Path, path: Path) -> None:
    """Undo `quarantine`, as far as that can be done."""
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
        db = look_into(path)
    except ERRORS:
        return
    try:
        for lane in lanes:
            last = 0
            for chunk in _chunks(_in_order(_sound(db, _SALVAGE, lane), 1)):
                last = chunk[-1].row or 0
                yield lane, chunk
            back = _in_order(_sound(db, f"{_SALVAGE} DESC", lane), -1)
            behind = list(islice(takewhile(partial(_is_behind, last), back), SALVAGE_BEHIND))
            if behind:
                yield lane, behind[::-1]
    finally:
        db.close()


def listed(path: Path, lane: str) -> int:
    """Return how many entries the index says a lane has, as far as it can be read: it lies in other pages than the entries do."""
    rows = set[int]()
    try:
        with contextlib.closing(look_into(path)) as db:
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
        with contextlib.closing(look_into(path)) as db:
            return notes_of(db)
    except ERRORS:
        return {}


SALVAGE_BEHIND = 100_000
"""How many entries behind a damage are brought back; they have to be held in memory to be put in order."""


def _sound(db: sqlite3.Connection, query: str, lane: str) -> Iterator[Entry]:
    """Yield a lane's sound entries until the file can be read no further."""
    try:
        for row in db.execute(query, (lane,)):
            entry = entry_of(row)
            if entry is not None:
                yield entry
    except ERRORS:
        return


def _in_order(entries: Iterator[Entry], sign: int) -> Iterator[Entry]:
    """Yield entries by their rows, rising or falling: where a page's structure is damaged, one may stand where it does not belong."""
    told = held = None
    for entry in entries:
        row = sign * (entry.row or 0)
        if told is not None and row <= told:
            continue
        if held is not None and sign * (held.row or 0) < row:
            told = sign * (held.row or 0)
            yield held
        held = entry
    if held is not None:
        yield held


def _is_behind(row: int, entry: Entry) -> bool:
    return (entry.row or 0) > row


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while chunk := list(islice(entries, 500)):
        yield chunk


@dataclass(slots=True)
class InFlightRows:
    """What of a lane flies while its file is replaced, and so comes first in the new one.

    Attributes:
        entries: the entries; of a lane that is not durable those that were on disk.
        behind, through: the rows of the old file between which its backlog lies.
        rows: where they are in the new file.
    """

    entries: list[Entry] = field(default_factory=list)
    behind: int = 0
    through: float = math.inf
    rows: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, lane: RecordQueue, *, known: bool) -> Self:
        """Return it; what lies in a file that was never read is not known."""
        entries = [entry for entry in lane.flying if lane.durable or entry.row is not None]
        if not known or lane.left_to:
            return cls(entries)
        return cls(entries, lane.backlog_from, lane.backlog_to)


def renew(
    path: Path, connect: Connect, flew: Mapping[str, InFlightRows]
) -> tuple[Path | None, JournalDatabase, int, dict[str, int]]:
    """Set a file aside and make a new one of what flies and what can be read of the backlog; blocks.

    Returns:
        the old file's new name, None where it was gone; the new file, how many records it has of the old, and how many of which lane
        were in the old that it has not, where nobody had read yet what was in it.

    Raises:
        StoreError: it cannot be renamed, or the new one cannot be made; then it is where it was.
    """
    aside = quarantine(path)
    try:
        opened = JournalDatabase(path, connect)
        try:
            return aside, opened, *_refill(opened, aside, flew)
        except JournalError:
            opened.close()
            raise
    except JournalError:
        if aside is not None:
            restore_quarantined(aside, path)
        raise


def _refill(
    opened: JournalDatabase, aside: Path | None, flew: Mapping[str, InFlightRows]
) -> tuple[int, dict[str, int]]:
    """Put into a new file what belongs there; return how many records could be read of the old, and how many could not, as `renew`."""
    opened.commit([statements.insert(lane, first.entries, first.rows) for lane, first in flew.items()])
    kept = dict.fromkeys(flew, 0)
    lost = {}
    if aside is not None:
        opened.commit([statements.keep(StateNote(name, value)) for name, value in salvage_notes(aside).items()])
        for lane, entries in salvage(aside, list(flew)):
            behind, through = flew[lane].behind, flew[lane].through
            waiting = [entry for entry in entries if behind < (entry.row or 0) <= through]
            kept[lane] += len(waiting)
            opened.commit([statements.insert(lane, waiting, [])])
        unread = [lane for lane, first in flew.items() if first.through == math.inf]
        lost = {lane: max(0, listed(aside, lane) - kept[lane]) for lane in unread}
    opened.refresh()
    return sum(kept.values()), lost
