"""Rows of the journal: each entry in its own, whole and in order, however many are written at once."""

from pathlib import Path

from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.statements import MAX_ROWS, delete, insert
from agent.model.record import EncodedRecord, StateNote


def record(number: int) -> EncodedRecord:
    note = StateNote(f"note{number}", number) if number % 3 == 0 else None
    return EncodedRecord(
        f"run-{number}", f"vm{number % 2}", "qemu.event.stop", number, f"body {number}".encode(), note=note
    )


def test_each_entry_is_in_the_row_that_is_said_of_it_however_many_there_are(tmp_path: Path) -> None:
    store, made = JournalDatabase(tmp_path / "journal.db"), 0
    for count in range(2 * MAX_ROWS + 2):
        records = [record(made + number) for number in range(count)]
        places: list[int] = []
        store.commit([insert("samples", [record(0)], []), insert("events", records, places)])
        read, bad, _ = store.read("events", 0, count + 1, 1 << 20)
        assert bad == 0
        assert [(e.row, e.id, e.key, e.time_ns, e.body) for e in read] == [
            (row, e.id, e.key, e.time_ns, e.body) for row, e in zip(places, records, strict=True)
        ]
        notes = store.notes()
        assert all(notes[e.note.name] == e.note.value for e in records if e.note is not None)
        store.commit([delete("events", 0, places[-1] if places else 0)])
        made += count
    store.close()


def test_large_bodies_are_whole_and_each_in_its_row(tmp_path: Path) -> None:
    store, places = JournalDatabase(tmp_path / "journal.db"), list[int]()
    records = [
        EncodedRecord(f"run-{n}", "vm", "qemu.event.stop", n, bytes([n]) * (300_000 if n % 5 else 2)) for n in range(20)
    ]
    store.commit([insert("events", records, places)])
    read, _, _ = store.read("events", 0, 100, 1 << 30)
    assert [(e.row, e.body) for e in read] == [(row, e.body) for row, e in zip(places, records, strict=True)]
    store.close()
