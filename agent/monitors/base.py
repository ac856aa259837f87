"""What a way of reaching monitors is."""

from dataclasses import dataclass
from typing import Protocol

from agent.qmp.client import Connect


@dataclass(frozen=True, slots=True)
class Monitor:
    """One monitor that may be connected to.

    Attributes:
        name: its address as the operator would write it.
        key: what tells it from another at the same address; a socket made anew is another monitor.
        connect: makes a connection to it.
    """

    name: str
    key: tuple[object, ...]
    connect: Connect


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
