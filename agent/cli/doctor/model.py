"""The input and the output of an inspection."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agent.config.model import Config
from agent.host.permissions import User
from agent.host.qemu_processes import PROC
from agent.host.sockets import Table, list_sockets
from agent.monitors import DiscovererConfig


class VmState(StrEnum):
    """The state of a VM."""

    WATCHED = "watched"
    """The agent holds one of its monitors."""
    CONFIGURED = "configured"
    """An entry of the config leads to it, and nothing blocks the agent."""
    UNWATCHED = "unwatched"


class SocketState(StrEnum):
    """The state of a monitor's socket."""

    FREE = "free"
    HELD = "held"
    CONNECTS = "connects"
    """QEMU connects to the socket of another process."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """One monitor of a VM.

    Attributes:
        address: its path or tcp:host:port, or its file descriptor if the address is unknown.
        state: the state of its socket.
        holder: the program that holds it, or that listens where QEMU connects; empty if there is none or it is unknown.
        holder_pid: the process of that program, or None.
        missing: the permission that the agent's user lacks, or empty.
        entry: the config entry that leads to it, or empty.
        used_by_manager: whether the VM's manager needs it.
    """

    address: str
    state: SocketState
    holder: str = ""
    holder_pid: int | None = None
    missing: str = ""
    entry: str = ""
    used_by_manager: bool = False


@dataclass(frozen=True, slots=True)
class VmReport:
    """One VM.

    Attributes:
        name, uuid: from its command line.
        pid: its process.
        manager: the software that started it.
        state: whether it is watched.
        entry: the config entry that leads to it, or empty.
        missing: the permission that the agent's user lacks on its manager's socket, or empty.
        monitors: its QMP monitors.
        steps: the steps that let the agent watch the VM, line by line; empty if none is needed.
        section: the section of docs/monitors.md that explains the steps.
        same_uuid: name and pid of the other VMs on this host with the same UUID.
    """

    name: str
    uuid: str
    pid: int
    manager: str
    state: VmState
    entry: str
    missing: str
    monitors: tuple[MonitorReport, ...]
    steps: tuple[str, ...]
    section: str
    same_uuid: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostView:
    """The host to inspect.

    Attributes:
        user: the user that the agent runs as.
        config: the agent's config, or None.
        root: the directory that contains /etc.
        proc: the /proc directory.
        table: the sockets of this host.
    """

    user: User
    config: Config | None = None
    root: Path = Path("/")
    proc: Path = PROC
    table: Table = field(default_factory=list_sockets)

    @property
    def entries(self) -> Sequence[DiscovererConfig]:
        """The `monitors` entries of the config."""
        return self.config.monitors if self.config is not None else ()
