"""A monitor of the agent's own, which QEMU adds on a word over one that somebody else needs back (QEMU 11.1 and newer).

A QEMU that can has its monitors among its objects, and so says without being tried whether it can. What was added goes when its one client
does: QEMU takes the object, the character device and the socket's file away by itself (`close-action`). Where it cannot be had, the shared
monitor is visited.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.common.config_types import DialAddress, Folder
from agent.common.units import Seconds
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
from agent.monitors.burst import HOLD_SECONDS, BurstDiscoverer, burst_connection
from agent.monitors.dial import SCAN_SECONDS, unix
from agent.qmp.client import Client, Connect
from agent.qmp.commands import AllowList, Change, Command, own_monitor, without_own_monitor
from agent.qmp.errors import BusyError, CommandError, DeniedError, NotConnectedError, QmpError

_log = logging.getLogger(__name__)

OBJECTS = Command("qom-list", {"path": "/objects"})
_KIND = "child<monitor-qmp>"


class BurstConfig(DiscovererConfig):
    """Monitors that somebody else needs back, such as Proxmox's: the agent is connected only while it asks, and hears no events."""

    burst: DialAddress
    """A Unix socket, a pattern of them, or tcp:host:port."""
    timeout: Annotated[Seconds, Field(ge=0.05, le=10)] = 0.5
    """How long a visit may wait for the greeting, and how long for the answers; it leaves then, whatever QEMU does."""
    hotplug_dir: Folder | None = None
    """A folder for sockets of the agent's own, which QEMU 11.1 and newer is asked to add: a change, and nothing else is changed then."""

    def build(self, _allow: AllowedChanges) -> BurstDiscoverer:
        """Return the way."""
        return (
            BurstDiscoverer(self.burst, self.timeout)
            if self.hotplug_dir is None
            else HotplugDiscoverer(self.burst, Path(self.hotplug_dir), self.timeout)
        )

    @property
    def addresses(self) -> Sequence[str]:
        """Where it leads."""
        return (self.burst,)

    @property
    def changes(self) -> frozenset[Change]:
        """To add a monitor is a change."""
        return frozenset({Change.OWN_MONITOR} if self.hotplug_dir is not None else ())


class HotplugDiscoverer(BurstDiscoverer):
    """Monitors as `burst` has them, each asked for another one in a folder that QEMU can make sockets in."""

    def __init__(
        self,
        pattern: str,
        folder: Path,
        hold_seconds: float = HOLD_SECONDS,
        scan_seconds: float = SCAN_SECONDS,
    ) -> None:
        super().__init__(pattern, hold_seconds, scan_seconds)
        self._folder = folder

    def __repr__(self) -> str:
        return f"{super().__repr__()} hotplug {self._folder}"

    def monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor that there is at an address."""
        shared = super().monitor(name, key, connect)
        own = open_hotplugged(name, burst_connection(connect, self._hold_seconds), self._folder)
        return Monitor(name, ("hotplug", self._folder, *shared.key), own, MonitorPriority.DEDICATED)


def open_hotplugged(name: str, shared: ConnectionOpener, folder: Path) -> ConnectionOpener:
    """Return how a link is made by one word over a shared monitor, or over that monitor where it must."""

    async def open_(allow: AllowList, on_event: EventCallback, *, deadline: float) -> MonitorConnection:
        door = await shared(allow, on_event, deadline=deadline)
        try:
            link = await _own(door, folder, allow, on_event, deadline)
        except BusyError:
            door.close()
            raise
        except (NotConnectedError, CommandError) as error:
            if door.ended.done():
                raise
            _log.warning(
                "%s is visited: no monitor of the agent's own can be had: %s", sanitize(name), sanitize(str(error))
            )
            return door
        except BaseException:
            door.close()
            raise
        door.close()
        return link

    return open_


async def _own(
    door: MonitorConnection, folder: Path, allow: AllowList, on_event: EventCallback, deadline: float
) -> Client:
    """Have a monitor added and connect to it.

    Raises:
        CommandError: QEMU would not add it.
        NotConnectedError: it cannot be added, or not be connected to.
        QmpError: whatever else can go wrong on the way.
    """
    if door.peer_pid is None:
        raise NotConnectedError("its process is not of this host")
    (objects,) = await door.execute((OBJECTS,), deadline=deadline)
    kinds = [one.get("type") for one in objects if isinstance(one, dict)] if isinstance(objects, list) else []
    if _KIND not in kinds:
        raise NotConnectedError("this QEMU adds none; 11.1 does")
    path = str(folder / f"{door.peer_pid}.qmp")
    socket, monitor = await door.execute(own_monitor(path), deadline=deadline)
    # Both are there already where an agent ended between asking and connecting.
    try:
        if isinstance(monitor, CommandError) and not isinstance(socket, CommandError):
            raise monitor
        return await Client.open(unix(path), allow, on_event, deadline=deadline)
    except QmpError as error:
        if not isinstance(socket, CommandError):
            with contextlib.suppress(QmpError):
                await door.execute(without_own_monitor(), deadline=deadline)
        elif not isinstance(error, BusyError | DeniedError):
            raise socket from error
        raise NotConnectedError(f"{path}: {error}") from error
