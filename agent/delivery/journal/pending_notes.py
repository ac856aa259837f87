"""Notes that wait for a transaction of the journal."""

import asyncio
from collections.abc import Callable, Iterable

from agent.model.record import PersistentNote

ChangedNotes = Callable[[bool], Iterable[PersistentNote]]
"""Returns the notes that changed since the last call. If the argument is True, it returns all notes, because the journal has a new file."""


def _no_notes(_whole: bool) -> Iterable[PersistentNote]:  # noqa: FBT001 - a callback's only argument
    return ()


class PendingNotes:
    """Notes for the next transaction: those whose callers wait for the commit, and those that `changed` returns."""

    def __init__(self) -> None:
        self.changed: ChangedNotes = _no_notes
        """Called at the start of each transaction. No caller waits for these notes."""
        self._waiting: list[tuple[PersistentNote, asyncio.Future[None]]] = []
        self._fetched: dict[
            str, PersistentNote
        ] = {}  # by name: notes from `changed` that no transaction has stored yet
        self._writing: list[tuple[PersistentNote, asyncio.Future[None]]] = []
        self._fetch_all = False

    @property
    def has_waiting(self) -> bool:
        """True if callers wait for notes."""
        return bool(self._waiting)

    def add(self, note: PersistentNote) -> asyncio.Future[None]:
        """Add a note for the next transaction. Return a future that completes when the note is on disk."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((note, stored))
        return stored

    def on_new_file(self) -> None:
        """Let the next transaction store all notes again, because the new file of the journal does not have them."""
        self._fetch_all = True

    def start_transaction(self) -> list[PersistentNote]:
        """Return the notes of the next transaction. `commit_transaction` or `fail_transaction` must follow."""
        self._writing, self._waiting = self._waiting, []
        self._fetched |= {note.name: note for note in self.changed(self._fetch_all)}
        self._fetch_all = False
        return [*(note for note, _ in self._writing), *self._fetched.values()]

    def commit_transaction(self) -> None:
        """Handle the commit of the transaction."""
        written, self._writing, self._fetched = self._writing, [], {}
        for _, stored in written:
            if not stored.done():
                stored.set_result(None)

    def fail_transaction(self) -> None:
        """Handle the failure of the transaction. Its notes wait for the next transaction."""
        self._waiting, self._writing = self._writing + self._waiting, []
