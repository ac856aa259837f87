"""Forwards events and samples to the alert manager, publishes its alerts, and stores their state for the next start of the agent.

The state of all alerts of a VM is a note in the journal. The record of an alert and the note are stored in one transaction.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from agent.alerts.alertmanager_request import AlertmanagerRequests
from agent.alerts.manager import AlertManager, PendingAlert
from agent.alerts.pool_alerts import PoolAlerts
from agent.alerts.pool_usage import PoolRegistry, PoolUsage
from agent.app.builders import (
    device_identity_of,
    device_size_of,
    guest_alert_policy,
    is_qemu,
    pool_policy,
    threshold_policy,
)
from agent.app.causes import CauseOf, no_cause
from agent.app.publisher import RecordPublisher
from agent.config.model import AlertsConfig, PoolAlertsConfig
from agent.model.family import Family, Sample
from agent.model.metrics.guest import GUEST_AGENT
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, StateNote, Vm
from agent.qmp.commands import Command
from agent.session.api import VmChange

_log = logging.getLogger("agent")

STORE_NOTE_SECONDS = 2.0
"""Maximum time that a threshold command waits for the journal to store its state note."""


def is_for_good(change: VmChange, record: Record) -> bool:
    """Return whether a detached VM will not return to this host, because its guest shut down or migrated away."""
    return "shutdown_reason" in record.data or change is VmChange.MIGRATED_OUT


class AlertBridge:
    """Connects the alert manager to the sessions and to delivery. It implements `ThresholdController` for the sessions.

    Attributes:
        pools: the alerts about storage pools.
        manager: the alerts about VMs.
        requests: composes the requests to Alertmanager.
        changed: set when an alert fires or is resolved.
        on_record: called with the record of each alert that fires or is resolved.
    """

    def __init__(self, host: str, config: AlertsConfig, publisher: RecordPublisher, pools: PoolRegistry) -> None:
        self.manager = AlertManager(
            host,
            partial(threshold_policy, config.write_threshold),
            device_size_of,
            is_qemu,
            pools.pool_of_image,
            device_identity_of,
        )
        self.pools = PoolAlerts(
            host, self.manager.store, pools, partial(pool_policy, config.pool), self.manager.growers
        )
        self.manager.set_guest_policy(guest_alert_policy(config.guest))
        self.requests = AlertmanagerRequests(host, time.time())
        self.changed = asyncio.Event()
        self.on_record: Callable[[Record], None] = lambda _record: None
        self._publisher = publisher
        self._cause_of: CauseOf = no_cause

    @contextlib.contextmanager
    def caused_by(self, cause_of: CauseOf) -> Iterator[None]:
        """Set the `causationid` of alerts that are published in the `with` block to the result of `cause_of`. The block must not await."""
        self._cause_of = cause_of
        try:
            yield
        finally:
            self._cause_of = no_cause

    def restore(self) -> None:
        """Restore the alerts of the previous run from the journal."""
        notes = self._publisher.delivery.stored_notes
        self.manager.notes.restore(notes, time.monotonic())
        self.pools.restore(notes, time.time())

    def set_policy(self, config: AlertsConfig) -> None:
        """Apply a new config to the alerts of all disks and guests."""
        self.manager.set_policy(partial(threshold_policy, config.write_threshold))
        self.manager.set_guest_policy(guest_alert_policy(config.guest))

    def set_pool_policy(self, config: PoolAlertsConfig) -> None:
        """Apply a new config of the alerts of pools."""
        for usage in self.pools.set_policy(partial(pool_policy, config)):
            self._publish_pool_alerts(usage, self.pools.compare(usage, time.time_ns()))

    def on_pool_reading(self, usage: PoolUsage) -> None:
        """Update the alerts of a pool after it was read."""
        self._publish_pool_alerts(usage, self.pools.on_reading(usage, time.time_ns()))

    def on_pool_error(self, usage: PoolUsage) -> None:
        """Update the alerts of a pool that responds, but whose sizes cannot be read."""
        self._publish_pool_alerts(usage, self.pools.on_answer(usage, time.time_ns()))

    def on_pool_silence(self, usage: PoolUsage) -> None:
        """Update the alerts of a pool that does not respond."""
        self._publish_pool_alerts(usage, self.pools.on_silence(usage, time.time_ns()))

    def on_pool_removed(self, usage: PoolUsage) -> None:
        """Resolve the alerts of a pool that no VM uses any more."""
        self._publish_pool_alerts(usage, self.pools.on_removed(usage, time.time_ns()))

    def _publish_pool_alerts(self, usage: PoolUsage, records: Iterable[Record]) -> None:
        self._publish_alerts([PendingAlert(record, self.pools.note_of(usage)) for record in records])

    def subject_of(self, event: Record) -> str:
        """Return the subject of an event about a disk: the disk's stable name, or QEMU's name for it if the disk is unknown."""
        return self.manager.subject_of(event)

    def on_event(self, record: Record, record_id: str = "") -> None:
        """Update the alerts after an event.

        Args:
            record: the record of the event.
            record_id: id of the record; empty if the record is not encoded yet.
        """
        if pending := self.manager.on_event(record, record.data["event"], time.time_ns()):
            with self.caused_by(lambda _alert: record_id):
                self._publish_alerts(pending)

    def on_lifecycle(self, change: VmChange, record: Record) -> None:
        """Update the alerts after a lifecycle change."""
        if change is VmChange.ATTACHED:
            self._publish_alerts(self.manager.on_attached(record.vm, record.time_ns, record.data.get("pid")))
        elif change in (VmChange.GONE, VmChange.DETACHED, VmChange.MIGRATED_OUT):
            for_good = is_for_good(change, record)
            gone = self.manager.on_gone(record.vm, time.monotonic(), for_good=for_good, time_ns=record.time_ns)
            self._publish_alerts(gone)

    def on_block_samples(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Sequence[Sample]:
        """Update the alerts after a poll of disks. Return samples of the free space of the VM's disks."""
        pending, spaces = self.manager.on_samples(vm, samples, time.monotonic(), time_ns, families=families)
        self._publish_alerts(pending)
        return spaces

    def on_run_state(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the run state of a VM, if the samples contain it."""
        for sample in samples:
            if sample.family is RUNSTATE and type(running := sample.values.get("running")) is bool:
                status = str(sample.values.get("status", ""))
                self._publish_alerts(self.manager.on_run_state(vm, time_ns, running=running, status=status))

    def on_migration(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the migration status of a VM, if the samples contain it."""
        for sample in samples:
            if sample.family is MIGRATION and isinstance(status := sample.values.get("status"), str):
                self._publish_alerts(self.manager.on_migration(vm, status, time_ns))

    def on_jobs(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts after a poll of jobs."""
        self._publish_alerts(self.manager.on_jobs(vm, samples, time_ns, time.time_ns()))

    def on_guest_channel(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> None:
        """Update the alerts with the state of the guest agent's channel among these samples."""
        for sample in samples:
            if sample.family is GUEST_AGENT and type(connected := sample.values.get("connected")) is bool:
                self._publish_alerts(self.manager.on_guest_channel(vm, time_ns, connected=connected))

    def on_guest_samples(self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Update the alerts after a query of a guest agent."""
        self._publish_alerts(self.manager.on_guest_samples(vm, families, samples, time_ns))

    def on_guest_disabled(self, vm: Vm, time_ns: int) -> None:
        """Resolve the alerts about the inside of a guest that is no longer queried."""
        self._publish_alerts(self.manager.on_guest_disabled(vm, time_ns))

    async def tick(self) -> None:
        """Update the alerts that depend on time, and store the notes that changed. The caller calls this about once a second."""
        self._publish_alerts(self.manager.tick(time.monotonic(), time.time_ns()))
        delivery = self._publisher.delivery
        if delivery.journal is None or delivery.journal.error is not None:
            return  # the notes are stored at a later tick
        notes = [StateNote(*note) for note in (*self.manager.notes.notes_due(), *self.pools.notes_due())]
        await asyncio.gather(*(delivery.persist_note(note, STORE_NOTE_SECONDS) for note in notes))  # all in one commit

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the names of the collectors that the session of a VM should run again now."""
        return self.manager.refreshes_due(vm)

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Return the threshold commands to send to a VM now, each with its disk. Store the note with their state in the journal first."""
        commands = self.manager.pending_commands(vm)
        if commands:
            await self._publisher.delivery.persist_note(
                StateNote(*self.manager.notes.note_of_vm(vm.uuid)), STORE_NOTE_SECONDS
            )
        return commands

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the end of a threshold command. `done` is whether QEMU confirmed that it executed the command."""
        self.manager.on_command_done(vm, disk, done=done)

    def _publish_alerts(self, pending: Sequence[PendingAlert]) -> None:
        """Publish alerts. The journal stores each alert and its note in one transaction."""
        for alert in pending:
            record = alert.record._replace(causation_id=self._cause_of(alert.record))
            self._publisher.publish(record, StateNote(*alert.note))
            self.on_record(record)
            level = logging.WARNING if record.data["state"] == "firing" else logging.INFO
            what = " of ".join(filter(None, (record.data["alert"], record.subject)))
            if record.data["state"] == "resolved":
                self.requests.on_resolved(record.data["fingerprint"], record.data["resolved_by"])
            cause = f": {monitors}" if (monitors := record.data.get("monitors")) else ""
            _log.log(level, "%s: alert %s %s%s", record.vm.name or record.vm.host, what, record.data["state"], cause)
        if pending:
            self.changed.set()
