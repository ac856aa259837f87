"""Rows of the journal: each record has a row of its own, unchanged and in order, for any number of records in a transaction."""

from pathlib import Path

from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.statements import MAX_STATEMENT_ROWS, delete_row_range, insert_records
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord


def make_record(number: int) -> EncodedRecord:
    entry = PersistentEntry(f"entry{number}", number) if number % 3 == 0 else None
    return EncodedRecord(
        f"run-{number}", f"vm{number % 2}", "qemu.event.stop", number, f"body {number}".encode(), persistent_entry=entry
    )


COUNTS = [
    *range(10),
    *(times * MAX_STATEMENT_ROWS + more for times in (1, 2) for more in range(-2, 3)),
]
"""Numbers of records around those at which a transaction gets another statement."""


def test_each_record_is_in_the_returned_row_for_any_number_of_records(tmp_path: Path) -> None:
    database, count_before = JournalDatabase(tmp_path / "journal.db"), 0
    for count in COUNTS:
        records = [make_record(count_before + number) for number in range(count)]
        rows: list[int] = []
        database.commit([insert_records("samples", [make_record(0)], []), insert_records("events", records, rows)])
        read, corrupt, _ = database.read_records("events", 0, count + 1, 1 << 20)
        assert corrupt == 0
        assert [(e.row, e.id, e.key, e.time_ns, e.body) for e in read] == [
            (row, e.id, e.key, e.time_ns, e.body) for row, e in zip(rows, records, strict=True)
        ]
        entries = database.persistent_entries()
        assert all(
            entries[e.persistent_entry.name] == e.persistent_entry.value
            for e in records
            if e.persistent_entry is not None
        )
        database.commit([delete_row_range("events", 0, rows[-1] if rows else 0)])
        count_before += count
    database.close()


def test_large_bodies_are_unchanged_and_in_their_rows(tmp_path: Path) -> None:
    database, rows = JournalDatabase(tmp_path / "journal.db"), list[int]()
    records = [
        EncodedRecord(f"run-{n}", "vm", "qemu.event.stop", n, bytes([n]) * (300_000 if n % 5 else 2)) for n in range(20)
    ]
    database.commit([insert_records("events", records, rows)])
    read, _, _ = database.read_records("events", 0, 100, 1 << 30)
    assert [(e.row, e.body) for e in read] == [(row, e.body) for row, e in zip(rows, records, strict=True)]
    database.close()
