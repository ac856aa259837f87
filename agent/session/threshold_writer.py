"""Sets write thresholds in the QEMU of one VM."""

import logging
import time

from agent.model.record import Vm
from agent.qmp.errors import CommandRefusedError, QmpError, StalledError
from agent.session.api import SessionContext
from agent.session.command_executor import CommandExecutor
from agent.session.scheduler import Schedule

_log = logging.getLogger(__name__)


class ThresholdWriter:
    """Executes the commands that set write thresholds on one VM."""

    __slots__ = ("_context", "_executor", "_schedule", "_vm")

    def __init__(self, context: SessionContext, executor: CommandExecutor, schedule: Schedule, vm: Vm) -> None:
        self._context = context
        self._executor = executor
        self._schedule = schedule
        self._vm = vm

    def refreshes_due(self) -> frozenset[str]:
        """Return the names of the collectors to poll now for the threshold controller."""
        controller = self._context.thresholds
        return controller.refreshes_due(self._vm) if controller is not None else frozenset()

    async def apply(self, *, receives_events: bool) -> None:
        """Execute the pending commands one by one. Then make the collectors due that the threshold controller needs.

        After a stall, the remaining commands are dropped, because they were computed from old samples. Without events, no threshold is set,
        because the agent would miss the event of the threshold. Each poll compares the levels anyway.

        Args:
            receives_events: whether this connection receives events.

        Raises:
            QmpError: the connection ended.
        """
        controller = self._context.thresholds
        if controller is None:
            return
        stalled = False
        for disk, command in await controller.pending_commands(self._vm) if receives_events else ():
            done = False
            try:
                if not stalled:
                    (result,) = await self._executor.execute((command,))
                    done = not isinstance(result, QmpError)
            except CommandRefusedError as error:  # a config reload has just forbidden the command
                _log.info("%s: write threshold of disk %s not set: %s", self._vm.name, disk, error)
            except StalledError as error:
                stalled = True
                await self._executor.wait_until_responsive(error)
            finally:
                controller.on_command_done(self._vm, disk, done=done)
        self._schedule.demand(controller.refreshes_due(self._vm), time.monotonic())
