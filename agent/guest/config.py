"""Config of the queries of guest agents. The agent queries no guest agent until the operator enables the queries."""

from typing import Annotated

from pydantic import AfterValidator, Field

from agent.common.config_types import ConfigSection, Seconds

PLACEHOLDERS = ("{name}", "{uuid}", "{monitor}")
"""Placeholders in a socket's path: the VM's name, its UUID, and its monitor's file name without the suffix."""


def _check_socket_pattern(value: str) -> str:
    literal_text = value
    for placeholder in PLACEHOLDERS:
        literal_text = literal_text.replace(placeholder, "")
    if not value.startswith("/") or "{" in literal_text or "}" in literal_text:
        raise ValueError(f"should be an absolute path; it may have {', '.join(PLACEHOLDERS)}")
    return value


Interval = Annotated[Seconds, Field(ge=0)]


class GuestIntervalsConfig(ConfigSection):
    """Intervals at which the agent queries a guest agent; 0 turns a query off."""

    filesystems: Interval = 60.0
    """Size and usage of file systems."""
    load: Interval = 60.0
    """Load average."""
    cpu: Interval = 60.0
    """CPU time as the guest counts it."""
    disks: Interval = 60.0
    """I/O statistics as the guest counts them."""
    network: Interval = 60.0
    """Addresses and traffic of interfaces."""
    users: Interval = 60.0
    """Number of users that are logged in."""
    os: Interval = 600.0
    """Operating system, host name and time zone."""
    clock: Interval = 300.0
    """Offset of the guest's clock."""
    freeze: Interval = 30.0
    """Freeze state of the file systems, which are frozen for example during a snapshot."""

    def interval_of(self, collector: str) -> float:
        """Return the interval of a collector in seconds; 0 if the collector is off."""
        seconds = {
            "filesystems": self.filesystems,
            "load": self.load,
            "cpu": self.cpu,
            "disks": self.disks,
            "network": self.network,
            "users": self.users,
            "os": self.os,
            "clock": self.clock,
            "freeze": self.freeze,
        }
        return seconds[collector]


class GuestChannelConfig(ConfigSection):
    """Socket of some VMs' channels, in place of the socket that QEMU reports."""

    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    socket: Annotated[str, AfterValidator(_check_socket_pattern)]
    """Path of the Unix socket. {name}, {uuid} and {monitor} stand for the VM's name, its UUID and the file name of its QMP socket."""
    shared: bool | None = None
    """Connect only for each round of queries, because another client also needs the channel. By default, true only for Proxmox' sockets."""


class GuestAgentConfig(ConfigSection):
    """Queries the guest agents (qemu-ga), read-only, for data that only the guest has, such as the usage of its file systems."""

    enabled: bool = False
    """Query guest agents. A guest agent serves one client: do not enable queries for VMs whose manager uses the channel itself."""
    vms: list[str] = ["*"]
    """Names or UUIDs of the VMs whose guest agents are queried; * and ? are wildcards."""
    channels: list[GuestChannelConfig] = []
    """Sockets of the channels; the first match wins. By default the agent uses the socket that QEMU reports."""
    timeout: Annotated[Seconds, Field(ge=0.1, le=60)] = 5.0
    """How long a guest agent may take to answer a command."""
    max_retry_delay: Annotated[Seconds, Field(ge=1)] = 300.0
    """Maximum time between two attempts, while a guest agent does not respond. The first retry follows after ten seconds."""
    intervals: GuestIntervalsConfig = GuestIntervalsConfig()
    """How often the agent queries a guest agent."""
