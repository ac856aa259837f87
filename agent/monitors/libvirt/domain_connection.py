"""A connection to one running domain."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.monitors.base import EventCallback
from agent.monitors.libvirt.executors import (
    ConnectedLibvirtd,
    LibvirtCommandExecutor,
    PassthroughExecutor,
    TranslatingExecutor,
)
from agent.monitors.libvirt.lifecycle import LibvirtMigrationPhase
from agent.qmp.client import CommandResult
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import (
    AmbiguousReplyError,
    CommandError,
    NotConnectedError,
    PreemptedError,
    QmpError,
    StalledError,
    UnreadableReplyError,
)
from agent.qmp.protocol import UNKNOWN_VERSION, Greeting, SkippedQmpMessages, greeting_from_version

REASON_SECONDS = 1.0
"""Seconds to wait for libvirt's lifecycle event, which says why the domain ended.

The wait starts when a call fails because the domain has ended.
"""

QUERY_VERSION = Command("query-version")


class DomainConnection:
    """A `MonitorConnection` to a running domain."""

    can_probe = False

    def __init__(
        self,
        daemon: ConnectedLibvirtd,
        uuid: str,
        name: str,
        allow: AllowList,
        on_event: EventCallback,
        pid: int | None,
        migration_phase: Callable[[], LibvirtMigrationPhase],
    ) -> None:
        self.greeting: Greeting | None = Greeting(UNKNOWN_VERSION, "", oob=False)
        self.ended_future: asyncio.Future[QmpError] = asyncio.get_running_loop().create_future()
        self.peer_pid = pid
        self.skipped_invalid_message_counts = SkippedQmpMessages()  # libvirt reads QEMU's messages
        self.on_event = on_event
        self._daemon = daemon
        self._uuid = uuid
        self._allow = allow
        self._executor: LibvirtCommandExecutor = (
            PassthroughExecutor(daemon, uuid, allow)
            if daemon.passthrough
            else TranslatingExecutor(daemon, uuid, name, migration_phase)
        )
        self._execution: asyncio.Task[list[CommandResult]] | None = None

    @property
    def receives_events(self) -> bool:
        """True if libvirt reports QEMU's events. libvirt reports no events of QEMU on read-only connections."""
        return not self._daemon.read_only

    async def execute(self, commands: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Execute commands and return their results, in order.

        Raises:
            StalledError: the results did not arrive within `deadline` seconds, or earlier commands are still running.
            NotConnectedError: the connection has ended.
            CommandNotAllowedError: a command is not on the allow-list.
        """
        if self.ended_future.done():
            raise self.ended_future.result()
        for command in commands:
            # `encode` raises for a command that is not allowed. This check also applies to commands that become libvirt calls.
            self._allow.encode(command)
        if self._execution is not None and not self._execution.done():
            raise StalledError("earlier commands are still running")
        self._execution = asyncio.ensure_future(self._execute_or_fail_all(commands))
        if await self._wait_for_results(self._execution, deadline):
            return self._execution.result()
        full = (
            f"; {pool.hung_calls} calls hang in libvirtd, which is the limit"
            if (pool := self._daemon.pool).has_too_many_hung_calls
            else ""
        )
        name = f" to {self._executor.current_command}" if self._executor.current_command else ""
        raise StalledError(f"no reply from libvirt{name} within {deadline:g} s{full}")

    async def read_version(self, deadline: float) -> None:
        """Read the version of the running QEMU into `greeting`. Without passthrough, do nothing.

        libvirt reports the version of the installed QEMU, which can be newer than the running QEMU after an upgrade of the package.
        If QEMU does not reply within `deadline` seconds, the version stays unknown.

        Raises:
            QmpError: the connection has ended.
        """
        if not self._daemon.passthrough:
            return
        with contextlib.suppress(StalledError):
            (reply,) = await self.execute((QUERY_VERSION,), deadline=deadline)
            self.greeting = greeting_from_version(reply, oob=False)

    @property
    def libvirt_container_name(self) -> str:
        """Name of the container that libvirt runs in; empty on the host itself."""
        return self._daemon.container

    async def read_domain_xml(self, *, deadline: float) -> str:
        """Return libvirt's XML of the domain; empty if libvirt does not return it within `deadline` seconds."""
        pool, uuid = self._daemon.pool, self._uuid
        with contextlib.suppress(QmpError, TimeoutError):
            async with asyncio.timeout(deadline):
                xml: str = await pool.call_with_connection(
                    lambda connection: connection.look_up_domain(uuid).XMLDesc(0)
                )
                return xml
        return ""

    async def wait_idle(self) -> None:
        """Wait until all results have arrived, without a deadline.

        Raises:
            QmpError: the connection ended first.
        """
        if self._execution is not None:
            await self._wait_for_results(self._execution, None)

    async def probe_out_of_band(self, *, deadline: float) -> bool:  # noqa: ARG002 - MonitorConnection's signature
        """Return False, because libvirt has no out-of-band commands."""
        return False

    def close(self) -> None:
        """End the connection now."""
        self.end(NotConnectedError("closed by the agent"))

    def close_for_preferred_monitor(self) -> None:
        """End the connection now, because a monitor of better priority leads to the same VM."""
        self.end(PreemptedError("a preferred monitor of this VM is available"))

    def end(self, cause: QmpError) -> None:
        """End the connection now, and complete `ended_future` with the cause."""
        if not self.ended_future.done():
            self.ended_future.set_result(cause)
        if self._execution is not None:
            self._execution.cancel()

    async def _execute_or_fail_all(self, commands: Sequence[Command]) -> list[CommandResult]:
        try:
            return await self._executor.execute(commands)
        except CommandError as error:
            return [error] * len(commands)
        except UnreadableReplyError as error:
            return [error if len(commands) == 1 else AmbiguousReplyError(str(error))] * len(commands)

    async def _wait_for_results(self, execution: asyncio.Task[list[CommandResult]], deadline: float | None) -> bool:
        """Return whether the results arrive within `deadline` seconds; None waits without a deadline.

        Raises:
            QmpError: the connection ended first.
        """
        waiting_for: set[asyncio.Future[Any]] = {execution, self.ended_future}
        await asyncio.wait(waiting_for, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if execution.done() and not execution.cancelled():
            error = execution.exception()
            if isinstance(error, NotConnectedError):
                await asyncio.wait({self.ended_future}, timeout=REASON_SECONDS)
                self.end(error)
        if self.ended_future.done():
            raise self.ended_future.result()
        return execution.done()


def read_pid_file(directory: Path, name: str) -> int | None:
    """Return the process ID of a domain from libvirtd's file NAME.pid; None if the file is missing, unreadable or malformed."""
    try:
        return int((directory / f"{name}.pid").read_text().strip()) or None
    except (OSError, ValueError):
        return None
