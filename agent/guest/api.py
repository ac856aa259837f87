"""Interfaces of guest agent sessions: their states, and the callbacks that report their results. Pure."""

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
    """The guest agent is not queried now, because the guest does not run or is migrating. The last values stay."""
    CONNECTING = "connecting"
    UP = "up"
    UNRESPONSIVE = "unresponsive"
    """The guest agent does not answer in time, or what it sends cannot be read."""
    BUSY = "busy"
    """Another client uses the channel."""
    DENIED = "denied"
    """The agent may not use the channel."""


class CommandOutcome(StrEnum):
    """Outcome of one command to a guest agent."""

    OK = "ok"
    ERROR = "error"
    """The guest agent returned an error."""
    TIMEOUT = "timeout"
    UNREADABLE = "unreadable"
    LOST = "lost"
    """The connection ended."""


class GuestObserver(Protocol):
    """Callbacks invoked by sessions with guest agents. Implementations must not block or raise."""

    def on_guest_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Handle all samples of these families at one instant. A subject without a sample no longer exists."""

    def on_guest_lost(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        """Handle the loss of a guest agent: the last values of these families are out of date."""

    def on_guest_disabled(self, vm: Vm, time_ns: int) -> None:
        """Handle a VM whose guest agent is no longer queried, because the config has changed."""

    def on_guest_command(self, command: str, outcome: CommandOutcome) -> None:
        """Handle the outcome of one command."""


@dataclass(slots=True)
class GuestFacts:
    """Facts about one VM that decide whether and where its guest agent is queried.

    Attributes:
        connected: whether the guest has opened the channel; None if that is unknown.
        socket: the Unix socket of the channel, as QEMU reports it; empty if it reports none.
        client_connected: whether another client was connected to the socket at the last poll.
        in_use: whether this session is connected to the socket. QEMU then reports a client.
        running: whether the guest runs.
        migrating: whether the VM is migrating.
        responsive: whether QEMU responds.
        pid: the VM's process; None if it is unknown.
    """

    connected: bool | None = None
    socket: str = ""
    client_connected: bool = False
    in_use: bool = False
    running: bool = False
    migrating: bool = False
    responsive: bool = True
    pid: int | None = None

    def obstacle(self) -> tuple[GuestAgentState, str] | None:
        """Return why the guest agent is not queried now, as a state and its cause; None if it is queried."""
        if self.connected is False:
            return GuestAgentState.ABSENT, "no program in the guest has opened the channel"
        for applies, cause in (
            (not self.responsive, "QEMU does not respond"),
            (not self.running, "the guest does not run"),
            (self.migrating, "the VM is migrating"),
        ):
            if applies:
                return GuestAgentState.SUSPENDED, cause
        return None
