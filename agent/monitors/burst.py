"""Sockets that somebody else needs back, such as Proxmox's: the agent is there only while it asks.

A monitor serves one client at a time and has room for two that wait. So each round of questions is a visit: connect, ask all in one write,
leave, in a bounded time whatever QEMU does. Events come only while somebody is connected, so hardly any is heard.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from agent.common.backoff import back_off
from agent.monitors.base import ConnectionOpener, EventCallback, Monitor, MonitorConnection, MonitorPriority
from agent.monitors.dial import SCAN_SECONDS, DialDiscoverer
from agent.qmp.client import Client, CommandResult, Connect
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import BusyError, NotConnectedError, PreemptedError, ProtocolError, QmpError, StalledError
from agent.qmp.protocol import Greeting  # noqa: TC001 - for its one annotation, as elsewhere

HOLD_SECONDS = 0.5
"""Proxmox waits 3 s for its figures and 5 s for most commands, the queue included (qemu-server 9.2)."""

FIRST_RETRY_SECONDS = 0.05
RETRY_SECONDS = 10.0
"""The longest wait before the next visit to a monitor that lets nobody in, or does not answer."""


class BurstDiscoverer(DialDiscoverer):
    """Monitors at addresses as `dial` has them, each visited for at most `hold_seconds` for the greeting and as long for the answers."""

    def __init__(self, pattern: str, hold_seconds: float = HOLD_SECONDS, scan_seconds: float = SCAN_SECONDS) -> None:
        super().__init__(pattern, scan_seconds)
        self._hold_seconds = hold_seconds

    def __repr__(self) -> str:
        return f"burst {self.pattern} {self._hold_seconds:g}"

    def monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor that there is at an address."""
        return Monitor(
            name,
            ("burst", self._hold_seconds, *key),
            burst_connection(connect, self._hold_seconds),
            MonitorPriority.BURST,
        )


def burst_connection(connect: Connect, hold_seconds: float) -> ConnectionOpener:
    """Return how a link of visits is made where a connection can be."""

    async def open_(allow: AllowList, on_event: EventCallback, *, deadline: float) -> MonitorConnection:
        link = BurstConnection(connect, hold_seconds, allow, on_event)
        await link.execute((), deadline=deadline)
        return link

    return open_


class BurstConnection:
    """A link to a QEMU that is connected to only for as long as it takes to ask; see `agent.monitors.base.MonitorConnection`.

    It ends when nobody listens there any more, or another process does.
    """

    can_probe = False
    receives_events = False

    def __init__(self, connect: Connect, hold_seconds: float, allow: AllowList, on_event: EventCallback) -> None:
        self.greeting: Greeting | None = None
        self.ended: asyncio.Future[QmpError] = asyncio.get_running_loop().create_future()
        self.peer_pid: int | None = None
        self._connect = connect
        self._hold_seconds = hold_seconds
        self._allow = allow
        self._on_event = on_event
        self._client: Client | None = None

    async def execute(self, asks: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Visit, ask and return the answers, in order; as Client.execute does. Where nobody is let in, come again, ever later.

        Raises:
            BusyError: nobody was let in within `deadline` seconds. `wait_idle` tells when somebody is.
            StalledError: there was no answer in the time that a visit may take.
        """
        until, attempt = time.monotonic() + deadline, 0
        while True:
            try:
                return await self._once(asks)
            except BusyError:
                wait = back_off(attempt, FIRST_RETRY_SECONDS, RETRY_SECONDS)
                if time.monotonic() + wait > until:
                    raise
            attempt += 1
            await self._pause(wait)

    async def wait_idle(self) -> None:
        """Visit, ever more rarely, until somebody answers."""
        attempt = 0
        while True:
            with contextlib.suppress(BusyError, StalledError):
                await self._once(())
                return
            await self._pause(back_off(attempt, FIRST_RETRY_SECONDS, RETRY_SECONDS))
            attempt += 1

    async def probe(self, *, deadline: float) -> bool:  # noqa: ARG002 - Client's signature
        """Return False: nobody stays to ask out of band."""
        return False

    def close(self) -> None:
        """End it now."""
        self._end(NotConnectedError("closed by us"))

    def preempt(self) -> None:
        """End it now, because the VM is watched in a better way."""
        self._end(PreemptedError("a better way to this VM was found"))

    async def _once(self, asks: Sequence[Command]) -> list[CommandResult]:
        """Make one visit.

        Raises:
            BusyError: nobody was let in.
            StalledError: QEMU did not answer in time.
            NotConnectedError: the link has ended.
            ProtocolError: what answers is not QMP, and the link has ended.
        """
        try:
            client = await Client.open(self._connect, self._allow, self._on_event, deadline=self._hold_seconds)
            with contextlib.closing(client):
                self._enter(client)
                return await client.execute(asks, deadline=self._hold_seconds) if asks else []
        except BusyError:
            raise
        except (NotConnectedError, ProtocolError) as error:
            self._end(error)
            raise self.ended.result() from error
        finally:
            self._client = None

    def _enter(self, client: Client) -> None:
        """Remember whom this is a link to.

        Raises:
            NotConnectedError: somebody else is there now, or the link has ended meanwhile.
        """
        if self.ended.done():
            raise self.ended.result()
        if self.greeting is not None and self.peer_pid != client.peer_pid:
            raise NotConnectedError("another process listens there now")
        self.greeting, self.peer_pid, self._client = client.greeting, client.peer_pid, client

    async def _pause(self, seconds: float) -> None:
        await asyncio.wait({self.ended}, timeout=seconds)
        if self.ended.done():
            raise self.ended.result()

    def _end(self, why: QmpError) -> None:
        if not self.ended.done():
            self.ended.set_result(why)
        if self._client is not None:
            self._client.close()
