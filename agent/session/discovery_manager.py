"""Runs the discoverers of the current config. When a reload removes one, monitors that another discoverer finds stay supervised."""

import asyncio
from collections.abc import Mapping

from agent.monitors import Discoverer, Monitor
from agent.qmp.errors import QmpError
from agent.session.supervisor import SupervisorGroup

GRACE_SECONDS = 1.0
"""After a discoverer is removed, time for another discoverer to find its monitors."""


class _DiscoveredMonitors:
    """Monitors of one discoverer, forwarded to the supervisor group."""

    def __init__(self, group: SupervisorGroup) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.reported: set[Monitor] = set()
        self._group = group

    def on_monitor_added(self, monitor: Monitor) -> None:
        self.monitors[monitor.key] = monitor
        self._group.on_monitor_added(monitor)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        # The monitor stays in `monitors` while its connection is open.
        self._group.on_monitor_removed(monitor)
        self.monitors = {key: monitor for key, monitor in self.monitors.items() if key in self._group}

    def on_status(self, discoverer: Monitor, error: QmpError | None, note: str = "") -> None:
        self.reported.add(discoverer)
        self._group.on_status(discoverer, error, note)

    def on_connection_refused(self, address: str, reason: str) -> None:
        self._group.on_connection_refused(address, reason)


class DiscoveryManager:
    """Runs discoverers by name, one task for each."""

    def __init__(self, group: SupervisorGroup, tasks: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks = tasks
        self._running: dict[str, tuple[_DiscoveredMonitors, asyncio.Task[None]]] = {}

    def set(self, wanted: Mapping[str, Discoverer]) -> None:
        """Run exactly these discoverers. A discoverer whose name is already running keeps running."""
        removed = [self._running.pop(name) for name in self._running.keys() - wanted.keys()]
        for name in wanted.keys() - self._running.keys():
            discovered = _DiscoveredMonitors(self._group)
            self._running[name] = discovered, self._tasks.create_task(wanted[name].run(discovered), name=name)
        for discovered, task in removed:
            task.cancel()
            self._tasks.create_task(self._release(discovered), name="release")

    async def _release(self, discovered: _DiscoveredMonitors) -> None:
        """Dismiss the monitors that no other discoverer has found."""
        await asyncio.sleep(GRACE_SECONDS)
        for key, monitor in discovered.monitors.items():
            if not any(key in others.monitors for others, _ in self._running.values()):
                self._group.dismiss(monitor)
        for discoverer in discovered.reported:
            self._group.remove_status(discoverer)
