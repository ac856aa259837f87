"""Executes the commands that set write thresholds and latency histograms in the QEMU of one VM."""

import logging
import time
from collections.abc import Iterator

from agent.model.record import Vm
from agent.qmp.commands import Command
from agent.qmp.errors import CommandNotAllowedError, QmpError, StalledError
from agent.session.command_executor import CommandExecutor
from agent.session.scheduler import Schedule
from agent.session.shared_types import DiskCommandController, SessionContext

_log = logging.getLogger(__name__)


class DiskCommandExecutor:
    """Executes the commands that change the disks of one VM."""

    __slots__ = ("_context", "_executor", "_schedule", "_vm")

    def __init__(self, context: SessionContext, executor: CommandExecutor, schedule: Schedule, vm: Vm) -> None:
        self._context = context
        self._executor = executor
        self._schedule = schedule
        self._vm = vm

    def pop_collectors_to_poll(self) -> frozenset[str]:
        """Return and remove the names of the collectors that the threshold controller requested."""
        controller = self._context.thresholds
        return controller.pop_collectors_to_poll(self._vm) if controller is not None else frozenset()

    def has_pending_commands(self, *, receives_events: bool) -> bool:
        """Return whether `execute_pending_commands` has commands to execute.

        Args:
            receives_events: whether this connection receives events.
        """
        thresholds, histograms = self._context.thresholds, self._context.histograms
        return (thresholds is not None and receives_events and thresholds.has_pending_commands(self._vm)) or (
            histograms is not None and histograms.has_pending_commands(self._vm)
        )

    def schedule_requested_polls(self) -> None:
        """Schedule the collectors that the threshold controller requested."""
        if names := self.pop_collectors_to_poll():
            self._schedule.schedule_now(names, time.monotonic())

    async def execute_pending_commands(self, *, receives_events: bool) -> None:
        """Execute the pending commands one by one. Then schedule the collectors that the threshold controller requested.

        A stall drops the remaining commands, because the commands were computed from old samples. No write threshold is set on a
        connection without events, because the agent would miss the threshold's event.

        Args:
            receives_events: whether this connection receives events.

        Raises:
            QmpError: the connection ended.
        """
        has_stalled = False
        for controller in self._controllers(receives_events=receives_events):
            for disk, command in await controller.pop_pending_commands(self._vm):
                done = False
                try:
                    if not has_stalled:
                        done = await self._execute(disk, command)
                except StalledError as error:
                    has_stalled = True
                    await self._executor.wait_until_qemu_responds(error)
                finally:
                    controller.on_command_done(self._vm, disk, done=done)
        self.schedule_requested_polls()

    def _controllers(self, *, receives_events: bool) -> Iterator[DiskCommandController]:
        """Yield the controllers whose commands may be sent."""
        if self._context.thresholds is not None and receives_events:
            yield self._context.thresholds
        if self._context.histograms is not None and self._context.histograms.has_pending_commands(self._vm):
            yield self._context.histograms

    async def _execute(self, disk: str, command: Command) -> bool:
        """Execute a command. Return whether QEMU confirmed the command."""
        try:
            (result,) = await self._executor.execute((command,))
        except CommandNotAllowedError as error:  # a config reload has just forbidden the command
            _log.info("%s: %s of disk %s not sent: %s", self._vm.name, command.name, disk, error)
            return False
        return not isinstance(result, QmpError)
