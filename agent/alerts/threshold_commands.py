"""The commands that set the write thresholds of disks, and the collectors to poll before these commands. Pure."""

from agent.alerts.disk_alerts import DiskAlerts
from agent.alerts.processes import VmProcessRegistry
from agent.alerts.rules.process_state import EMPTY_SET
from agent.model.record import Vm
from agent.qmp.commands import Command


class ThresholdCommands:
    """The commands that set write thresholds, and the polls that these commands need, for all VMs."""

    def __init__(self, processes: VmProcessRegistry, disks: DiskAlerts) -> None:
        self._processes = processes
        self._disks = disks

    def pop_collectors_to_poll(self, vm: Vm) -> frozenset[str]:
        """Return the names of the collectors to poll now. The stored list of names is then empty."""
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return EMPTY_SET
        names, state.collectors_to_poll = state.collectors_to_poll, EMPTY_SET
        return names

    def has_pending_commands(self, vm: Vm) -> bool:
        """Return whether `pop_pending_commands` may return commands."""
        state = self._processes.find_active_process_of_vm(vm)
        return state is not None and bool(state.slots_read)

    def pop_pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its device. After this call, these thresholds count as set."""
        state = self._processes.find_active_process_of_vm(vm)
        return self._disks.pop_pending_commands(state) if state is not None else []

    def on_command_done(self, vm: Vm, device: str, *, done: bool) -> None:
        """Handle the outcome of the command that set a disk's threshold; `done` is whether QEMU confirmed the command."""
        state = self._processes.find_active_process_of_vm(vm)
        if state is not None:
            self._disks.on_command_done(state, device, done=done)
