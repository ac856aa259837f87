"""A record on its way out, cut down to what delivery needs. Pure."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from agent.model.record import EncodedRecord

_versions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class StateNote:
    """Something small that outlives the agent, by name. Of two notes of one name the younger counts, whichever is written first.

    Attributes:
        name: its name.
        value: what JSON can say; None forgets it.
        version: tells the younger of two; given in the order in which notes are made.
    """

    name: str
    value: Any
    version: int = field(default_factory=lambda: next(_versions))


@dataclass(slots=True)
class Entry:
    """One record.

    Attributes:
        id: the record's id.
        key: its VM, so that a VM's records stay in order.
        type: the record's type, by which its topic is chosen.
        time_ns: when it was seen, nanoseconds since the epoch.
        body: its bytes.
        note: what is kept in one transaction with it; then it is sent only once it is journaled.
        row: where the journal has it; None where the journal has it not, or not yet.
        writing: whether the journal is writing it at this moment.
        done: whether it is delivered, or given up.
    """

    id: str
    key: str
    type: str
    time_ns: int
    body: bytes
    note: StateNote | None = None
    row: int | None = None
    writing: bool = False
    done: bool = False

    @classmethod
    def of(cls, stamped: EncodedRecord, note: StateNote | None = None) -> Self:
        """Return the entry for a record."""
        record = stamped.record
        return cls(stamped.id, record.vm.key, record.type, record.time_ns, stamped.body, note)

    @property
    def size(self) -> int:
        """What it counts against a budget, in bytes: its body and about what Python and SQLite put around it."""
        return len(self.body) + OVERHEAD_BYTES


OVERHEAD_BYTES = 200


def size_of(entries: Sequence[Entry]) -> int:
    """Return what entries count against a budget, in bytes."""
    return sum([len(entry.body) for entry in entries]) + OVERHEAD_BYTES * len(entries)


@dataclass(slots=True)
class QueueSize:
    """A number of entries and their bytes."""

    records: int = 0
    bytes: int = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """Count entries in."""
        self.records += len(entries)
        self.bytes += size_of(entries)

    def take(self, records: int, size: int) -> None:
        """Count out, never below nothing."""
        self.records = max(0, self.records - records)
        self.bytes = max(0, self.bytes - size)


Body = bytes
"""A record's bytes, by a name that `QueueContents` has not another meaning for."""


@dataclass(slots=True)
class QueueContents:
    """What a lane has in the file.

    Attributes:
        records: how many.
        bytes: what they count against the budget.
        first_ns, last_ns: when the oldest and the newest were seen, nanoseconds since the epoch.
        types: how many of each type.
        told: of what is dropped, the bodies of those that told of losses.
    """

    records: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    types: dict[str, int] = field(default_factory=dict)
    told: list[Body] = field(default_factory=list)

    def add(self, kind: str, records: int, size: int, first_ns: int, last_ns: int) -> None:
        """Count some more of one type."""
        self.types[kind] = self.types.get(kind, 0) + records
        self.records += records
        self.bytes += size
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)
