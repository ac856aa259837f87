"""Writes the present state of VMs, alerts and the host to the compacted topic of states.

A state is written when it changes, all states at the start and on `resync`. At most `MAX_CHANGES` records are written per turn, and an
entity at most once per turn. While Kafka does not accept records, changes of an entity replace each other, so nothing is queued or dropped.
The journal has the keys that the topic may have, so the next run deletes the states of entities that have ended meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.alerts.manager import AWAY_SECONDS
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.store import Alert
from agent.app.state_table import EntityState, StateTable
from agent.app.state_values import (
    STATE_FAMILIES,
    alert_path,
    alert_state,
    firing_state,
    host_state,
    migration_fields,
    vm_path,
    vm_state,
)
from agent.exposition.snapshot import Snapshot, VmView
from agent.model.family import Family
from agent.model.record import EncodedRecord, Record, StateNote, Vm
from agent.model.state import STATE_PREFIX, StateEntity
from agent.session.api import MonitorState

TURN_SECONDS = 1.0
"""Time between two turns."""

MAX_CHANGES = 200
"""Maximum number of records that one turn writes."""

NOTE_PREFIX = "state/"
"""Prefix of the names of the notes with the keys that the topic may have; the path of the entity follows.

The value is a JSON object. A VM's has its monitor and its last migration, which the next run cannot learn from QEMU.
"""

_HELD = frozenset({MonitorState.BUSY, MonitorState.DENIED, MonitorState.STANDBY})
"""States of a monitor whose VM is alive, although the agent is not attached to it."""


class StateSink(Protocol):
    """Where records of states go, and where their keys are stored."""

    def encode_state(self, record: Record) -> EncodedRecord:
        """Return a record of a state, encoded with the next id."""

    async def deliver_state(self, records: Sequence[EncodedRecord]) -> None:
        """Deliver records. Return when the sink has acknowledged them, without a deadline."""

    async def persist_note(self, note: StateNote) -> bool:
        """Store a note in the journal. Return whether it is on disk."""


@dataclass(frozen=True, slots=True)
class StateSources:
    """The parts of the agent from which states are built.

    Attributes:
        host: name of the host.
        snapshot: the VMs and the monitors.
        alerts: the firing alerts.
        pools: the pools.
        run_fields: returns the fields that describe this run of the agent.
    """

    host: str
    snapshot: Snapshot
    alerts: Iterable[Alert]
    pools: Iterable[PoolUsage]
    run_fields: Callable[[], Mapping[str, Any]]


class StatePublisher:
    """Keeps the topic of states up to date.

    Attributes:
        turn_seconds: time between two turns.
        records_written: number of records that the sink has acknowledged.
    """

    def __init__(self, sources: StateSources, sink: StateSink, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up the publisher.

        Args:
            sources: what the states are built from.
            sink: where the records go.
            clock: returns the time in seconds of a monotonic clock.
        """
        self.turn_seconds = TURN_SECONDS
        self.records_written = 0
        self._sources = sources
        self._sink = sink
        self._clock = clock
        self._table = StateTable()
        self._changed: dict[str, None] = {}  # UUIDs of VMs to build again
        self._gone: dict[str, tuple[float, bool]] = {}  # by UUID: when the VM was lost, and whether for good
        self._monitors: dict[str, str] = {}  # by UUID, the address of the VM's monitor
        self._migrations: dict[str, dict[str, Any]] = {}  # by UUID, the last migration
        self._stored: set[str] = set()  # paths of the notes in the journal
        self._unstored: set[str] = set()  # paths in the topic whose notes could not be stored

    @property
    def entities(self) -> int:
        """Number of entities that have a state."""
        return len(self._table)

    @property
    def pending(self) -> int:
        """Number of entities whose latest change is not in the topic yet."""
        return self._table.pending + len(self._changed)

    # Changes. None of these methods waits.

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Learn from the journal's notes which keys the topic may have. The firing alerts must be restored already.

        A VM that does not return within a minute is deleted from the topic, and an alert that does not fire at once.
        """
        for name, note in notes.items():
            path = name.removeprefix(NOTE_PREFIX)
            if path == name:
                continue
            self._stored.add(path)
            self._table.add_written(path)
            kind, _, identity = path.partition("/")
            if kind == "vms":
                self._gone[identity] = (self._clock(), False)
                fields = note if isinstance(note, dict) else {}
                self._monitors[identity] = str(fields.get("monitor", ""))
                if isinstance(migration := fields.get("last_migration"), dict):
                    self._migrations[identity] = migration
        for alert in self._sources.alerts:
            self._table.put(firing_state(alert))
        for path in self._stored:
            if path.startswith(alert_path("")) and self._table.get(path) is None:
                self._table.remove(path)

    def on_vm_changed(self, vm: Vm) -> None:
        """Build a VM's state again at the next turn."""
        if vm.uuid:
            self._changed[vm.uuid] = None

    def on_samples(self, vm: Vm, families: Sequence[Family]) -> None:
        """Handle new samples of some families of a VM in the snapshot."""
        if not STATE_FAMILIES.isdisjoint(families):
            self.on_vm_changed(vm)

    def on_vm_gone(self, vm: Vm, *, for_good: bool) -> None:
        """Handle a VM that was detached; `for_good` says whether its guest shut down or migrated away."""
        if vm.uuid:
            self._gone[vm.uuid] = (self._clock(), for_good)
            self._changed[vm.uuid] = None

    def on_migration_ended(self, record: Record) -> None:
        """Handle the record of the end of a migration."""
        self._migrations[record.vm.uuid] = migration_fields(record)
        self._stored.discard(vm_path(record.vm.uuid))  # the note has the migration too
        self.on_vm_changed(record.vm)

    def on_alert(self, record: Record) -> None:
        """Handle the record of an alert that fires or is resolved."""
        if record.data["state"] == "firing":
            self._table.put(alert_state(record))
        else:
            self._table.remove(alert_path(record.data["fingerprint"]))

    def resync(self) -> int:
        """Write all states again. Return the number of entities."""
        self._changed |= dict.fromkeys(vm.uuid for vm, _ in self._sources.snapshot.views())
        return self._table.write_all_again()

    # Turns.

    async def run(self) -> None:
        """Write the changes of each turn, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(self.turn_seconds)

    async def turn(self) -> None:
        """Build the states that may have changed, and write the oldest changes. It waits until the sink has acknowledged them."""
        self._update()
        await self._write_changes()

    async def stop(self, seconds: float) -> None:
        """Write that the agent was stopped on request, after `run` has ended. Give up after a time.

        The states of VMs stay as they are, although the sessions have ended: the VMs still run.
        """
        self._put_host("stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._write_changes()

    def _update(self) -> None:
        """Build the states that may have changed."""
        changed, self._changed = self._changed, {}
        uuids = dict.fromkeys((*changed, *self._gone))
        views = {vm.uuid: (vm, view) for vm, view in self._sources.snapshot.views()} if uuids else {}
        held: frozenset[str] | None = None
        for uuid in uuids:
            if uuid in views:
                self._gone.pop(uuid, None)
                self._put_vm(*views[uuid])
            elif uuid in self._gone:
                held = self._held_monitors() if held is None else held
                self._update_gone(uuid, held)
        self._put_host("running")

    def _put_vm(self, vm: Vm, view: VmView) -> None:
        self._monitors[vm.uuid] = view.status.monitor.name
        self._table.put(vm_state(vm, view, self._migrations.get(vm.uuid)))

    def _put_host(self, state: str) -> None:
        sources = self._sources
        self._table.put(host_state(sources.host, sources.run_fields(), sources.pools, state))

    def _held_monitors(self) -> frozenset[str]:
        statuses = self._sources.snapshot.monitors.values()
        return frozenset(status.monitor.name for status in statuses if status.state in _HELD)

    def _update_gone(self, uuid: str, held: frozenset[str]) -> None:
        """Mark the state of a VM that is not attached, or remove it when the VM is gone for good."""
        gone_at, for_good = self._gone[uuid]
        is_held = self._monitors.get(uuid) in held and not for_good
        state = self._table.get(vm_path(uuid))
        if for_good or (self._clock() - gone_at >= AWAY_SECONDS and not is_held):
            del self._gone[uuid]
            self._monitors.pop(uuid, None)
            self._migrations.pop(uuid, None)
            self._table.remove(vm_path(uuid))
        elif state is not None:
            monitor_state = MonitorState.BUSY if is_held else MonitorState.GONE
            data = {**state.data, "monitor_state": monitor_state.value}
            self._table.put(EntityState(state.entity, state.type, data))

    async def _write_changes(self) -> None:
        """Write the oldest changes."""
        changes = self._table.start_writing(MAX_CHANGES)
        if not changes:
            return
        try:
            new = [path for path, state in changes.items() if state is not None and path not in self._stored]
            retried = [path for path in sorted(self._unstored)[:MAX_CHANGES] if path not in changes]
            await self._store_notes({path: self._note_of(path) for path in (*new, *retried)})
            await self._sink.deliver_state([self._encode(path, state) for path, state in changes.items()])
        except BaseException:
            self._table.on_failed()
            raise
        self._table.on_written()
        self.records_written += len(changes)
        await self._store_notes({path: None for path, state in changes.items() if state is None})

    def _encode(self, path: str, state: EntityState | None) -> EncodedRecord:
        now_ns = time.time_ns()
        if state is None:
            entity = StateEntity(self._sources.host, "", "", path=path)
            return EncodedRecord(f"tombstone {path}", entity.key, f"{STATE_PREFIX}tombstone", now_ns, b"", entity)
        return self._sink.encode_state(
            Record(state.type, state.entity, state.data, now_ns, state.subject, state.severity)
        )

    def _note_of(self, path: str) -> dict[str, Any]:
        """Return the note of an entity that the topic may have from now on."""
        uuid = path.removeprefix(vm_path(""))
        if uuid not in self._monitors:
            return {}
        migration = self._migrations.get(uuid)
        return {"monitor": self._monitors[uuid]} | ({"last_migration": migration} if migration else {})

    async def _store_notes(self, values: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Store notes of paths in one transaction. A value of None deletes the note."""
        notes = [StateNote(NOTE_PREFIX + path, value) for path, value in values.items()]
        done = await asyncio.gather(*map(self._sink.persist_note, notes))
        for (path, value), is_stored in zip(values.items(), done, strict=True):
            if value is None:
                self._stored.discard(path)
                self._unstored.discard(path)
            else:
                (self._stored.add if is_stored else self._unstored.add)(path)
                if is_stored:
                    self._unstored.discard(path)


class StateMetrics(Collector):
    """The topic of states."""

    def __init__(self, states: StatePublisher) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        states = self._states
        yield GaugeMetricFamily(
            "qmp_agent_state_entities", "Number of VMs, alerts and hosts in the topic of states.", value=states.entities
        )
        yield GaugeMetricFamily(
            "qmp_agent_state_pending_entities",
            "Number of these whose latest change is not in the topic yet.",
            value=states.pending,
        )
        yield CounterMetricFamily(
            "qmp_agent_state_records",
            "Total number of records written to the topic of states.",
            value=states.records_written,
        )
