"""Callback polls: polls that wake no asyncio task. A timer sends the commands, and a callback reports the samples in the replies.

A poll can be a callback poll if its commands fit one write, its replies are small, and no command accesses storage. The session's task
runs all other polls.
"""

import asyncio
import time
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agent.monitors import MonitorConnection
from agent.qmp.client import CommandResult, OnResults
from agent.qmp.commands import Command
from agent.qmp.errors import ProtocolError, StalledError
from agent.session.command_executor import CommandExecutor
from agent.session.disk_command_executor import DiskCommandExecutor
from agent.session.poll_start import PollStart
from agent.session.poller import Poller
from agent.session.scheduler import SLACK_SECONDS, Batch, Schedule, commands_of_batch
from agent.session.shared_types import SessionContext

if TYPE_CHECKING:
    from agent.collectors import Collector


@runtime_checkable
class CallbackConnection(Protocol):
    """A connection that can send commands and call back with the replies. `QmpClient` implements and documents the methods."""

    def send_if_idle(self, commands: Sequence[Command], on_results: OnResults) -> bool:
        """Send commands in one write. Return False if the connection cannot send now."""

    def abandon_replies(self, seconds: float) -> StalledError:
        """Stop waiting for the replies, which did not arrive within `seconds`. Return the error to raise."""


class CallbackPolls:
    """Runs the callback polls of one VM, while the session's task waits in `run_until_task_needed`."""

    __slots__ = (
        "_batch",
        "_client",
        "_context",
        "_disk_commands",
        "_ended",
        "_executor",
        "_is_check_pending",
        "_poller",
        "_schedule",
        "_sent_at",
        "_task",
        "_wake_at",
    )

    def __init__(
        self,
        context: SessionContext,
        client: MonitorConnection,
        executor: CommandExecutor,
        schedule: Schedule,
        poller: Poller,
        disk_commands: DiskCommandExecutor,
    ) -> None:
        self._context = context
        self._ended = client.ended_future
        self._client = client if isinstance(client, CallbackConnection) else None
        self._executor = executor
        self._schedule = schedule
        self._poller = poller
        self._disk_commands = disk_commands
        self._task: asyncio.Future[Sequence[str]] | None = None  # completes when the session's task has to continue
        self._batch: Batch[Collector] = []  # the batch whose replies are due
        self._sent_at = PollStart(0, 0.0)
        self._wake_at = inf
        self._is_check_pending = False

    async def run_until_task_needed(self) -> Sequence[str]:
        """Run callback polls until the session's task is needed. Return the names of the polls that the task has to run, if any.

        Raises:
            StalledError: the reply to a callback poll is overdue. Call `wait_until_qemu_responds` next.
            QmpError: the connection ended.
        """
        self._task = asyncio.get_running_loop().create_future()
        self._poll_due()
        return await self._task

    async def wait_until_qemu_responds(self, error: StalledError) -> None:
        """Report the overdue poll, and wait until QEMU answers.

        Raises:
            QmpError: the connection ended.
        """
        batch, self._batch = self._batch, []
        await self._poller.wait_until_qemu_responds(batch, error)

    def close(self) -> None:
        """End the polls, because the connection has ended."""
        self._context.wake_timers.remove(self._wake_at, self)
        self._context.deadlines.remove(self)
        self._task = None

    def check_schedule_and_connection_soon(self) -> None:
        """Check the schedule and the connection in the next turn of the event loop.

        Call this method after each change of the schedule, and when the connection has ended.
        """
        if not self._is_check_pending:
            self._is_check_pending = True
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        self._is_check_pending = False
        if self._ended.done():
            self._on_connection_end()
        elif not self._batch:
            self._poll_due()

    # Sending the commands of a callback poll, and reading the replies.

    def on_wake(self, at: float) -> None:
        """Run the polls that are due."""
        if at == self._wake_at:
            self._wake_at = inf
            if not self._batch:
                self._poll_due()

    def _poll_due(self) -> None:
        """Run the due polls until a poll waits for QEMU, until no poll is due, or until the task has to continue."""
        try:
            while self._is_task_waiting:
                names = self._schedule.pop_due_polls(time.monotonic())
                if not names:
                    self._set_wake_time(self._schedule.next_due_at())
                    return
                if not self._start_polls(names):
                    self._continue_task(names)
                elif self._batch:
                    return
        except Exception as error:  # noqa: BLE001 - a bug ends the task, as if the task had run this code
            self._fail_task(error)

    def _start_polls(self, names: Sequence[str]) -> bool:
        """Send the commands of polls, and read the kernel's files for the polls. Return False if only the task can run the polls."""
        client = self._client
        batch = self._poller.callback_batch(names) if client is not None else None
        if client is None or batch is None:
            return False
        if batch:
            self._sent_at = PollStart.now()
            if not client.send_if_idle(commands_of_batch(batch), self._on_results):
                return False
            self._batch = batch
            seconds = self._context.settings.response_seconds
            self._executor.next_action_at = self._sent_at.monotonic + seconds
            self._context.deadlines.add(self, seconds)
        if len(names) > len(batch):
            self._poller.poll_host(names)
        return True

    def _on_results(self, results: list[CommandResult]) -> None:
        self._context.deadlines.remove(self)
        batch, self._batch = self._batch, []
        try:
            self._poller.on_replies(batch, results, self._sent_at)
            if self._disk_commands.has_pending_commands(receives_events=self._poller.facts.receives_events):
                self._continue_task(())
                return
            self._disk_commands.schedule_requested_polls()
        except Exception as error:  # noqa: BLE001 - a bug ends the task, as if the task had run this code
            self._fail_task(error)
        at = self._schedule.next_due_at()
        if at <= time.monotonic() + SLACK_SECONDS:
            self._poll_due()
        else:
            self._set_wake_time(at)

    def _set_wake_time(self, at: float) -> None:
        """Set the timer to the time at which the next poll is due."""
        self._executor.next_action_at = at
        if at != self._wake_at:
            timers = self._context.wake_timers
            timers.remove(self._wake_at, self)
            self._wake_at = at
            if at < inf:
                timers.add(at, self)

    # Return to the session's task.

    @property
    def _is_task_waiting(self) -> bool:
        """True while the session's task waits in `run_until_task_needed`."""
        return self._task is not None and not self._task.done()

    def _continue_task(self, names: Sequence[str]) -> None:
        if self._task is not None and not self._task.done():
            self._task.set_result(names)

    def _fail_task(self, error: Exception) -> None:
        if self._task is not None and not self._task.done():
            self._task.set_exception(error)

    def on_overdue(self) -> None:
        """Make `run_until_task_needed` raise StalledError, because the reply to a callback poll is overdue."""
        if self._client is not None:
            self._fail_task(self._client.abandon_replies(self._context.settings.response_seconds))

    def _on_connection_end(self) -> None:
        error = self._ended.result()
        if self._batch and isinstance(error, ProtocolError):
            self._poller.isolate_batch_after_protocol_error(self._batch, error)
        self._fail_task(error)
