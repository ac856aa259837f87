"""What a way of reaching monitors is."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from agent.qmp.client import Connect


class Rank(IntEnum):
    """How good a way to a VM is, the best first. A VM that can be reached in several is watched over the best alone."""

    OWN = 0
    """A monitor for the agent alone: every event, every question."""
    MANAGER = 10
    """Through the VM's manager, such as libvirt: every event, the questions that it passes on."""
    BURST = 20
    """A monitor that somebody else needs back: questions now and then, no events."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """One monitor that may be connected to.

    Attributes:
        name: its address as the operator would write it.
        key: what tells it from another at the same address; a socket made anew is another monitor.
        connect: makes a connection to it.
        rank: how good a way to its VM it is.
        calls: whether QEMU has connected to us: then there is one connection, which is kept even while it is not needed, since QEMU
            would only make it again.
    """

    name: str
    key: tuple[object, ...]
    connect: Connect
    rank: Rank = Rank.OWN
    calls: bool = False


class Found(Protocol):
    """Whom a way tells what it found."""

    def appeared(self, monitor: Monitor) -> None:
        """There is a monitor that was not there."""

    def vanished(self, monitor: Monitor) -> None:
        """It is there no more; a connection to it may live on and is left to end by itself."""


class Way(Protocol):
    """A way of reaching monitors."""

    async def watch(self, found: Found) -> None:
        """Tell `found` of monitors until cancelled."""
