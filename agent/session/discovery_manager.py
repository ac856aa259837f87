"""Runs the discoverers of the current config. A discoverer finds the monitors of one config entry.

A config reload can remove a discoverer. If another discoverer finds the same monitor, the agent keeps the connection to the monitor.
"""

import asyncio
from collections.abc import Mapping

from agent.host.pools.libvirt import LibvirtStoragePool, StoragePoolListError
from agent.monitors import Discoverer, Monitor, StoragePoolLister
from agent.qmp.errors import QmpError
from agent.session.supervisor_group import SupervisorGroup

GRACE_SECONDS = 1.0
"""How long the monitors of a removed discoverer stay connected, so that another discoverer can find the same monitors."""


class _DiscoveredMonitors:
    """Keeps the monitors that one discoverer finds, and passes them to the supervisor group."""

    def __init__(self, group: SupervisorGroup) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.discoverers_with_status: set[Monitor] = set()
        self._group = group

    def on_monitor_added(self, monitor: Monitor) -> None:
        self.monitors[monitor.key] = monitor
        self._group.on_monitor_added(monitor)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        # The supervisor group keeps the monitor while its connection is open.
        self._group.on_monitor_removed(monitor)
        self.monitors = {key: monitor for key, monitor in self.monitors.items() if key in self._group}

    def on_discovery_status(self, discoverer: Monitor, error: QmpError | None, limitation: str = "") -> None:
        self.discoverers_with_status.add(discoverer)
        self._group.on_discovery_status(discoverer, error, limitation)

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        self._group.on_agent_refused_incoming_connection(address, reason)


class DiscoveryManager:
    """Runs the discoverers of the current config, each in its own task."""

    def __init__(self, group: SupervisorGroup, tasks: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks = tasks
        self._running: dict[str, tuple[_DiscoveredMonitors, asyncio.Task[None]]] = {}
        self._discoverers: dict[str, Discoverer] = {}

    def set_discoverers(self, discoverers: Mapping[str, Discoverer]) -> None:
        """Run exactly these discoverers, given by name. A running discoverer whose name is given keeps running."""
        removed = [self._running.pop(name) for name in self._running.keys() - discoverers.keys()]
        for name in discoverers.keys() - self._running.keys():
            discovered = _DiscoveredMonitors(self._group)
            self._discoverers[name] = discoverers[name]
            self._running[name] = discovered, self._tasks.create_task(discoverers[name].run(discovered), name=name)
        self._discoverers = {name: self._discoverers[name] for name in self._running}
        for discovered, task in removed:
            task.cancel()
            self._tasks.create_task(self._dismiss_monitors(discovered), name="dismiss monitors")

    async def storage_pools(self) -> list[LibvirtStoragePool]:
        """Return the storage pools of all VM managers that discoverers use, such as libvirt.

        Raises:
            StoragePoolListError: a manager failed, and no other manager has pools.
        """
        pools: list[LibvirtStoragePool] = []
        errors: list[QmpError] = []
        for discoverer in list(self._discoverers.values()):
            if isinstance(discoverer, StoragePoolLister):
                try:
                    pools += await discoverer.storage_pools()
                except QmpError as error:
                    errors.append(error)
        if errors and not pools:
            raise StoragePoolListError(str(errors[0]))
        return pools

    async def _dismiss_monitors(self, removed: _DiscoveredMonitors) -> None:
        """Stop supervising the monitors of a removed discoverer, except monitors that another discoverer has found."""
        await asyncio.sleep(GRACE_SECONDS)
        for key, monitor in removed.monitors.items():
            if not any(key in others.monitors for others, _ in self._running.values()):
                self._group.stop_supervising(monitor)
        for discoverer in removed.discoverers_with_status:
            self._group.remove_discovery_status(discoverer)
