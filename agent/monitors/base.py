"""What a way of reaching monitors is."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import ClassVar, Protocol

from agent.common.config_types import Section
from agent.qmp.client import Client, CommandResult, Connect
from agent.qmp.commands import AllowList, Change, Command
from agent.qmp.errors import QmpError
from agent.qmp.protocol import Event, Greeting


class MonitorConnection(Protocol):
    """A connection to a VM that understands QEMU's questions: over QMP it is a `Client`, which says what each of these is."""

    @property
    def greeting(self) -> Greeting | None: ...  # noqa: D102 - as Client's

    @property
    def ended(self) -> asyncio.Future[QmpError]: ...  # noqa: D102 - as Client's

    @property
    def peer_pid(self) -> int | None: ...  # noqa: D102 - as Client's

    @property
    def can_probe(self) -> bool: ...  # noqa: D102 - as Client's

    @property
    def receives_events(self) -> bool: ...  # noqa: D102 - as Client's

    async def execute(self, asks: Sequence[Command], *, deadline: float) -> list[CommandResult]: ...  # noqa: D102 - as Client's

    async def wait_idle(self) -> None: ...  # noqa: D102 - as Client's

    async def probe(self, *, deadline: float) -> bool: ...  # noqa: D102 - as Client's

    def close(self) -> None: ...  # noqa: D102 - as Client's

    def preempt(self) -> None: ...  # noqa: D102 - as Client's


EventCallback = Callable[[Event], None]


class ConnectionOpener(Protocol):
    """Opens a connection to one monitor."""

    def __call__(self, allow: AllowList, on_event: EventCallback, *, deadline: float) -> Awaitable[MonitorConnection]:
        """Connect within `deadline` seconds; raises what `Client.open` raises."""


def qmp_opener(connect: Connect) -> ConnectionOpener:
    """Return how a link is made where a connection to a QMP socket can be."""
    return partial(Client.open, connect)


class MonitorPriority(IntEnum):
    """How good a way to a VM is, the best first. A VM that can be reached in several is watched over the best alone."""

    DEDICATED = 0
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
        open: makes a link to it.
        rank: how good a way to its VM it is.
        inbound: whether QEMU has connected to us: then there is one connection, which is kept even while it is not needed, since QEMU
            would only make it again.
    """

    name: str
    key: tuple[object, ...]
    open: ConnectionOpener
    priority: MonitorPriority = MonitorPriority.DEDICATED
    inbound: bool = False


class DiscoveryListener(Protocol):
    """Whom a way tells what it found."""

    def on_monitor_added(self, monitor: Monitor) -> None:
        """There is a monitor that was not there."""

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """It is there no more; a connection to it may live on and is left to end by itself."""

    def on_status(self, way: Monitor, trouble: QmpError | None, note: str = "") -> None:
        """The way itself, which is no VM's monitor but shown beside them, works, or does not for this reason."""

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Somebody who connected to us there was not let in."""


class Discoverer(Protocol):
    """A way of reaching monitors."""

    async def run(self, found: DiscoveryListener) -> None:
        """Tell `found` of monitors until cancelled."""


class AllowedChanges(Protocol):
    """What the config's `allow` says that is for ways."""

    @property
    def libvirt_passthrough(self) -> bool: ...  # noqa: D102 - as the config's


class DiscovererConfig(Section):
    """An entry of the config's `monitors`: its first key says which way, and that key's value where."""

    inbound: ClassVar[bool] = False
    """Whether QEMU connects to us there."""

    @classmethod
    def key(cls) -> str:
        """Return the key that says it."""
        return next(iter(cls.model_fields))

    def __str__(self) -> str:
        return f"{self.key()}: {getattr(self, self.key())}"

    @abstractmethod
    def build(self, allow: AllowedChanges) -> Discoverer:
        """Return the way; two that are the same have the same `repr`."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where it leads, as `dial` has it; empty where only another program can tell."""
        return ()

    @property
    def changes(self) -> frozenset[Change]:
        """What the way may change about a QEMU."""
        return frozenset()
