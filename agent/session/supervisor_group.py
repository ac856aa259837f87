"""Supervision of all monitors, each in its own task.

A monitor that hangs, violates the protocol or disappears does not affect other monitors.
"""

import asyncio
import logging
import time

from agent.model.record import sanitize
from agent.monitors import Monitor
from agent.qmp.errors import QmpError
from agent.session.ownership import OwnershipRegistry
from agent.session.shared_types import MonitorState, MonitorStatus, SessionContext, SessionObserver
from agent.session.supervisor import MonitorSupervisor, state_after_failed_connect

_log = logging.getLogger(__name__)


class SupervisorGroup:
    """Supervises all monitors that discoverers find, each in its own task."""

    def __init__(self, context: SessionContext, observer: SessionObserver, tasks: asyncio.TaskGroup) -> None:
        self._context = context
        self._observer = observer
        self._tasks = tasks
        self._claims = OwnershipRegistry()
        self._supervisors: dict[tuple[object, ...], MonitorSupervisor] = {}
        self._running: dict[MonitorSupervisor, asyncio.Task[None]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._supervisors

    def __len__(self) -> int:
        return len(self._supervisors)

    def on_monitor_added(self, monitor: Monitor) -> None:
        """Start to supervise a monitor. Let the supervisor connect again if the monitor was removed but still has a supervisor."""
        if monitor.key in self._supervisors:
            self._supervisors[monitor.key].resume_reconnecting()
        else:
            supervisor = MonitorSupervisor(monitor, self._context, self._observer, self._claims)
            self._supervisors[monitor.key] = supervisor
            self._running[supervisor] = self._tasks.create_task(
                self._run_supervisor(monitor, supervisor), name=f"supervise {monitor.name}"
            )

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Make no new connection to a monitor. Stop supervising the monitor once no connection is open."""
        if monitor.key in self._supervisors:
            self._supervisors[monitor.key].stop_reconnecting()

    def stop_supervising(self, monitor: Monitor) -> None:
        """Stop supervising a monitor now, and close its connection."""
        if (supervisor := self._supervisors.pop(monitor.key, None)) is not None:
            self._running[supervisor].cancel()

    def on_discovery_status(self, discoverer: Monitor, error: QmpError | None, limitation: str = "") -> None:
        """Report the state of a discoverer. The agent's web page lists the discoverer among the monitors.

        Args:
            discoverer: the entry of the discoverer in the list of monitors.
            error: why the discoverer cannot find monitors; None if the discoverer works.
            limitation: a limitation of discovery, for the operator; may be empty.
        """
        state, reason = (
            (MonitorState.UP, limitation) if error is None else (state_after_failed_connect(error), str(error))
        )
        self._observer.on_monitor_status(MonitorStatus(discoverer, state, reason, None, None, time.time_ns()))

    def remove_discovery_status(self, discoverer: Monitor) -> None:
        """Report that a discoverer has ended, so that the agent's web page no longer lists the discoverer."""
        self._observer.on_monitor_removed(discoverer)

    def overdue_seconds_by_monitor(self, now: float) -> dict[str, float]:
        """Return by how many seconds each attached session's next action is overdue, by monitor name; negative before the action is due."""
        overdue = ((sanitize(supervisor.name), supervisor.overdue_seconds(now)) for supervisor in self._running)
        return {name: seconds for name, seconds in overdue if seconds is not None}

    def resync(self) -> None:
        """Run all collectors of all VMs again, spread over a few seconds."""
        for supervisor in self._supervisors.values():
            supervisor.resync()

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        """Report a refused incoming connection."""
        self._observer.on_agent_refused_incoming_connection(address, reason)

    async def _run_supervisor(self, monitor: Monitor, supervisor: MonitorSupervisor) -> None:
        try:
            while True:
                try:
                    return await supervisor.run()
                except Exception:  # noqa: BLE001 - a bug that one VM triggers must not end the supervision of others
                    _log.exception("monitor %s: internal error; the agent will connect again", sanitize(monitor.name))
                    await asyncio.sleep(self._context.settings.max_retry_seconds)
        finally:
            del self._running[supervisor]
            # A monitor that was dismissed and found again has a new supervisor.
            if self._supervisors.get(monitor.key, supervisor) is supervisor:
                self._supervisors.pop(monitor.key, None)
                self._observer.on_monitor_removed(monitor)
