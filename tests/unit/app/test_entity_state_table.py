"""Which changes the table of states writes: the latest of each entity, and each until the topic has it."""

from typing import Any

from agent.app.entity_state_table import EntityState, EntityStateTable
from agent.model.state_topic_records import StateRecordEntity


def state(path: str, value: int) -> EntityState:
    return EntityState(StateRecordEntity("hv7", "", "", path=path), "qemu.state.vm", {"value": value})


def values(changes: dict[str, EntityState | None]) -> dict[str, Any]:
    return {path: change.data["value"] if change is not None else None for path, change in changes.items()}


def test_only_the_latest_change_of_an_entity_is_written() -> None:
    table = EntityStateTable()
    for value in range(3):
        table.put(state("a", value))
    assert values(table.take_pending_changes(10)) == {"a": 2}
    table.on_written()
    table.put(state("a", 2))
    assert table.pending_count == 0


def test_a_change_back_to_what_the_topic_has_is_not_written() -> None:
    table = EntityStateTable()
    table.put(state("a", 1))
    table.take_pending_changes(10)
    table.on_written()
    table.put(state("a", 2))
    table.put(state("a", 1))
    assert table.take_pending_changes(10) == {}


def test_a_change_during_a_write_follows_it() -> None:
    table = EntityStateTable()
    table.put(state("a", 1))
    table.take_pending_changes(10)
    table.put(state("a", 2))
    table.on_written()
    assert values(table.take_pending_changes(10)) == {"a": 2}


def test_the_changes_of_a_failed_write_are_written_again_before_all_others() -> None:
    table = EntityStateTable()
    table.put(state("a", 1))
    table.take_pending_changes(10)
    table.put(state("b", 1))
    table.on_write_failed()
    assert list(table.take_pending_changes(1)) == ["a"]


def test_an_entity_that_the_topic_never_had_needs_no_tombstone() -> None:
    table = EntityStateTable()
    table.put(state("a", 1))
    table.remove("a")
    assert table.take_pending_changes(10) == {}


def test_an_entity_that_the_topic_may_have_gets_one_tombstone() -> None:
    table = EntityStateTable()
    for path in ("written", "in flight"):
        table.put(state(path, 1))
    table.take_pending_changes(1)
    table.on_written()
    table.take_pending_changes(1)
    table.remove("written")
    table.remove("in flight")
    table.on_write_failed()
    table.add_written_by_earlier_run("earlier run")
    table.remove("earlier run")
    changes = table.take_pending_changes(10)
    assert values(changes) == {"in flight": None, "written": None, "earlier run": None}
    table.on_written()
    for path in changes:
        table.remove(path)
    assert table.take_pending_changes(10) == {}


def test_an_entity_that_returns_during_its_tombstone_is_written_again() -> None:
    table = EntityStateTable()
    table.put(state("a", 1))
    table.take_pending_changes(10)
    table.on_written()
    table.remove("a")
    assert values(table.take_pending_changes(10)) == {"a": None}
    table.put(state("a", 1))
    table.on_written()
    assert values(table.take_pending_changes(10)) == {"a": 1}


def test_everything_is_written_again_on_request() -> None:
    table = EntityStateTable()
    for path in ("a", "b"):
        table.put(state(path, 1))
    table.take_pending_changes(10)
    table.on_written()
    assert table.write_all_again() == 2
    table.put(state("a", 1))  # as at each turn
    assert values(table.take_pending_changes(10)) == {"a": 1, "b": 1}
