"""Types of `qmp-agent doctor`: the host to inspect, and the reports on VMs, monitors and images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agent.config.model import Config
from agent.host.qemu_processes import PROC
from agent.host.socket_permissions import User
from agent.host.unix_and_tcp_sockets import SocketTable, read_unix_and_tcp_sockets
from agent.monitors import DiscovererConfig


class VmWatchState(StrEnum):
    """The answer to the question if the agent watches a VM."""

    WATCHED = "watched"
    """The agent is connected to one of the VM's monitors."""
    CONFIGURED = "configured"
    """A config entry leads to the VM, and the agent has the necessary permissions."""
    UNWATCHED = "unwatched"
    """The agent cannot watch the VM without a change."""
    UNKNOWN = "unknown"
    """A process that this user cannot see holds a monitor. The process may be the agent."""


class MonitorSocketUse(StrEnum):
    """The state of a monitor's socket. A monitor serves one client at a time."""

    FREE = "free"
    """No client is connected."""
    HELD = "held"
    """A client is connected."""
    CONNECTS = "connects"
    """QEMU connects to the socket of another process instead of listening."""
    UNKNOWN = "unknown"
    """The socket table or the monitor's address is not known."""


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """The report on one monitor of a VM.

    Attributes:
        address: the path or tcp:host:port; `descriptor N` if the address is unknown.
        state: the state of the monitor's socket.
        holder: the program at the other end: the monitor's client, or the listener that QEMU connects to; empty if unknown.
        holder_pid: the pid of that program, or None.
        missing: describes the permission that the agent's user lacks to connect; empty if the user has all permissions.
        entry: the config entry that leads to the monitor, or empty.
        used_by_manager: whether the VM's manager needs the monitor.
    """

    address: str
    state: MonitorSocketUse
    holder: str = ""
    holder_pid: int | None = None
    missing: str = ""
    entry: str = ""
    used_by_manager: bool = False


@dataclass(frozen=True, slots=True)
class ImageReport:
    """The report on one image that a VM has open.

    Attributes:
        path: the image's path in the mount namespace of QEMU.
        pool: kind and name of the image's pool; empty if the pool is unknown.
        problem: why the pool is unknown, or which permission the agent's user needs; empty without a problem.
        steps: the commands that give the permission, as root.
    """

    path: str
    pool: str = ""
    problem: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmReport:
    """The report on one VM.

    Attributes:
        name: the VM's name in QEMU's command line; `pid N` for a VM without a name.
        uuid: the VM's UUID in QEMU's command line, or empty.
        pid: the pid of QEMU.
        manager: the VM manager that started QEMU, or `unknown`.
        state: whether the agent watches the VM.
        entry: the config entry that leads to the VM, or empty.
        missing: describes the permission that the agent's user lacks on libvirt's socket; empty if the user has all permissions.
        monitors: the VM's QMP monitors.
        steps: the change that lets the agent watch the VM, line by line; empty if no change is needed.
        section: the section of docs/reference/monitors.md that explains the steps.
        same_uuid: names and pids of the other VMs on this host with the same UUID.
        migration_ends: names and pids of the processes with the same UUID that may be the other end of a migration within this host.
        images: the images that QEMU has open; empty without permission to list the open files.
        network: a text for each network device whose traffic the host's kernel does not count at a tap interface.
    """

    name: str
    uuid: str
    pid: int
    manager: str
    state: VmWatchState
    entry: str
    missing: str
    monitors: tuple[MonitorReport, ...]
    steps: tuple[str, ...]
    section: str
    same_uuid: tuple[str, ...] = ()
    migration_ends: tuple[str, ...] = ()
    images: tuple[ImageReport, ...] = ()
    network: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostToInspect:
    """The host to inspect.

    Attributes:
        user: the user as which the agent runs.
        config: the agent's config; None without a config file.
        root: the root directory of the host's file system.
        proc: the /proc directory.
        socket_table: the kernel's socket table, by inode.
        is_root: whether doctor runs as root. Another user cannot see which process holds a monitor.
    """

    user: User
    config: Config | None = None
    root: Path = Path("/")
    proc: Path = PROC
    socket_table: SocketTable = field(default_factory=read_unix_and_tcp_sockets)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)

    @property
    def config_monitors_entries(self) -> Sequence[DiscovererConfig]:
        """The `monitors` entries of the config."""
        return self.config.monitors if self.config is not None else ()
