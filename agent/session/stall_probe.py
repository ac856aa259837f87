"""Waits until a stalled QEMU answers again."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from agent.monitors import MonitorConnection
from agent.qmp.errors import MonitorBusyError, StalledError
from agent.session.shared_types import MAIN_LOOP_STALLED, PROCESS_STALLED, MonitorState, SessionContext


class HostCollectorPoller(Protocol):
    """Polls a VM's host-only collectors, which read the kernel's files and need no reply from QEMU."""

    def schedule_host_collectors(self) -> None:
        """Make all host-only collectors due now."""

    def poll_due_host_collectors(self) -> None:
        """Poll the host-only collectors that are due."""


class StallProbe:
    """Waits for overdue replies of one QEMU. During the wait, probes QEMU's monitor thread with out-of-band commands.

    Attributes:
        poller: polls the host-only collectors during the wait; None until the VM is attached.
    """

    __slots__ = ("_client", "_context", "_on_state", "poller")

    def __init__(
        self, client: MonitorConnection, context: SessionContext, on_state: Callable[[MonitorState, str], None]
    ) -> None:
        """Create a probe of one connection.

        Args:
            client: the connection.
            context: state that all sessions share.
            on_state: called with the new state and its cause, when a wait begins, when the cause changes and when the wait ends.
        """
        self.poller: HostCollectorPoller | None = None
        self._client = client
        self._context = context
        self._on_state = on_state

    async def wait_until_qemu_responds(self, error: MonitorBusyError | StalledError) -> None:
        """Wait until no reply is overdue. If another client holds the monitor, wait until that client disconnects.

        During the wait, the caller must send no in-band command, because QEMU still executes the overdue command.

        Args:
            error: why the session waits.

        Raises:
            QmpError: the connection ended.
        """
        self._on_state(MonitorState.BUSY if isinstance(error, MonitorBusyError) else MonitorState.STALLED, str(error))
        if self.poller is not None:
            self.poller.schedule_host_collectors()
        idle = asyncio.ensure_future(self._client.wait_idle())
        try:
            while not (await asyncio.wait({idle}, timeout=self._context.settings.probe_seconds))[0]:
                if self.poller is not None:
                    self.poller.poll_due_host_collectors()
                if self._client.can_probe:
                    answered = await self._client.probe_out_of_band(deadline=self._context.settings.probe_seconds)
                    if not idle.done():
                        self._on_state(MonitorState.STALLED, MAIN_LOOP_STALLED if answered else PROCESS_STALLED)
            idle.result()
        finally:
            idle.cancel()
        self._on_state(MonitorState.UP if self.poller is not None else MonitorState.NEGOTIATING, "")
