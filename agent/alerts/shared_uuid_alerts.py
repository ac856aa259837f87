"""Alerts of QEMU processes that share a UUID. Pure: the module returns records.

After a migration within the host or a restart of the VM, another process becomes the primary process of the UUID. The new primary process
takes over the alerts that are still true. If the guests of several processes run at the same time, the UUID clashes, and the alert
`uuid_clash` fires.
"""

from collections.abc import Iterator

from agent.alerts.disk_alerts import DiskAlerts
from agent.alerts.failure_rules import UUID_CLASH_HELP
from agent.alerts.processes import VmProcessRegistry
from agent.alerts.rules.process_state import EMPTY_SET, VmProcessState
from agent.alerts.run_state_alerts import RunStateAlerts
from agent.alerts.store import Alert, AlertStore
from agent.model.record import Record, Severity


class SharedUuidAlerts:
    """Moves alerts to the new primary process of a UUID, and fires and resolves the alert `uuid_clash`."""

    def __init__(
        self, store: AlertStore, processes: VmProcessRegistry, disks: DiskAlerts, run_states: RunStateAlerts
    ) -> None:
        self._store = store
        self._processes = processes
        self._disks = disks
        self._run_states = run_states

    def switch_primary(self, uuid: str, time_ns: int) -> Iterator[Record]:
        """Change the primary process of a UUID if necessary. Resolve the alerts that are not true for the new primary process."""
        successor = self._processes.next_primary(uuid)
        if successor is None:
            return
        primary = self._processes.processes_with_uuid(uuid)[0]
        has_ended = self._processes.has_ended(primary, successor)
        inherits = not successor.is_active  # a clone that ran beside the primary has its own disks and alerts
        alerts = self._store.alerts_of_owner(primary.owner)
        kept = [
            alert
            for alert in alerts
            if inherits
            and _is_still_true(alert, primary, has_ended=has_ended)
            and self._store.find(successor.owner, *alert.key) is None
        ]
        ended = [alert for alert in alerts if alert not in kept]
        reason = "vm_gone" if primary.detached_at is not None else "migrated"
        self._processes.make_primary(successor)
        if inherits:
            self._disks.restore_disks(successor, primary.disk_threshold_states())
        primary.trackers, primary.restored_disks = {}, {}
        self._store.reassign(kept, successor.vm, successor.owner)
        self._run_states.on_attached(successor)
        successor.collectors_to_poll |= {"block", "nodes"} if primary.detached_at is None else EMPTY_SET
        yield from self._store.resolve(ended, time_ns, reason)
        if has_ended:
            self._processes.remove(primary)

    def check_clashes(self, now_ns: int) -> Iterator[Record]:
        """Fire or resolve `uuid_clash` for each UUID that several processes share. `now_ns` is in nanoseconds since the epoch."""
        firing_uuids = {alert.vm.uuid for alert in self._store.all_including_muted() if alert.name == "uuid_clash"}
        for uuid in firing_uuids.union(self._processes.shared_uuids()):
            yield from self._check_uuid(uuid, now_ns)

    def _check_uuid(self, uuid: str, now_ns: int) -> Iterator[Record]:
        states = self._processes.processes_with_uuid(uuid)
        clashing_processes = self._processes.running_processes_sharing_uuid(uuid)
        for state in states[1:]:
            state.is_active = state in clashing_processes
        if clashing_processes:
            primary = states[0]
            monitors = ", ".join(sorted(state.vm.monitor for state in clashing_processes))
            data = {"help": UUID_CLASH_HELP, "monitors": monitors}
            if self._store.find(primary.owner, "uuid_clash") is None:
                yield from self._store.fire(primary.build_alert("uuid_clash", "", Severity.ERROR, now_ns, data))
        elif len(states) < 2 or self._processes.runs_at_most_one_guest(uuid):
            alerts = (self._store.find(state.owner, "uuid_clash") for state in states)
            yield from self._store.resolve((alert for alert in alerts if alert is not None), now_ns, "uuid_unique")
        if len(self._processes.processes_with_running_guest(uuid)) > 1:
            for state in states:
                state.collectors_to_poll |= {"runstate"}


def _is_still_true(alert: Alert, primary: VmProcessState, *, has_ended: bool) -> bool:
    """Return whether an alert of the old primary process is also true for the new primary process."""
    if alert.name == "write_threshold":
        return True  # the disks are as full as before
    if has_ended:
        return False
    if primary.detached_at is not None:
        return True  # primary and successor may be one process with two monitors; a later run state resolves the alert
    return not alert.status  # the stopped guest is gone, or it runs in the successor now
