"""Compares the current states of entities with the states in the compacted topic. Pure.

An entity is a VM, a firing alert or the host. The path of an entity, such as `vms/UUID`, is part of the key of its records in the topic.
A new change of an entity replaces an earlier change that was not written yet. So the table has at most one change for each entity, even
while Kafka is down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.record import Severity
from agent.model.state_topic_records import StateRecordEntity


@dataclass(frozen=True, slots=True)
class EntityState:
    """The state of one entity: a VM, a firing alert or the host.

    Attributes:
        entity: the entity, which is the source of the record.
        type: type of the record.
        data: data of the record.
        subject: subject of the record.
        severity: severity of the record.
    """

    entity: StateRecordEntity
    type: str
    data: Mapping[str, Any]
    subject: str = ""
    severity: Severity = Severity.INFO


class EntityStateTable:
    """The states of all entities (VMs, firing alerts, the host), and the changes that are not in the state topic yet.

    A removed entity becomes a tombstone in the topic.
    """

    def __init__(self) -> None:
        self._current: dict[str, EntityState] = {}
        self._written: dict[str, EntityState | None] = {}  # the state in the topic, by path; None if it is unknown
        self._in_flight: dict[str, EntityState | None] = {}
        # By changed path, in the order of the changes: whether to write the state even if the topic already has the state.
        self._pending: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._current)

    @property
    def pending_count(self) -> int:
        """Number of entities whose latest change is not in the state topic yet."""
        return len(self._pending) + len(self._in_flight)

    def get(self, path: str) -> EntityState | None:
        """Return the current state of an entity; None if the entity was removed or never added."""
        return self._current.get(path)

    def add_written_by_earlier_run(self, path: str) -> None:
        """Add an entity whose state an earlier run of the agent wrote to the topic.

        `put` later replaces that state, and `remove` deletes that state.
        """
        self._written.setdefault(path, None)

    def put(self, state: EntityState) -> None:
        """Set the current state of an entity. Schedule a write if the state in the topic differs."""
        path = state.entity.path
        self._current[path] = state
        if self._state_in_topic(path) != state:
            self._pending.setdefault(path, False)
        elif not self._pending.get(path):
            self._pending.pop(path, None)

    def remove(self, path: str) -> None:
        """Remove an entity. Schedule a tombstone if the topic may have the entity's state."""
        self._current.pop(path, None)
        if path in self._written or path in self._in_flight:
            self._pending.setdefault(path, False)
        else:
            self._pending.pop(path, None)

    def write_all_again(self) -> int:
        """Schedule the state of every entity to be written again. Return the number of states."""
        self._pending |= dict.fromkeys(self._current, True)
        return len(self._current)

    def take_pending_changes(self, max_changes: int) -> dict[str, EntityState | None]:
        """Take the oldest pending changes, at most `max_changes`. Call `on_written` or `on_write_failed` before the next call.

        Returns:
            The new states by path; None for a removed entity.
        """
        assert not self._in_flight
        for path in list(self._pending)[:max_changes]:
            del self._pending[path]
            self._in_flight[path] = self._current.get(path)
        return dict(self._in_flight)

    def on_written(self) -> None:
        """Handle a successful write of the changes that `take_pending_changes` returned."""
        for path, state in self._in_flight.items():
            if state is None:
                self._written.pop(path, None)
            else:
                self._written[path] = state
        self._in_flight.clear()

    def on_write_failed(self) -> None:
        """Handle a failed write. Schedule the failed changes again, before all other changes."""
        for path in self._in_flight:
            self._written[path] = None
        self._pending = dict.fromkeys(self._in_flight, True) | self._pending
        self._in_flight.clear()

    def _state_in_topic(self, path: str) -> EntityState | None:
        return self._in_flight[path] if path in self._in_flight else self._written.get(path)
