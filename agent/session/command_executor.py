"""Execution of QMP commands on one connection, with a deadline."""

import time
from collections.abc import Iterable, Sequence
from math import inf

from agent.monitors import MonitorConnection
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.qmp.errors import MonitorBusyError, StalledError, UnreadableReplyError
from agent.qmp.protocol import SkippedQmpMessages
from agent.session.shared_types import SessionContext
from agent.session.stall_probe import StallProbe


class CommandExecutor:
    """Executes commands on one connection. Also stores when the session has to act next, for the agent's watchdog.

    Attributes:
        last_unreadable_error: error of the last unreadable reply in `execute_with_retry`; empty if all replies were readable. The caller
            resets this attribute.
        next_action_at: when the session has to act next, in seconds on the monotonic clock; `inf` while the session waits for an overdue
            reply.
    """

    __slots__ = ("_client", "_context", "_probe", "_skipped", "last_unreadable_error", "next_action_at")

    def __init__(self, client: MonitorConnection, context: SessionContext, probe: StallProbe) -> None:
        self.last_unreadable_error = ""
        self.next_action_at = inf
        self._client = client
        self._context = context
        self._probe = probe
        self._skipped = SkippedQmpMessages()

    async def execute(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Send commands in one write. Return the results in the order of the commands.

        Raises:
            MonitorBusyError: the monitor is in use by another client.
            StalledError: a reply is overdue. Call `wait_until_qemu_responds` next.
            QmpError: the connection ended, or a command is not allowed.
        """
        timeout = self._context.settings.response_seconds
        self.next_action_at = time.monotonic() + timeout
        return await self._client.execute(commands, deadline=timeout)

    def pop_skipped_messages(self) -> Iterable[tuple[str, int]]:
        """Return how many of QEMU's messages were skipped since the last call, as pairs of a reason and a number."""
        total, before = self._client.skipped_invalid_message_counts, self._skipped
        if total is before:
            return ()
        self._skipped = total
        counts = zip(SkippedQmpMessages._fields, total, before, strict=True)
        return [(reason, now - then) for reason, now, then in counts if now > then]

    async def execute_with_retry(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Execute commands like `execute`. After each stall, execute the commands again until QEMU replies in time.

        Raises:
            QmpError: the connection ended, or a command is not allowed.
        """
        while True:
            try:
                results = await self.execute(commands)
            except (MonitorBusyError, StalledError) as error:
                await self.wait_until_qemu_responds(error)
            else:
                self.last_unreadable_error = next(
                    (str(result) for result in results if isinstance(result, UnreadableReplyError)),
                    self.last_unreadable_error,
                )
                return results

    async def wait_until_qemu_responds(self, error: MonitorBusyError | StalledError) -> None:
        """Wait until QEMU has replied to all commands. If another client holds the monitor, wait until that client disconnects.

        Args:
            error: why the session has to wait.

        Raises:
            QmpError: the connection ended.
        """
        self.next_action_at = inf
        await self._probe.wait_until_qemu_responds(error)
        self.next_action_at = time.monotonic()
