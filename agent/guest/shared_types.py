"""Interfaces of guest agent sessions: the states of a session, and the callbacks that report its results. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agent.model.family import Family, Sample
from agent.model.record import Vm


class GuestAgentState(StrEnum):
    """State of the session with one guest agent."""

    ABSENT = "absent"
    """No program in the guest has opened the channel."""
    SUSPENDED = "suspended"
    """The agent pauses its queries, because QEMU hangs, or because the guest is stopped or migrates. The last values stay valid."""
    CONNECTING = "connecting"
    UP = "up"
    UNRESPONSIVE = "unresponsive"
    """The guest agent does not reply in time, or its replies cannot be parsed."""
    BUSY = "busy"
    """Another client occupies the channel."""
    DENIED = "denied"
    """The agent has no permission for the channel, or another process than the VM's QEMU listens on the channel's socket."""


class GuestCommandOutcome(StrEnum):
    """Outcome of one command to a guest agent."""

    OK = "ok"
    ERROR = "error"
    """The guest agent returned an error."""
    TIMEOUT = "timeout"
    UNREADABLE = "unreadable"
    """The reply cannot be parsed, or exceeds the size limit."""
    LOST = "lost"
    """The connection ended before the reply arrived."""


class GuestObserver(Protocol):
    """Callbacks invoked by sessions with guest agents. Implementations must not block or raise."""

    def on_guest_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Handle all samples of `families` after one query. A disk, interface or other subject without a sample no longer exists."""

    def on_guest_samples_outdated(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        """Handle a lost guest agent or a failed query: the last samples of `families` are out of date."""

    def on_guest_queries_disabled(self, vm: Vm, time_ns: int) -> None:
        """Handle a config reload after which the agent no longer queries this VM's guest agent."""

    def on_guest_command(self, command: str, outcome: GuestCommandOutcome) -> None:
        """Handle the outcome of one command to a guest agent."""


@dataclass(slots=True)
class GuestReachability:
    """The facts about a VM that decide whether the agent can query its guest agent, and over which socket.

    Attributes:
        opened_by_guest: whether a program in the guest has opened the channel; None if QEMU has not reported this yet.
        socket: path of the channel's Unix socket, as QEMU reports the path; empty if QEMU reports none.
        client_connected: whether another client was connected to the socket at the last poll.
        agent_connected: whether the agent itself is connected to the socket. QEMU then reports the agent as a client.
        running: whether the vCPUs run.
        migrating: whether the VM is migrating.
        responsive: whether QEMU responds to QMP commands.
        pid: process ID of the VM's QEMU; None if unknown.
    """

    opened_by_guest: bool | None = None
    socket: str = ""
    client_connected: bool = False
    agent_connected: bool = False
    running: bool = False
    migrating: bool = False
    responsive: bool = True
    pid: int | None = None

    def obstacle(self) -> tuple[GuestAgentState, str] | None:
        """Return why the guest agent cannot be queried now: the state of the session, and the cause.

        Return None if nothing prevents a query.
        """
        if self.opened_by_guest is False:
            return GuestAgentState.ABSENT, "no program in the guest has opened the channel"
        for applies, cause in (
            (not self.responsive, "QEMU does not respond"),
            (not self.running, "the guest does not run"),
            (self.migrating, "the VM is migrating"),
        ):
            if applies:
                return GuestAgentState.SUSPENDED, cause
        return None
