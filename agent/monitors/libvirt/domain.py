"""One domain, as a link to its QEMU: it takes the questions that a QMP client takes, and answers them by what libvirt says of it.

What libvirt's own calls do not tell is answered as a QEMU answers that has no such command, so that nobody asks again. With passthrough
every question goes to QEMU itself, and libvirt marks the domain as tainted.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import orjson

from agent.monitors.base import EventCallback
from agent.monitors.libvirt import qmp_translation
from agent.monitors.libvirt.connection_pool import MAX_HUNG, ConnectionPool, LibvirtConnection
from agent.monitors.libvirt.devices import Devices
from agent.monitors.libvirt.devices import devices as devices_of
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.qmp.client import CommandResult
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import CommandError, NotConnectedError, PreemptedError, QmpError, StalledError
from agent.qmp.protocol import Greeting

REASON_SECONDS = 1.0
"""How long libvirt may take to say why a domain ended, once it knows the domain no more."""


@dataclass(frozen=True, slots=True)
class LibvirtHost:
    """The libvirtd that a domain is one of.

    Attributes:
        api: libvirt.
        qemu: libvirt_qemu.
        calls: makes calls to it.
        figures: asks for statistics.
        version: of the QEMU that it starts.
        read_only: whether nothing but reading is allowed.
        passthrough: whether questions go to QEMU itself.
    """

    api: Any
    qemu: Any
    calls: ConnectionPool
    figures: StatsBatcher
    version: tuple[int, int, int]
    read_only: bool
    passthrough: bool


class MigrationPhase(Enum):
    """How far a domain that comes from another host is, by libvirt's word on its life: its states have none for that."""

    ARRIVING = auto()
    ARRIVED = auto()


class DomainConnection:
    """A link to one domain that runs; see `agent.monitors.base.Link`."""

    can_probe = False

    def __init__(
        self, host: LibvirtHost, uuid: str, name: str, allow: AllowList, on_event: EventCallback, pid: int | None
    ) -> None:
        self.greeting: Greeting | None = Greeting(host.version, "", oob=False)
        self.ended: asyncio.Future[QmpError] = asyncio.get_running_loop().create_future()
        self.uuid = uuid
        self.name = name
        self.peer_pid = pid
        self.hear = on_event
        self.move: MigrationPhase | None = None
        """How far it has come from another host; None where it was started here."""
        self._move_told = False
        self._host = host
        self._allow = allow
        self._round: asyncio.Task[list[CommandResult]] | None = None
        self._devices: Devices | None = None

    @property
    def receives_events(self) -> bool:
        """Whether libvirt passes events on: not to one who may only read."""
        return not self._host.read_only

    # What a session calls.

    async def execute(self, asks: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Return the answers, in order; as Client.execute does."""
        if self.ended.done():
            raise self.ended.result()
        for ask in asks:
            self._allow.encode(ask)  # refuses what is not allowed, whichever way it would go
        if self._round is not None and not self._round.done():
            raise StalledError("earlier questions are still open")
        self._round = asyncio.ensure_future(self._answers(asks))
        if await self._over(self._round, deadline):
            return self._round.result()
        full = (
            f"; {MAX_HUNG} calls hang in libvirtd, and it is given no more" if self._host.calls.hung >= MAX_HUNG else ""
        )
        raise StalledError(f"no answer by libvirt to {asks[0].name} within {deadline:g} s{full}")

    async def wait_idle(self) -> None:
        """Wait until no answer is due; as Client.wait_idle does."""
        if self._round is not None:
            await self._over(self._round, None)

    async def probe(self, *, deadline: float) -> bool:  # noqa: ARG002 - Client's signature
        """Return False: libvirt has no out-of-band question."""
        return False

    async def _over(self, doing: asyncio.Task[list[CommandResult]], deadline: float | None) -> bool:
        """Wait for answers; return whether they are there.

        Raises:
            QmpError: the link ended first.
        """
        either: set[asyncio.Future[Any]] = {doing, self.ended}
        await asyncio.wait(either, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if doing.done() and not doing.cancelled() and isinstance(error := doing.exception(), NotConnectedError):
            await asyncio.wait({self.ended}, timeout=REASON_SECONDS)
            self.end(error)
        if self.ended.done():
            raise self.ended.result()
        return doing.done()

    def close(self) -> None:
        """End it now."""
        self.end(NotConnectedError("closed by us"))

    def preempt(self) -> None:
        """End it now, because the domain is watched in a better way."""
        self.end(PreemptedError("a better way to this VM was found"))

    def end(self, why: QmpError) -> None:
        """End it, and say why."""
        if not self.ended.done():
            self.ended.set_result(why)
        if self._round is not None:
            self._round.cancel()

    # Answers.

    async def _answers(self, asks: Sequence[Command]) -> list[CommandResult]:
        try:
            return await self._told(asks)
        except CommandError as error:
            return [error] * len(asks)

    async def _told(self, asks: Sequence[Command]) -> list[CommandResult]:
        if self._host.passthrough:
            return await self._host.calls(lambda line: [self._pass(line, self._allow.encode(ask)) for ask in asks])
        look = await self._look(asks)
        return [await self._answer(ask, look) for ask in asks]

    def _pass(self, line: LibvirtConnection, request: bytes) -> CommandResult:
        """Have QEMU asked. Runs in a thread."""
        try:
            text = self._host.qemu.qemuMonitorCommand(line.domain(self.uuid), request.decode(), 0)
        except self._host.api.libvirtError as error:
            if line.lost() or error.get_error_code() == self._host.api.VIR_ERR_NO_DOMAIN:
                raise
            return CommandError("GenericError", error.get_error_message())
        reply = orjson.loads(text)
        if "return" in reply:
            return reply["return"]
        refused = reply.get("error", {})
        return CommandError(str(refused.get("class")), str(refused.get("desc")))

    async def _look(self, asks: Sequence[Command]) -> qmp_translation.DomainSnapshot:
        """Learn what these questions need, and nothing else."""
        commands = {ask.name for ask in asks}
        groups = 0
        for group in qmp_translation.groups(asks):
            groups |= getattr(self._host.api, f"VIR_DOMAIN_STATS_{group}")
        stats = await self._host.figures.of(self.uuid, groups) if groups else {}
        if self._devices is None or commands & qmp_translation.FRESH or not qmp_translation.known(stats, self._devices):
            xml: str = await self._host.calls(lambda line: line.domain(self.uuid).XMLDesc(0))
            self._devices = devices_of(xml)
        files = await self._files(self._devices) if "query-named-block-nodes" in commands else {}
        return qmp_translation.DomainSnapshot(self.uuid, self.name, stats, self._devices, files)

    async def _answer(self, ask: Command, look: qmp_translation.DomainSnapshot) -> CommandResult:
        given = ask.arguments or {}
        if ask.name == "qom-set":
            return await self._do(lambda domain: domain.setMemoryStatsPeriod(given["value"], 0))
        if ask.name == "block-set-write-threshold":
            place = look.devices.place(given["node-name"])
            if place is None:
                return CommandError("GenericError", f"libvirt knows no image with the node {given['node-name']}")
            return await self._do(lambda domain: domain.setBlockThreshold(place, given["write-threshold"]))
        told = self._moving(ask, qmp_translation.answer(ask, look))
        if told is None:
            return CommandError("CommandNotFound", f"libvirt tells nothing of {ask.name} without passthrough")
        return told

    def _moving(self, ask: Command, told: Any) -> Any:
        """Return an answer with what the move makes of it: one that is on its way says so, and one that had come before says it once."""
        if self.move is MigrationPhase.ARRIVING and ask.name == "query-status" and told != qmp_translation.RUNNING:
            self._move_told = True
            return {"status": "inmigrate", "running": False}
        if self.move is MigrationPhase.ARRIVED and ask.name == "query-migrate" and not self._move_told:
            self._move_told = True
            return {"status": "completed"}
        return told

    async def _do(self, change: Callable[[Any], object]) -> CommandResult:
        """Make a change by libvirt's own call."""

        def made(line: LibvirtConnection) -> dict[str, Any]:
            change(line.domain(self.uuid))
            return {}

        try:
            return await self._host.calls(made)
        except CommandError as error:
            return error

    async def _files(self, devices: Devices) -> qmp_translation.Files:
        """Return how large those disks are that are files. libvirtd looks at the files itself."""
        targets = [disk.target for disk in devices.disks.values() if disk.layers and disk.layers[0].protocol == "file"]

        def look(line: LibvirtConnection) -> qmp_translation.Files:
            domain = line.domain(self.uuid)
            found: dict[str, tuple[int, int]] = {}
            for target in targets:
                try:
                    _, *sizes = domain.blockInfo(target)
                    found[target] = sizes[0], sizes[1]
                except self._host.api.libvirtError:  # one that it cannot look at
                    if line.lost():
                        raise
            return found

        return await self._host.calls(look) if targets else {}


def pid_of(folder: Path, name: str) -> int | None:
    """Return the process of a domain, which libvirtd writes down for those who may read it; None where we may not."""
    try:
        return int((folder / f"{name}.pid").read_text().strip()) or None
    except (OSError, ValueError):
        return None
