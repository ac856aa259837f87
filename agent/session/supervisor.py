"""Watching one monitor over as many connections as it takes, and a fleet of them.

A monitor that hangs, lies or leaves harms its own watch and no other.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from agent.common.backoff import back_off
from agent.host.qemu_processes import qemu_of
from agent.model.record import Record, Severity, Vm, sanitize
from agent.monitors import Monitor, MonitorConnection, MonitorPriority
from agent.qmp.errors import (
    BusyError,
    DeniedError,
    MigratedAwayError,
    PreemptedError,
    QmpError,
    StalledError,
    TransportLostError,
)
from agent.session import identity
from agent.session.api import MonitorState, MonitorStatus, SessionObserver, SessionSettings, VmChange
from agent.session.migration_state import MigrationState
from agent.session.ownership import OwnershipClaim, OwnershipRegistry
from agent.session.session import Session

_log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2

UNHEARD = "figures only: its events are not heard over this monitor"


class MonitorSupervisor:
    """Connects to one monitor, and again, until it is cancelled or the monitor has vanished."""

    def __init__(
        self, monitor: Monitor, terms: SessionSettings, out: SessionObserver, claims: OwnershipRegistry
    ) -> None:
        self.name = monitor.name
        self._monitor = monitor
        self._terms = terms
        self._out = out
        self._claims = claims
        self._vm: Vm | None = None
        self._build: identity.Build | None = None
        self._state: MonitorState | None = None
        self._reason = ""
        self._left_ns: int | None = None
        self._session: Session | None = None
        self._passage = MigrationState()
        self._note = ""
        self._vanished = asyncio.get_running_loop().create_future()  # an Event has 0.7 KB ready for those who wait

    def vanish(self) -> None:
        """Do not connect again: the monitor's address is no more. A connection that is up lives on."""
        if not self._vanished.done():
            self._vanished.set_result(None)

    def reappear(self) -> None:
        """Its address is back after all."""
        if self._vanished.done():
            self._vanished = asyncio.get_running_loop().create_future()

    def late_by(self, now: float) -> float | None:
        """Return by how many seconds asking its VM is late; None where none is being asked."""
        return self._session.late_by(now) if self._session is not None and self._state is MonitorState.UP else None

    def resync(self) -> None:
        """Ask everything anew, where somebody is there to be asked."""
        if self._session is not None:
            self._session.resync()

    async def run(self) -> None:
        """Watch, until cancelled or vanished."""
        attempt = 0
        while not self._vanished.done():
            try:
                attempt = 0 if await self._once() else attempt + 1
            finally:
                self._session = None  # which has hold of us: together they would be there till garbage is looked for
            wait = back_off(attempt, FIRST_RETRY_SECONDS, self._terms.retry_seconds)
            await asyncio.wait({self._vanished}, timeout=wait)

    async def _once(self) -> bool:
        """One connection; return whether a VM was met on it."""
        if self._state in (
            None,
            MonitorState.NEGOTIATING,
            MonitorState.UP,
        ):  # any other stands until something better is known
            self._set(MonitorState.CONNECTING)
        session = self._session = Session(self._terms, self._out, self._tell, self._passage)
        try:
            client = await self._monitor.open(self._terms.allow, session.hear, deadline=self._terms.greeting_seconds)
        except (BusyError, StalledError) as error:
            if isinstance(error, BusyError) and self._monitor.inbound:
                self._set(
                    MonitorState.GONE, "it called and did not greet"
                )  # no client of another's can hold this monitor
            else:
                self._tell(MonitorState.BUSY if isinstance(error, BusyError) else MonitorState.STALLED, str(error))
            return False
        except QmpError as error:
            self._set(_standing(error), str(error))
            return False
        with contextlib.closing(client):
            return await self._met(client, session)

    async def _met(self, client: MonitorConnection, session: Session) -> bool:
        if self._state is not MonitorState.STANDBY:
            self._set(MonitorState.NEGOTIATING)
        try:
            vm = await session.meet(client, self._terms.host, self._monitor.name)
        except QmpError as error:
            self._set(MonitorState.GONE, str(error))
            return False
        pid = qemu_of(client.peer_pid)
        priority = (
            self._monitor.priority if client.receives_events else MonitorPriority.BURST
        )  # whichever way it came about
        claim = OwnershipClaim(vm.uuid, pid, priority, sanitize(self._monitor.name), client.preempt)
        try:
            while (better := await self._claims.take(claim)) is not None:
                self._set(MonitorState.STANDBY, f"{vm.name} is watched over {better.name}")
                await self._spare(client, better)
                if client.ended.done():
                    return True
                session.forget()
            return await self._attached(client, session, vm)
        finally:
            self._claims.release(claim)

    async def _spare(self, client: MonitorConnection, better: OwnershipClaim) -> None:
        """Wait for the better way to be lost; now and then look all the same whether it is still the same VM that is here."""
        if not self._monitor.inbound:
            client.close()
        over: asyncio.Future[Any] = client.ended if self._monitor.inbound else self._vanished
        await asyncio.wait(
            {better.released, over}, timeout=self._terms.intervals.resync, return_when=asyncio.FIRST_COMPLETED
        )

    async def _attached(self, client: MonitorConnection, session: Session, vm: Vm) -> bool:
        change, reason, state = VmChange.DETACHED, "the agent stops watching", MonitorState.GONE
        try:
            assert client.greeting is not None
            self._vm, self._build = vm, identity.build(client.greeting)
            self._lifecycle(VmChange.ATTACHED, self._arrival(self._build, client))
            self._note = "" if client.receives_events else UNHEARD
            self._set(MonitorState.UP, self._note)
            await session.watch(client, vm)
        except PreemptedError as error:
            reason = str(error)
        except TransportLostError as error:
            reason, state = str(error), MonitorState.CONNECTING
        except QmpError as error:
            shut_down = session.shutdown_reason is not None
            moved = isinstance(error, MigratedAwayError) or self._passage.departed(shut_down=shut_down)
            change, reason = VmChange.MIGRATED_OUT if moved else VmChange.GONE, str(error)
        finally:
            self._left_ns = time.time_ns()
            more = {"shutdown_reason": session.shutdown_reason, "incoming": self._passage.coming or None}
            self._lifecycle(change, {"reason": reason} | more)
            if change is not VmChange.DETACHED:
                self._passage = MigrationState()
            self._set(state, reason)
        return True

    def _arrival(self, build: identity.Build, client: MonitorConnection) -> dict[str, Any]:
        return {
            "monitor": sanitize(self._monitor.name),
            "qemu_version": build.version,
            "qemu_package": build.package,
            "reattached": self._left_ns is not None,
            "incoming": self._passage.coming or None,
            "events_available": None if client.receives_events else False,
            "events_lost_since_timestamp_seconds": self._left_ns and self._left_ns / 1e9,
        }

    def _tell(self, state: MonitorState, reason: str) -> None:
        """Set a state that downstream is told of too, when it is new."""
        before = self._state
        if not self._set(state, reason or (self._note if state is MonitorState.UP else "")):
            return
        if state is MonitorState.BUSY:
            self._lifecycle(VmChange.BUSY, {"reason": reason}, Severity.WARNING)
        elif state is MonitorState.STALLED:
            self._lifecycle(VmChange.STALLED, {"reason": reason}, Severity.ERROR)
        elif before is MonitorState.STALLED or (before is MonitorState.BUSY and state is MonitorState.UP):
            self._lifecycle(VmChange.RECOVERED, {})

    def _set(self, state: MonitorState, reason: str = "") -> bool:
        """Set the state; return whether it is another one, not just another reason."""
        if (state, reason) == (self._state, self._reason):
            return False
        changed = state is not self._state
        self._state, self._reason = state, reason
        self._out.on_status(MonitorStatus(self._monitor, state, reason, self._vm, self._build, time.time_ns()))
        return changed

    def _lifecycle(self, change: VmChange, data: Mapping[str, Any], severity: Severity = Severity.INFO) -> None:
        vm = self._vm or Vm(self._terms.host, "", "", self._monitor.name)
        told = {key: value for key, value in data.items() if value is not None}
        self._out.on_lifecycle(change, Record(change.type, vm, told, time.time_ns(), severity=severity))


_STANDINGS = {
    StalledError: MonitorState.STALLED,
    DeniedError: MonitorState.DENIED,
    TransportLostError: MonitorState.CONNECTING,
    QmpError: MonitorState.GONE,
}
"""What a failure to open a link makes of a monitor's state; the first that fits."""


def _standing(error: QmpError) -> MonitorState:
    return next(state for kind, state in _STANDINGS.items() if isinstance(error, kind))


class SupervisorGroup:
    """Watches whatever monitors the ways find, one task each."""

    def __init__(self, terms: SessionSettings, out: SessionObserver, tasks: asyncio.TaskGroup) -> None:
        self._terms = terms
        self._out = out
        self._tasks = tasks
        self._claims = OwnershipRegistry()
        self._watches: dict[tuple[object, ...], MonitorSupervisor] = {}
        self._running: dict[MonitorSupervisor, asyncio.Task[None]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._watches

    def __len__(self) -> int:
        return len(self._watches)

    def on_monitor_added(self, monitor: Monitor) -> None:
        """Watch a monitor, unless that is being done already."""
        if monitor.key in self._watches:
            self._watches[monitor.key].reappear()
        else:
            watch = self._watches[monitor.key] = MonitorSupervisor(monitor, self._terms, self._out, self._claims)
            self._running[watch] = self._tasks.create_task(self._run(monitor, watch), name=f"watch {monitor.name}")

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Let a monitor go when its connection ends."""
        if monitor.key in self._watches:
            self._watches[monitor.key].vanish()

    def dismiss(self, monitor: Monitor) -> None:
        """Let a monitor go now, whoever is there."""
        if (watch := self._watches.pop(monitor.key, None)) is not None:
            self._running[watch].cancel()

    def on_status(self, way: Monitor, trouble: QmpError | None, note: str = "") -> None:
        """Tell how a way itself stands."""
        state, reason = (MonitorState.UP, note) if trouble is None else (_standing(trouble), str(trouble))
        self._out.on_status(MonitorStatus(way, state, reason, None, None, time.time_ns()))

    def forget(self, way: Monitor) -> None:
        """Tell of a way no more."""
        self._out.on_monitor_removed(way)

    def late_by(self, now: float) -> dict[str, float]:
        """Return by how many seconds asking each VM that is up is late, by its monitor's name; below 0 it is not."""
        found = ((sanitize(watch.name), watch.late_by(now)) for watch in self._running)
        return {name: late for name, late in found if late is not None}

    def resync(self) -> None:
        """Ask all VMs everything anew, spread over some seconds."""
        for watch in self._watches.values():
            watch.resync()

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Have a connection to us counted that was not let in."""
        self._out.on_connection_refused(address, reason)

    async def _run(self, monitor: Monitor, watch: MonitorSupervisor) -> None:
        try:
            while True:
                try:
                    return await watch.run()
                except Exception:  # noqa: BLE001 - a bug of ours, met by what one VM said: it must not end the others
                    _log.exception("watching %s failed; starting it anew", sanitize(monitor.name))
                    await asyncio.sleep(self._terms.retry_seconds)
        finally:
            del self._running[watch]
            if self._watches.get(monitor.key, watch) is watch:  # it may have been dismissed, and be wanted again
                self._watches.pop(monitor.key, None)
                self._out.on_monitor_removed(monitor)
