"""Rows of the journal: each entry in its own, whole and in order, however many are written at once."""

from pathlib import Path

from agent.delivery.entry import Entry, StateNote
from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.statements import MOST_ROWS, delete, insert


def entry(number: int) -> Entry:
    note = StateNote(f"note{number}", number) if number % 3 == 0 else None
    return Entry(f"run-{number}", f"vm{number % 2}", "qemu.event.stop", number, f"body {number}".encode(), note)


def test_each_entry_is_in_the_row_that_is_said_of_it_however_many_there_are(tmp_path: Path) -> None:
    store, made = JournalDatabase(tmp_path / "journal.db"), 0
    for count in range(2 * MOST_ROWS + 2):
        entries = [entry(made + number) for number in range(count)]
        places: list[int] = []
        store.commit([insert("samples", [entry(0)], []), insert("events", entries, places)])
        read, bad, _ = store.read("events", 0, count + 1, 1 << 20)
        assert bad == 0
        assert [(e.row, e.id, e.key, e.time_ns, e.body) for e in read] == [
            (row, e.id, e.key, e.time_ns, e.body) for row, e in zip(places, entries, strict=True)
        ]
        notes = store.notes()
        assert all(notes[e.note.name] == e.note.value for e in entries if e.note is not None)
        store.commit([delete("events", 0, places[-1] if places else 0)])
        made += count
    store.close()


def test_large_bodies_are_whole_and_each_in_its_row(tmp_path: Path) -> None:
    store, places = JournalDatabase(tmp_path / "journal.db"), list[int]()
    entries = [Entry(f"run-{n}", "vm", "qemu.event.stop", n, bytes([n]) * (300_000 if n % 5 else 2)) for n in range(20)]
    store.commit([insert("events", entries, places)])
    read, _, _ = store.read("events", 0, 100, 1 << 30)
    assert [(e.row, e.body) for e in read] == [(row, e.body) for row, e in zip(places, entries, strict=True)]
    store.close()
