"""Sets write thresholds of disks through the sessions, and stores in the journal which thresholds the agent has set."""

from collections.abc import Sequence

from agent.alerts.engine import AlertEngine
from agent.app.publisher import RecordPublisher
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import Vm
from agent.qmp.commands import Command


class WriteThresholdController:
    """Sets write thresholds: implements `ThresholdController` for the sessions."""

    def __init__(self, engine: AlertEngine, publisher: RecordPublisher) -> None:
        self._commands = engine.threshold_commands
        self._persistence = engine.persistence
        self._publisher = publisher

    def pop_collectors_to_poll(self, vm: Vm) -> frozenset[str]:
        """Return the names of the collectors to poll now. The next call does not return the same names again."""
        return self._commands.pop_collectors_to_poll(vm)

    def has_pending_commands(self, vm: Vm) -> bool:
        """Return whether there may be commands to send to a VM now."""
        return self._commands.has_pending_commands(vm)

    async def pop_pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Store the VM's persistent entry in the journal, then return the commands to send now, each with its disk."""
        commands = self._commands.pop_pending_commands(vm)
        if commands:
            await self._publisher.store_entry_in_journal(PersistentEntry(*self._persistence.entry_of_vm(vm.uuid)))
        return commands

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the end of a command. `done` is whether QEMU confirmed the execution of the command."""
        self._commands.on_command_done(vm, disk, done=done)
