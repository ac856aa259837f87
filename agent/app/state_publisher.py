"""Writes the current state of VMs, alerts and the host to the compacted state topic.

An entity is a VM, a firing alert or the host. Each iteration of the loop writes the states that have changed: at most `MAX_CHANGES`
records, and at most one record for each entity. The start of the agent and `rewrite_all` write all states. While Kafka accepts no
records, a newer state of an entity replaces the entity's older state. So the agent queues and drops no states. The journal stores which
keys the topic has. The next run then deletes the keys of entities that ended while the agent was down.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.alerts.engine import REATTACH_SECONDS
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.store import Alert
from agent.app.entity_state_table import EntityState, EntityStateTable
from agent.app.entity_states import (
    STATE_FAMILIES,
    alert_state,
    alert_state_from_record,
    alert_state_key_path,
    host_state,
    migration_fields,
    vm_state,
    vm_state_key_path,
)
from agent.exposition.snapshot import Snapshot, VmView
from agent.model.family import Family
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord, Record, Vm
from agent.model.state_topic_records import STATE_PREFIX, StateRecordEntity
from agent.session.shared_types import MonitorState

WRITE_INTERVAL_SECONDS = 1.0
"""Time between two iterations of the loop, in seconds."""

MAX_CHANGES = 200
"""Maximum number of records that an iteration of the loop writes."""

STATE_ENTRY_PREFIX = "state/"
"""Prefix of the names of the persistent entries that store the topic's keys. The rest of a name is the path of an entity.

The value is a JSON object. The object of a VM has the monitor and the last migration, which the next run cannot query from QEMU.
"""

_ALIVE_BUT_DETACHED = frozenset({MonitorState.BUSY, MonitorState.DENIED, MonitorState.STANDBY})
"""States of a monitor whose VM is alive, although the agent is not attached to the VM."""


class StateSink(Protocol):
    """Delivers records to the state topic, and stores the keys of the records in the journal."""

    def encode_and_broadcast_state(self, record: Record) -> EncodedRecord:
        """Encode a record for the state topic, and send it to the subscribers of the live stream. Return the encoded record."""

    async def deliver_state(self, records: Sequence[EncodedRecord]) -> None:
        """Deliver records. Wait without a deadline until the sink has acknowledged the records."""

    async def store_entry_in_journal(self, value: PersistentEntry) -> bool:
        """Store a persistent entry in the journal. Return whether the entry is on disk."""


@dataclass(frozen=True, slots=True)
class StateSources:
    """The objects from which the states of entities are built.

    Attributes:
        host: name of the host.
        snapshot: the VMs and the monitors.
        alerts: the firing alerts.
        pools: the storage pools that contain images of VMs.
        run_fields: returns the fields that describe this run of the agent.
    """

    host: str
    snapshot: Snapshot
    alerts: Iterable[Alert]
    pools: Iterable[PoolUsage]
    run_fields: Callable[[], Mapping[str, Any]]


class StatePublisher:
    """Writes the current states of VMs, firing alerts and the host to the state topic.

    Attributes:
        write_interval_seconds: time between two iterations of the loop, in seconds.
        records_written: number of records that the sink has acknowledged.
    """

    def __init__(self, sources: StateSources, sink: StateSink, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a publisher. Call `run` to start it.

        Args:
            sources: the parts of the agent that states are built from.
            sink: delivers the records, and stores the entries.
            clock: returns the time in seconds of a monotonic clock.
        """
        self.write_interval_seconds = WRITE_INTERVAL_SECONDS
        self.records_written = 0
        self._sources = sources
        self._sink = sink
        self._clock = clock
        self._table = EntityStateTable()
        self._changed: dict[str, None] = {}  # UUIDs of VMs whose states have to be built again
        self._detached: dict[str, tuple[float, bool]] = {}  # by UUID: when the agent detached, and whether the VM ended
        self._monitors: dict[str, str] = {}  # by UUID, the address of the VM's monitor
        self._migrations: dict[str, dict[str, Any]] = {}  # by UUID, the last migration
        self._stored_paths: set[str] = set()  # paths of the entries in the journal
        self._unstored_paths: set[str] = set()  # paths in the topic whose entries could not be stored

    @property
    def entity_count(self) -> int:
        """Number of entities that have a state."""
        return len(self._table)

    @property
    def pending_count(self) -> int:
        """Number of entities whose latest change is not in the topic yet."""
        return self._table.pending_count + len(self._changed)

    # Changes. None of these methods waits.

    def restore(self, entries: Mapping[str, Any]) -> None:
        """Restore from the journal's persistent entries which keys the topic may have. Restore the firing alerts before this call.

        The state of a VM is deleted if the agent does not attach to the VM again within a minute. The state of an alert that does not
        fire now is deleted immediately.
        """
        for name, value in entries.items():
            path = name.removeprefix(STATE_ENTRY_PREFIX)
            if path == name:
                continue
            self._stored_paths.add(path)
            self._table.add_written_by_earlier_run(path)
            kind, _, identity = path.partition("/")
            if kind == "vms":
                self._detached[identity] = (self._clock(), False)
                fields = value if isinstance(value, dict) else {}
                self._monitors[identity] = str(fields.get("monitor", ""))
                if isinstance(migration := fields.get("last_migration"), dict):
                    self._migrations[identity] = migration
        for alert in self._sources.alerts:
            self._table.put(alert_state(alert))
        for path in self._stored_paths:
            if path.startswith(alert_state_key_path("")) and self._table.get(path) is None:
                self._table.remove(path)

    def on_vm_changed(self, vm: Vm) -> None:
        """Schedule the state of a VM to be built again in the next iteration of the loop."""
        if vm.uuid:
            self._changed[vm.uuid] = None

    def on_samples(self, vm: Vm, families: Sequence[Family]) -> None:
        """Schedule the state of a VM to be built again, if new samples of `families` can change the state."""
        if not STATE_FAMILIES.isdisjoint(families):
            self.on_vm_changed(vm)

    def on_vm_detached(self, vm: Vm, *, permanently: bool) -> None:
        """Store that the agent has detached from a VM. `permanently` is whether the guest shut down or migrated away."""
        if vm.uuid:
            self._detached[vm.uuid] = (self._clock(), permanently)
            self._changed[vm.uuid] = None

    def on_migration_ended(self, record: Record) -> None:
        """Store the last migration of a VM. `record` reports the end of the migration."""
        self._migrations[record.vm.uuid] = migration_fields(record)
        # Store the entry again, because the entry contains the migration.
        self._stored_paths.discard(vm_state_key_path(record.vm.uuid))
        self.on_vm_changed(record.vm)

    def on_alert(self, record: Record) -> None:
        """Update the state of an alert. `record` reports that the alert fires or is resolved."""
        if record.data["state"] == "firing":
            self._table.put(alert_state_from_record(record))
        else:
            self._table.remove(alert_state_key_path(record.data["fingerprint"]))

    def rewrite_all(self) -> int:
        """Schedule all states to be written again, and return the number of states."""
        self._changed |= dict.fromkeys(vm.uuid for vm, _ in self._sources.snapshot.one_view_per_uuid())
        return self._table.write_all_again()

    # The loop.

    async def run(self) -> None:
        """Write the changed states every `write_interval_seconds`, until cancelled."""
        while True:
            await self.build_and_write_changed_states()
            await asyncio.sleep(self.write_interval_seconds)

    async def build_and_write_changed_states(self) -> None:
        """Build the states that may have changed, and write the oldest changes. Wait for the sink's acknowledgement."""
        self._build_changed_states()
        await self._write_changes()

    async def write_host_stopped_state(self, seconds: float) -> None:
        """Write the host's state `stopped`, within at most `seconds`. Call this after `run` has ended.

        The states of VMs stay unchanged, because the VMs still run.
        """
        self._put_host_state("stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._write_changes()

    def _build_changed_states(self) -> None:
        """Build the states that may have changed."""
        changed, self._changed = self._changed, {}
        uuids = dict.fromkeys((*changed, *self._detached))
        views = {vm.uuid: (vm, view) for vm, view in self._sources.snapshot.one_view_per_uuid()} if uuids else {}
        live_monitors: frozenset[str] | None = None
        for uuid in uuids:
            if uuid in views:
                self._detached.pop(uuid, None)
                self._put_vm_state(*views[uuid])
            elif uuid in self._detached:
                live_monitors = self._monitors_of_live_vms() if live_monitors is None else live_monitors
                self._update_detached_vm(uuid, live_monitors)
        self._put_host_state("running")

    def _put_vm_state(self, vm: Vm, view: VmView) -> None:
        self._monitors[vm.uuid] = view.status.monitor.name
        self._table.put(vm_state(vm, view, self._migrations.get(vm.uuid)))

    def _put_host_state(self, state: str) -> None:
        sources = self._sources
        self._table.put(host_state(sources.host, sources.run_fields(), sources.pools, state))

    def _monitors_of_live_vms(self) -> frozenset[str]:
        statuses = self._sources.snapshot.monitors.values()
        return frozenset(status.monitor.name for status in statuses if status.state in _ALIVE_BUT_DETACHED)

    def _update_detached_vm(self, uuid: str, live_monitors: frozenset[str]) -> None:
        """Update the state of a detached VM, or remove the state when the VM has ended.

        Args:
            uuid: the UUID of the VM.
            live_monitors: addresses of the monitors whose VM is alive, although the agent is not attached to the VM.
        """
        detached_at, permanently = self._detached[uuid]
        is_alive = self._monitors.get(uuid) in live_monitors and not permanently
        state = self._table.get(vm_state_key_path(uuid))
        if permanently or (self._clock() - detached_at >= REATTACH_SECONDS and not is_alive):
            del self._detached[uuid]
            self._monitors.pop(uuid, None)
            self._migrations.pop(uuid, None)
            self._table.remove(vm_state_key_path(uuid))
        elif state is not None:
            monitor_state = MonitorState.BUSY if is_alive else MonitorState.GONE
            data = {**state.data, "monitor_state": monitor_state.value}
            self._table.put(EntityState(state.entity, state.type, data))

    async def _write_changes(self) -> None:
        """Write the oldest changes to the topic, and update the persistent entries in the journal."""
        changes = self._table.take_pending_changes(MAX_CHANGES)
        if not changes:
            return
        try:
            new = [path for path, state in changes.items() if state is not None and path not in self._stored_paths]
            retried = [path for path in sorted(self._unstored_paths)[:MAX_CHANGES] if path not in changes]
            await self._store_entries({path: self._entry_value(path) for path in (*new, *retried)})
            await self._sink.deliver_state([self._encode_change(path, state) for path, state in changes.items()])
        except BaseException:
            self._table.on_write_failed()
            raise
        self._table.on_written()
        self.records_written += len(changes)
        await self._store_entries({path: None for path, state in changes.items() if state is None})

    def _encode_change(self, path: str, state: EntityState | None) -> EncodedRecord:
        now_ns = time.time_ns()
        if state is None:
            entity = StateRecordEntity(self._sources.host, "", "", path=path)
            return EncodedRecord(f"tombstone {path}", entity.key, f"{STATE_PREFIX}tombstone", now_ns, b"", entity)
        return self._sink.encode_and_broadcast_state(
            Record(state.type, state.entity, state.data, now_ns, state.subject, state.severity)
        )

    def _entry_value(self, path: str) -> dict[str, Any]:
        """Return the value of an entity's persistent entry."""
        uuid = path.removeprefix(vm_state_key_path(""))
        if uuid not in self._monitors:
            return {}
        migration = self._migrations.get(uuid)
        return {"monitor": self._monitors[uuid]} | ({"last_migration": migration} if migration else {})

    async def _store_entries(self, values: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Store or delete the journal's entries of entities. `values` has a value by path, such as `vms/UUID`; None deletes the entry."""
        entries = [PersistentEntry(STATE_ENTRY_PREFIX + path, value) for path, value in values.items()]
        done = await asyncio.gather(*map(self._sink.store_entry_in_journal, entries))
        for (path, value), is_stored in zip(values.items(), done, strict=True):
            if value is None:
                self._stored_paths.discard(path)
                self._unstored_paths.discard(path)
            else:
                (self._stored_paths.add if is_stored else self._unstored_paths.add)(path)
                if is_stored:
                    self._unstored_paths.discard(path)


class StateTopicMetrics(Collector):
    """Prometheus collector of the metrics about the state topic."""

    def __init__(self, states: StatePublisher) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        states = self._states
        yield GaugeMetricFamily(
            "qmp_agent_state_topic_entities",
            "Number of VMs, alerts and hosts in the state topic.",
            value=states.entity_count,
        )
        yield GaugeMetricFamily(
            "qmp_agent_state_topic_pending_entities",
            "Number of VMs, alerts and hosts whose latest change is not in the state topic yet.",
            value=states.pending_count,
        )
        yield CounterMetricFamily(
            "qmp_agent_state_topic_records",
            "Total number of records written to the state topic.",
            value=states.records_written,
        )
