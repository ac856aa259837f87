"""Forwards events and samples to the alert engine, publishes the alerts, and stores their state for the next start of the agent.

A persistent entry is a named value that the journal keeps across restarts of the agent. Each VM has an entry with the state of all its
alerts. The journal stores the entry and an alert's record in one transaction.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from agent.alerts.alertmanager_request import AlertmanagerRequests
from agent.alerts.engine import AlertChange, AlertEngine
from agent.alerts.pool_alerts import PoolAlerts
from agent.alerts.pool_usage import PoolRegistry
from agent.app.builders import (
    alert_overrides,
    device_identity_of_local_vm,
    device_size_of_local_vm,
    disk_threshold_policy,
    guest_alert_policy,
    is_qemu_process,
    pool_policy,
)
from agent.app.causation import CausationIdLookup, no_causation_id
from agent.app.publisher import RecordPublisher
from agent.config.model import AlertsConfig
from agent.model.family import Family, Sample
from agent.model.metrics.guest import GUEST_AGENT
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import Record, Vm
from agent.session.shared_types import VmLifecycleChange

_log = logging.getLogger("agent")


def has_vm_ended_on_host(change: VmLifecycleChange, record: Record) -> bool:
    """Return whether a detached VM has ended on this host: its guest shut down or migrated away."""
    return "shutdown_reason" in record.data or change is VmLifecycleChange.MIGRATED_OUT


class AlertPublisher:
    """Passes events and samples to the alert engine, and publishes the alert records that the engine returns.

    Attributes:
        pools: the alerts about storage pools.
        engine: the alerts about VMs.
        requests: composes the requests to Alertmanager.
        changed: set when an alert fires or is resolved.
        on_record: called with the record of each alert that fires or is resolved.
        causation_id_of_alert: given an alert's record, returns the id of the record that caused the alert.
    """

    def __init__(self, host: str, config: AlertsConfig, publisher: RecordPublisher, pools: PoolRegistry) -> None:
        self.engine = AlertEngine(
            host,
            partial(disk_threshold_policy, config.disks),
            device_size_of_local_vm,
            is_qemu_process,
            pools.pool_of_image,
            device_identity_of_local_vm,
        )
        self.pools = PoolAlerts(
            host,
            self.engine.store,
            pools,
            partial(pool_policy, config.pools),
            self.engine.disk_lookup.fastest_growing_disks,
        )
        self.engine.rules.samples.pools_of_disk = pools.pools_of_disk
        self.engine.set_guest_policy(guest_alert_policy(config))
        self.engine.set_overrides(alert_overrides(config), [alert.to_alert_rule() for alert in config.custom])
        self.requests = AlertmanagerRequests(host, time.time())
        self.changed = asyncio.Event()
        self.on_record: Callable[[Record], None] = lambda _record: None
        self._publisher = publisher
        self.causation_id_of_alert: CausationIdLookup = no_causation_id

    @contextlib.contextmanager
    def setting_causation_id_of_alerts(self, cause_of: CausationIdLookup) -> Iterator[None]:
        """Set `causation_id_of_alert` for the alerts that the `with` block publishes. The block must not await."""
        self.causation_id_of_alert = cause_of
        try:
            yield
        finally:
            self.causation_id_of_alert = no_causation_id

    def restore(self) -> None:
        """Restore the alerts of the previous run from the journal."""
        entries = self._publisher.delivery.stored_persistent_entries
        self.engine.persistence.restore(entries, time.monotonic())
        self.pools.restore(entries, time.time())

    def apply_config(self, config: AlertsConfig) -> None:
        """Apply a new config to the alerts of all disks and guests."""
        self.engine.set_threshold_policy(partial(disk_threshold_policy, config.disks))
        self.engine.set_guest_policy(guest_alert_policy(config))
        self.engine.set_overrides(alert_overrides(config), [alert.to_alert_rule() for alert in config.custom])

    def on_event(self, record: Record, id_of_event: CausationIdLookup = no_causation_id) -> None:
        """Update the alerts after an event.

        Args:
            record: the record of the event.
            id_of_event: returns the id of the event's record, or an empty string; called only if the event changes an alert.
        """
        if pending := self.engine.on_event(record, record.data["event"], time.time_ns()):
            record_id = id_of_event(record)
            with self.setting_causation_id_of_alerts(lambda _alert: record_id):
                self.publish(pending)

    def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
        """Update the alerts after a lifecycle change."""
        if change is VmLifecycleChange.ATTACHED:
            self.publish(self.engine.on_attached(record.vm, record.time_ns, record.data.get("pid")))
        elif change in (VmLifecycleChange.GONE, VmLifecycleChange.DETACHED, VmLifecycleChange.MIGRATED_OUT):
            permanently = has_vm_ended_on_host(change, record)
            gone = self.engine.on_detached(record.vm, time.monotonic(), permanently=permanently, time_ns=record.time_ns)
            self.publish(gone)

    def on_block_samples(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Sequence[Sample]:
        """Update the alerts after a poll of disks. Return the VM's samples of the family `block_space`."""
        pending, spaces = self.engine.on_disk_samples(vm, samples, time.monotonic(), time_ns, families=families)
        self.publish(pending)
        return spaces

    def on_run_state(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the run state of a VM, if the samples contain the run state."""
        for sample in samples:
            if sample.family is RUNSTATE and type(running := sample.values.get("running")) is bool:
                status = str(sample.values.get("status", ""))
                self.publish(self.engine.on_run_state(vm, time_ns, running=running, status=status))

    def on_migration(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the migration status of a VM, if the samples contain the status."""
        for sample in samples:
            if sample.family is MIGRATION and isinstance(status := sample.values.get("status"), str):
                self.publish(self.engine.on_migration(vm, status, time_ns))

    def on_jobs(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts after a poll of jobs."""
        self.publish(self.engine.on_jobs(vm, samples, time_ns, time.time_ns()))

    def on_guest_channel(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the state of the guest agent's channel, if the samples contain this state."""
        for sample in samples:
            if sample.family is GUEST_AGENT and type(connected := sample.values.get("connected")) is bool:
                self.publish(self.engine.on_guest_channel(vm, time_ns, connected=connected))

    def on_guest_samples(self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Update the alerts after a query of a guest agent."""
        self.publish(self.engine.on_guest_samples(vm, families, samples, time_ns))
        self.on_samples_for_alert_rules(vm, families, samples, time_ns)

    def on_guest_queries_disabled(self, vm: Vm, time_ns: int) -> None:
        """Resolve the guest-agent alerts of a guest that is no longer queried."""
        self.publish(self.engine.on_guest_queries_disabled(vm, time_ns))

    def on_samples_for_alert_rules(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> None:
        """Evaluate the built-in and custom alert rules on the samples of a poll."""
        if not self.engine.rules.samples.families.isdisjoint(families):
            self.publish(self.engine.on_samples_for_alert_rules(vm, families, samples, time_ns))

    async def tick(self) -> None:
        """Update the alerts that depend on time, and store the changed persistent entries. Call this about once a second."""
        self.publish(self.engine.tick(time.monotonic(), time.time_ns()))
        delivery = self._publisher.delivery
        if delivery.journal is None or delivery.journal.error is not None:
            return  # the entries are stored at a later tick
        entries = [
            PersistentEntry(*entry)
            for entry in (*self.engine.persistence.entries_to_store(time.time_ns()), *self.pools.entries_to_store())
        ]
        # One transaction stores all entries.
        await asyncio.gather(*(self._publisher.store_entry_in_journal(entry) for entry in entries))

    def publish(self, pending: Sequence[AlertChange]) -> None:
        """Publish and log alerts that fire or are resolved. The journal stores an alert's record and persistent entry together."""
        for alert in pending:
            record = alert.record._replace(causation_id=self.causation_id_of_alert(alert.record))
            self._publisher.publish(record, PersistentEntry(*alert.entry))
            self.on_record(record)
            level = logging.WARNING if record.data["state"] == "firing" else logging.INFO
            what = " of ".join(filter(None, (record.data["alert"], record.subject)))
            if record.data["state"] == "resolved":
                self.requests.on_resolved(record.data["fingerprint"], record.data["resolved_by"])
            cause = f": {monitors}" if (monitors := record.data.get("monitors")) else ""
            _log.log(level, "%s: alert %s %s%s", record.vm.name or record.vm.host, what, record.data["state"], cause)
        if pending:
            self.changed.set()
