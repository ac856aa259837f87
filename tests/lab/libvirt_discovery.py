"""Runs the discovery of a libvirtd's domains without an agent, and records its reports."""

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from agent.monitors.libvirt.discovery import LibvirtDiscoverer
from agent.qmp.errors import QmpError
from tests.lab.background import in_background


class RecordingListener(SimpleNamespace):
    """A discovery listener that stores the errors, and the names of added and removed monitors."""

    def __init__(self) -> None:
        super().__init__(statuses=[], added=[], removed=[])

    def on_discovery_status(self, _source: object, error: QmpError | None, _note: str) -> None:
        self.statuses.append(error)

    def on_monitor_added(self, monitor: Any) -> None:
        self.added.append(monitor.name)

    def on_monitor_removed(self, monitor: Any) -> None:
        self.removed.append(monitor.name)


@contextlib.asynccontextmanager
async def discovering(libvirt: LibvirtDiscoverer) -> AsyncIterator[RecordingListener]:
    """Run discovery while the `with` block runs."""
    reports = RecordingListener()
    async with in_background(libvirt.run(cast("Any", reports))):
        yield reports
