"""Persistent entries for the journal's next transaction. A persistent entry is a small value that the journal keeps across restarts."""

import asyncio
from collections.abc import Callable, Iterable

from agent.model.persistent_entry import PersistentEntry

ChangedEntries = Callable[[bool], Iterable[PersistentEntry]]
"""Returns the entries that changed since the last call. The argument True requests all entries, because the journal has a new file."""


def _no_entries(_whole: bool) -> Iterable[PersistentEntry]:  # noqa: FBT001 - a callback's only argument
    return ()


class UncommittedEntries:
    """Persistent entries for the next transaction: entries that callers added and wait for, and entries that `fetch_changed` returned."""

    def __init__(self) -> None:
        self.fetch_changed: ChangedEntries = _no_entries
        """Function that returns the changed entries, called at the start of each transaction. No caller waits for these entries."""
        self._waiting: list[tuple[PersistentEntry, asyncio.Future[None]]] = []
        # By name: entries from `fetch_changed` that no transaction has stored yet.
        self._fetched: dict[str, PersistentEntry] = {}
        self._writing: list[tuple[PersistentEntry, asyncio.Future[None]]] = []
        self._fetch_all = False

    @property
    def has_waiting_callers(self) -> bool:
        """True if callers wait until their entries are on disk."""
        return bool(self._waiting)

    def add(self, entry: PersistentEntry) -> asyncio.Future[None]:
        """Add an entry for the next transaction. Return a future that completes when the entry is on disk."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, stored))
        return stored

    def on_new_file(self) -> None:
        """Let the next transaction store all entries again, because the new file of the journal does not have them."""
        self._fetch_all = True

    def take_entries_for_transaction(self) -> list[PersistentEntry]:
        """Return the entries of the next transaction. Call `on_transaction_committed` or `on_transaction_failed` next."""
        self._writing, self._waiting = self._waiting, []
        self._fetched |= {entry.name: entry for entry in self.fetch_changed(self._fetch_all)}
        self._fetch_all = False
        return [*(entry for entry, _ in self._writing), *self._fetched.values()]

    def on_transaction_committed(self) -> None:
        """Complete the callers' futures, because the transaction is on disk."""
        written, self._writing, self._fetched = self._writing, [], {}
        for _, stored in written:
            if not stored.done():
                stored.set_result(None)

    def on_transaction_failed(self) -> None:
        """Let the entries of the failed transaction wait for the next transaction."""
        self._waiting, self._writing = self._writing + self._waiting, []
