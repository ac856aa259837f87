"""A monitor for the agent alone. The agent adds it to QEMU 11.1 or newer, through a monitor that the agent shares with another client.

If QEMU can add monitors, its monitors are QOM objects. So one `qom-list` shows whether QEMU can add monitors.
QEMU deletes the added monitor, its character device and its socket file when the agent disconnects (`close-action`). The agent connects to
the shared monitor for each poll if QEMU cannot add a monitor.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.common.config_types import AbsolutePath, DialAddress, Seconds
from agent.model.record import sanitize
from agent.monitors.base import (
    AllowedChanges,
    ConnectionOpener,
    DiscovererConfig,
    EventCallback,
    Monitor,
    MonitorConnection,
    MonitorPriority,
)
from agent.monitors.dial import SCAN_INTERVAL_SECONDS, unix_connector
from agent.monitors.dial_per_poll import DEFAULT_TIMEOUT_SECONDS, DialPerPollDiscoverer
from agent.qmp.client import Connect, QmpClient
from agent.qmp.commands import (
    AllowList,
    Command,
    OptInQemuChange,
    commands_to_add_own_monitor,
    commands_to_remove_own_monitor,
)
from agent.qmp.errors import CommandError, ConnectPermissionError, MonitorBusyError, NotConnectedError, QmpError

_log = logging.getLogger(__name__)

LIST_OBJECTS = Command("qom-list", {"path": "/objects"})
_MONITOR_TYPE = "child<monitor-qmp>"


class DialPerPollConfig(DiscovererConfig):
    """Monitors that the agent shares with another client, such as Proxmox. The agent connects for each poll and misses most events."""

    dial_per_poll: DialAddress
    """A Unix socket, a glob pattern of sockets, or tcp:host:port."""
    timeout: Annotated[Seconds, Field(ge=0.05, le=10)] = 0.5
    """How long the agent waits for the greeting, and again for the replies, before it disconnects."""
    own_monitor_dir: AbsolutePath | None = None
    """Directory for the sockets of monitors that the agent adds to QEMU 11.1 and newer. This key allows no other change."""

    def build_discoverer(self, _allow: AllowedChanges) -> DialPerPollDiscoverer:
        """Return the discoverer."""
        return (
            DialPerPollDiscoverer(self.dial_per_poll, self.timeout)
            if self.own_monitor_dir is None
            else OwnMonitorAddingDiscoverer(self.dial_per_poll, Path(self.own_monitor_dir), self.timeout)
        )

    @property
    def addresses(self) -> Sequence[str]:
        """Address of the shared monitors."""
        return (self.dial_per_poll,)

    @property
    def required_qemu_changes(self) -> frozenset[OptInQemuChange]:
        """The change that adds a monitor to QEMU; empty unless `own_monitor_dir` is set."""
        return frozenset({OptInQemuChange.OWN_MONITOR} if self.own_monitor_dir is not None else ())


class OwnMonitorAddingDiscoverer(DialPerPollDiscoverer):
    """Finds shared monitors like `DialPerPollDiscoverer`, and adds a dedicated monitor to each QEMU."""

    def __init__(
        self,
        pattern: str,
        directory: Path,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        scan_seconds: float = SCAN_INTERVAL_SECONDS,
    ) -> None:
        """Create a discoverer.

        Args:
            pattern: address of the shared monitors: a path, a glob pattern or a TCP address.
            directory: where QEMU creates the sockets of the added monitors.
            timeout: seconds to wait for the greeting of a shared monitor, and again for its replies.
            scan_seconds: seconds between two scans of the file system.
        """
        super().__init__(pattern, timeout, scan_seconds)
        self._directory = directory

    def __repr__(self) -> str:
        return f"{super().__repr__()} hotplug {self._directory}"

    def make_monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor at an address; `key` identifies its socket."""
        shared = super().make_monitor(name, key, connect)
        opener = own_monitor_opener(name, shared.open, self._directory)
        return Monitor(name, ("hotplug", self._directory, *shared.key), opener, MonitorPriority.DEDICATED)


def own_monitor_opener(name: str, open_shared: ConnectionOpener, directory: Path) -> ConnectionOpener:
    """Return an opener that connects to a dedicated monitor.

    The opener adds the dedicated monitor with commands over the shared monitor. The opener returns a connection to the shared monitor if
    QEMU cannot add a monitor.

    Args:
        name: name of the shared monitor, for the log.
        open_shared: opens a connection to the shared monitor.
        directory: where QEMU creates the socket of the dedicated monitor.
    """

    async def open_connection(allow: AllowList, on_event: EventCallback, *, deadline: float) -> MonitorConnection:
        shared = await open_shared(allow, on_event, deadline=deadline)
        try:
            connection = await _add_monitor(shared, directory, allow, on_event, deadline)
        except MonitorBusyError:
            shared.close()
            raise
        except (NotConnectedError, CommandError) as error:
            if shared.ended_future.done():
                raise
            _log.warning(
                "%s: no dedicated monitor: %s; the agent connects to the shared monitor for each poll",
                sanitize(name),
                sanitize(str(error)),
            )
            return shared
        except BaseException:
            shared.close()
            raise
        shared.close()
        return connection

    return open_connection


async def _add_monitor(
    shared: MonitorConnection, directory: Path, allow: AllowList, on_event: EventCallback, deadline: float
) -> QmpClient:
    """Add a monitor to QEMU, and connect to the new monitor.

    Raises:
        CommandError: QEMU refused to add a monitor.
        NotConnectedError: this QEMU cannot add monitors, or the agent cannot connect to the new monitor.
        QmpError: any other failure of the shared monitor.
    """
    if shared.peer_pid is None:
        raise NotConnectedError("QEMU's process is not on this host")
    (objects,) = await shared.execute((LIST_OBJECTS,), deadline=deadline)
    types = [entry.get("type") for entry in objects if isinstance(entry, dict)] if isinstance(objects, list) else []
    if _MONITOR_TYPE not in types:
        raise NotConnectedError("this QEMU cannot add monitors; QEMU 11.1 and newer can")
    path = str(directory / f"{shared.peer_pid}.qmp")
    socket, monitor = await shared.execute(commands_to_add_own_monitor(path), deadline=deadline)
    # If an agent was killed between adding the monitor and connecting, the socket and the monitor exist already.
    try:
        if isinstance(monitor, QmpError) and not isinstance(socket, QmpError):
            raise monitor
        return await QmpClient.open(unix_connector(path), allow, on_event, deadline=deadline)
    except QmpError as error:
        if not isinstance(socket, QmpError):
            with contextlib.suppress(QmpError):
                await shared.execute(commands_to_remove_own_monitor(), deadline=deadline)
        elif not isinstance(error, MonitorBusyError | ConnectPermissionError):
            raise socket from error
        raise NotConnectedError(f"{path}: {error}") from error
