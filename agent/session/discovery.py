"""The ways of reaching monitors that are wanted now. When others are wanted, a monitor that one of them finds too is watched on."""

import asyncio
from collections.abc import Mapping

from agent.monitors import Discoverer, Monitor
from agent.qmp.errors import QmpError
from agent.session.supervisor import SupervisorGroup

CLAIM_SECONDS = 1.0
"""How long a monitor whose way is no longer wanted is kept for another way to find it."""


class _DiscoveredMonitors:
    """What one way has found; told on to the fleet."""

    def __init__(self, fleet: SupervisorGroup) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.standing: set[Monitor] = set()
        self._fleet = fleet

    def on_monitor_added(self, monitor: Monitor) -> None:
        self.monitors[monitor.key] = monitor
        self._fleet.on_monitor_added(monitor)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        self._fleet.on_monitor_removed(monitor)  # its connection may live on, and is this way's for as long
        self.monitors = {key: found for key, found in self.monitors.items() if key in self._fleet}

    def on_status(self, way: Monitor, trouble: QmpError | None, note: str = "") -> None:
        self.standing.add(way)
        self._fleet.on_status(way, trouble, note)

    def on_connection_refused(self, address: str, reason: str) -> None:
        self._fleet.on_connection_refused(address, reason)


class DiscoveryManager:
    """Runs ways, by name, a task each."""

    def __init__(self, fleet: SupervisorGroup, tasks: asyncio.TaskGroup) -> None:
        self._fleet = fleet
        self._tasks = tasks
        self._running: dict[str, tuple[_DiscoveredMonitors, asyncio.Task[None]]] = {}

    def set(self, wanted: Mapping[str, Discoverer]) -> None:
        """Have these run and no others; one whose name is known runs on as it is."""
        gone = [self._running.pop(name) for name in self._running.keys() - wanted.keys()]
        for name in wanted.keys() - self._running.keys():
            finds = _DiscoveredMonitors(self._fleet)
            self._running[name] = finds, self._tasks.create_task(wanted[name].run(finds), name=name)
        for finds, task in gone:
            task.cancel()
            self._tasks.create_task(self._release(finds), name="release")

    async def _release(self, finds: _DiscoveredMonitors) -> None:
        """Let go of what no other way has found."""
        await asyncio.sleep(CLAIM_SECONDS)
        for key, monitor in finds.monitors.items():
            if not any(key in others.monitors for others, _ in self._running.values()):
                self._fleet.dismiss(monitor)
        for way in finds.standing:
            self._fleet.forget(way)
