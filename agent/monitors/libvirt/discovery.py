"""The domains of one libvirtd, each a monitor.

What is relied on is the list of domains that run, read every so often and at once when libvirt says that one came or went. A domain
that was started anew has another number and so is another monitor.
"""

import asyncio
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from agent.common.backoff import back_off
from agent.monitors.base import DiscoveryListener, EventCallback, Monitor, MonitorConnection, MonitorPriority
from agent.monitors.libvirt.connection_pool import ConnectionPool, MissingError, library
from agent.monitors.libvirt.domain import DomainConnection, LibvirtHost, MigrationPhase, pid_of
from agent.monitors.libvirt.event_connection import EventConnection
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.qmp.commands import AllowList
from agent.qmp.errors import (
    DeniedError,
    MigratedAwayError,
    NotConnectedError,
    QmpError,
    StalledError,
    TransportLostError,
)
from agent.qmp.protocol import Event

LIST_SECONDS = 30.0
ANSWER_SECONDS = 5.0
"""How long libvirtd has to answer what takes no QEMU: past it, it hangs."""
FIRST_RETRY_SECONDS = 0.2
RETRY_SECONDS = 10.0

PIDS = Path("/run/libvirt/qemu")

READ_ONLY = "read-only: of QEMU's events only STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"

_LIFE = {3: "STOP", 4: "RESUME", 6: "SHUTDOWN", 7: "SUSPEND"}
"""virDomainEventType, as the event of QEMU's that libvirt tells by it; for a connection on which QEMU's own are not to be had."""

_STOPPED = 5
"""VIR_DOMAIN_EVENT_STOPPED."""

_WHY = {
    0: "the guest shut down",
    1: "the domain was destroyed",
    2: "QEMU crashed, or was killed",
    3: "the domain has migrated to another host",
    4: "the domain was saved",
    5: "QEMU failed",
    6: "the domain was reverted to a snapshot",
}
"""virDomainEventStoppedDetailType."""

_ARRIVES = (2, 1)
"""VIR_DOMAIN_EVENT_STARTED for VIR_DOMAIN_EVENT_STARTED_MIGRATED: the process is there, and its domain on the way."""
_ARRIVED = ((3, 0), (4, 0), (4, 1))
"""What follows that: it was suspended, as it had been on the other host, or resumed."""

_DEPARTED = (3, 4)
"""Of these, what is no end of the VM."""


class LibvirtDiscoverer:
    """Domains over `qemu:///system` and the like."""

    def __init__(self, uri: str, *, read_only: bool = False, passthrough: bool = False) -> None:
        self.uri = uri
        self._read_only = read_only
        self._passthrough = passthrough
        self._key = ("libvirt", uri, read_only, passthrough)
        self._monitor = Monitor(uri, self._key, self._no_vm)
        self._monitors: dict[tuple[object, ...], Monitor] = {}
        self._links: dict[str, DomainConnection] = {}
        self._moves: dict[str, MigrationPhase] = {}
        self._missing: set[str] = set()
        self._host: LibvirtHost | None = None
        self._trouble: _Trouble | None = TransportLostError, f"{uri} was not reached yet"
        self._standing: object = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        how = [name for name, on in (("read-only", self._read_only), ("passthrough", self._passthrough)) if on]
        return " ".join(("libvirt", self.uri, *how))

    async def run(self, found: DiscoveryListener) -> None:
        """Tell `found` of domains as they come and go, until cancelled."""
        try:
            api, qemu = library()
        except MissingError as error:
            self._stands(found, DeniedError(str(error)))
            await asyncio.Event().wait()
            return
        calls, attempt = ConnectionPool(api, self.uri), 0
        while True:
            self._changed.clear()
            main, begun = EventConnection(api, qemu, self._said), time.monotonic()
            try:
                await self._reached(main, calls, found)
                await self._follow(main, found)
            except QmpError as error:
                self._lost(error)
                self._stands(found, error)
            except BaseException:
                self._lost(TransportLostError("the agent stops watching"))
                raise
            finally:
                main.close()
            attempt = 0 if time.monotonic() - begun > RETRY_SECONDS else attempt + 1
            await asyncio.sleep(back_off(attempt, FIRST_RETRY_SECONDS, RETRY_SECONDS))

    async def _reached(self, main: EventConnection, calls: ConnectionPool, found: DiscoveryListener) -> None:
        """Connect; a libvirtd that accepts and does not answer is waited for, as it is."""
        opening = asyncio.ensure_future(main.open(self.uri, read_only=self._read_only))
        try:
            if not (await asyncio.wait({opening}, timeout=ANSWER_SECONDS))[0]:
                self._hangs(found)
            version, read_only = await opening
        finally:
            opening.cancel()
        calls.read_only = read_only
        passthrough = self._passthrough and not read_only
        figures = StatsBatcher(main.api, calls)
        self._host = LibvirtHost(main.api, main.qemu, calls, figures, version, read_only, passthrough)
        self._trouble = None

    async def _follow(self, main: EventConnection, found: DiscoveryListener) -> None:
        """List the domains again and again, until the connection ends.

        Raises:
            WayLostError: it ended.
        """
        assert self._host is not None
        while True:
            self._changed.clear()
            listing = asyncio.ensure_future(self._host.calls(lambda line: _running(line.connection())))
            ended = asyncio.ensure_future(main.ended.wait())
            try:
                if not (await asyncio.wait({listing, ended}, timeout=ANSWER_SECONDS, return_when=_FIRST))[0]:
                    self._hangs(found)
                    await asyncio.wait({listing, ended}, return_when=_FIRST)
                if ended.done():
                    why = f": libvirt said more than could be taken, and {main.lost} of it is lost" if main.lost else ""
                    raise TransportLostError(f"the connection to {self.uri} ended{why}")
                self._compare(listing.result(), found)
                self._trouble = None
                self._stands(found, None, READ_ONLY if self._host.read_only else "")
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, ended}, timeout=LIST_SECONDS, return_when=_FIRST)
                changed.cancel()
            finally:
                listing.cancel()
                ended.cancel()

    def _hangs(self, found: DiscoveryListener) -> None:
        self._trouble = StalledError, f"libvirtd at {self.uri} does not answer"
        self._stands(found, StalledError(self._trouble[1]))

    def _stands(self, found: DiscoveryListener, trouble: QmpError | None, note: str = "") -> None:
        standing = (type(trouble), str(trouble), note)
        if standing != self._standing:
            self._standing = standing
            found.on_status(self._monitor, trouble, note)

    def _lost(self, error: QmpError) -> None:
        """Take leave of all domains: nothing is known of them now."""
        if self._host is None:
            hung = self._trouble is not None and self._trouble[0] is StalledError
            if isinstance(error, DeniedError):
                self._trouble = DeniedError, str(error)
            elif not hung:  # one that hung and is then given up hangs still
                self._trouble = TransportLostError, str(error)
            return
        self._host.calls.leave()
        self._host = None
        self._moves.clear()
        self._trouble = TransportLostError, str(error)
        for link in list(self._links.values()):
            link.end(TransportLostError(str(error)))
        self._links.clear()

    def _compare(self, running: list[tuple[int, str, str]], found: DiscoveryListener) -> None:
        """Tell what changed since the last list."""
        now: dict[tuple[object, ...], tuple[str, str]] = {
            (*self._key, number, uuid): (uuid, name) for number, uuid, name in running
        }
        for key in self._monitors.keys() - now.keys():
            found.on_monitor_removed(self._monitors.pop(key))
        missing = self._links.keys() - {uuid for uuid, _ in now.values()}
        for uuid in missing & self._missing:
            self._links.pop(uuid).end(NotConnectedError("the domain ended"))
        self._missing = missing  # until the next list libvirt has time to say why
        for key in now.keys() - self._monitors.keys():
            uuid, name = now[key]
            monitor = Monitor(f"{self.uri}#{name}", key, partial(self._open, uuid, name), MonitorPriority.MANAGER)
            self._monitors[key] = monitor
            found.on_monitor_added(monitor)

    async def _open(
        self,
        uuid: str,
        name: str,
        allow: AllowList,
        on_event: EventCallback,
        *,
        deadline: float,  # noqa: ARG002 - the signature of Open
    ) -> MonitorConnection:
        """Make a link to a domain.

        Raises:
            QmpError: libvirtd cannot be reached now.
        """
        if self._trouble is not None:
            kind, why = self._trouble
            raise kind(why)  # a new one each time: it gathers the ways that it went
        assert self._host is not None, "there is trouble as long as there is none"
        link = self._links[uuid] = DomainConnection(self._host, uuid, name, allow, on_event, self._pid(name))
        link.move = self._moves.get(uuid)
        link.ended.add_done_callback(lambda _: self._links.pop(uuid) if self._links.get(uuid) is link else None)
        return link

    def _pid(self, name: str) -> int | None:
        """Return the process of a domain of this host."""
        return pid_of(PIDS, name) if re.match(r"qemu(\+unix)?:///system", self.uri) else None

    async def _no_vm(self, *_: Any, **__: Any) -> MonitorConnection:
        raise NotConnectedError(f"{self.uri} is no VM")

    # What libvirt says unasked.

    def _said(self, what: tuple[Any, ...]) -> None:
        match what:
            case ("event", str(uuid), str(name), time_ns, details):
                if (link := self._links.get(uuid)) is not None:
                    link.hear(Event(name, details, time_ns))
            case ("life", str(uuid), int(event), int(detail)):
                self._tell_life(uuid, event)
                self._tell_move(uuid, (event, detail))
                if event == _STOPPED and (link := self._links.pop(uuid, None)) is not None:
                    error = MigratedAwayError if detail in _DEPARTED else NotConnectedError
                    link.end(error(_WHY.get(detail, "the domain was stopped")))
                self._changed.set()

    def _tell_move(self, uuid: str, life: tuple[int, int]) -> None:
        if life[0] == _STOPPED:
            self._moves.pop(uuid, None)
        elif life == _ARRIVES:
            self._moves[uuid] = MigrationPhase.ARRIVING
        elif life in _ARRIVED and uuid in self._moves:
            self._moves[uuid] = MigrationPhase.ARRIVED
        if (link := self._links.get(uuid)) is not None:
            link.move = self._moves.get(uuid)

    def _tell_life(self, uuid: str, event: int) -> None:
        link = self._links.get(uuid)
        if link is not None and self._host is not None and self._host.read_only and event in _LIFE:
            link.hear(Event(_LIFE[event], {}, None))


_FIRST = asyncio.FIRST_COMPLETED

_Trouble = tuple[type[QmpError], str]
"""Why no domain can be reached."""


def _running(connection: Any) -> list[tuple[int, str, str]]:
    """Return the number, UUID and name of each domain that runs. Blocks."""
    domains = connection.listAllDomains(1)  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
    return [(domain.ID(), domain.UUIDString(), domain.name()) for domain in domains if domain.ID() != -1]
