"""The active instance among several attached VMs with one UUID. Pure.

A migration within the host has two processes with one UUID, and one process can have two monitors.
"""

from agent.model.record import Vm


class ActiveInstances:
    """Attached VMs by UUID, each with its run state."""

    def __init__(self) -> None:
        self._running: dict[str, dict[Vm, bool | None]] = {}  # None: not known yet

    def add(self, vm: Vm) -> None:
        """Add an attached VM whose run state is not known yet."""
        self._running.setdefault(vm.uuid, {})[vm] = None

    def remove(self, vm: Vm) -> None:
        """Remove a detached VM."""
        instances = self._running.get(vm.uuid, {})
        instances.pop(vm, None)
        if not instances:
            self._running.pop(vm.uuid, None)

    def set_running(self, vm: Vm, *, running: bool) -> None:
        """Store whether an attached VM runs."""
        instances = self._running.get(vm.uuid, {})
        if vm in instances:
            instances[vm] = running

    def successor(self, uuid: str, active: Vm | None) -> Vm | None:
        """Return the instance that becomes active instead of `active`, or None where nothing changes.

        The destination of a migration becomes active when it runs and its source does not.
        Until then the source writes, and if the migration fails, the source is left.
        """
        instances = self._running.get(uuid, {})
        running = next((vm for vm, runs in instances.items() if runs), None)
        if active not in instances:
            return running or next(iter(instances), None)
        return running if instances[active] is False else None
