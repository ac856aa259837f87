"""Lookups of names, levels and growth of disks, for records, the endpoint and the alerts of pools. Pure."""

from agent.alerts.disk_alerts import DiskAlerts
from agent.alerts.disk_levels import LevelAsUsedBytes
from agent.alerts.pool_usage import MAX_GROWERS, GrowingDisk, PoolUsage
from agent.alerts.processes import VmProcessRegistry
from agent.model.record import Record, Vm


class DiskLookup:
    """Looks up names, levels and growth of disks."""

    def __init__(self, processes: VmProcessRegistry, disks: DiskAlerts) -> None:
        self._processes = processes
        self._disks = disks

    def levels_of_disk(self, vm: Vm, device: str) -> tuple[LevelAsUsedBytes, ...]:
        """Return the levels of a VM's disk, the lowest first; empty if the policy is off or the disk cannot run out of space."""
        state = self._processes.find_active_process_of_vm(vm)
        tracker = state.trackers.get(device) if state is not None else None
        return tracker.applicable_levels if tracker is not None else ()

    def fastest_growing_disks(self, pool: PoolUsage) -> list[GrowingDisk]:
        """Return the growing disks on a pool, the fastest first, at most `MAX_GROWERS`."""
        growers = []
        for vm, device, layer in pool.images:
            state = self._processes.find_active_process_of_vm(vm) if layer == "storage" else None
            tracker = state.trackers.get(device) if state is not None else None
            if tracker is not None and (rate := tracker.usage.growth.rate):
                growers.append(GrowingDisk(vm.name, device, rate))
        return sorted(growers, key=lambda grower: -grower.rate)[:MAX_GROWERS]

    def stable_disk_name_of_event(self, event: Record) -> str:
        """Return the subject of an event about a disk: the disk's stable name, or the name in the event if the disk is unknown."""
        state = self._processes.find_attached_process_of_vm(event.vm)
        if state is None:
            return event.subject
        device, is_certain = self._disks.device_of_event(state, event.subject, event.data["qemu"])
        return device if is_certain else event.subject
