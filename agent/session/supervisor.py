"""Supervision of one monitor: connects to the monitor, and connects again after each connection has ended."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from agent.common.backoff import retry_delay
from agent.host.qemu_processes import pid_if_qemu
from agent.model.record import Record, Severity, Vm, sanitize
from agent.monitors import Monitor, MonitorConnection, MonitorPriority
from agent.qmp.errors import (
    ConnectPermissionError,
    MigratedAwayError,
    MonitorBusyError,
    PeerNotReadingError,
    PreemptedError,
    ProtocolError,
    QmpError,
    StalledError,
    TransportLostError,
    UnreadableReplyError,
)
from agent.session import identity_and_features
from agent.session.collector_failures import CollectorFailures
from agent.session.event_handler import EventHandler
from agent.session.migration_state import MigrationState
from agent.session.ownership import OwnershipClaim, OwnershipRegistry
from agent.session.session import Session
from agent.session.shared_types import (
    MonitorState,
    MonitorStatus,
    SessionContext,
    SessionObserver,
    VmLifecycleChange,
    lifecycle_change_between_states,
)

FIRST_RETRY_SECONDS = 0.2
"""Delay of the first attempt to connect again."""

NO_EVENTS = "polls only: this monitor delivers no events"
"""Reason of the state `up` of a monitor without events."""


class MonitorSupervisor:
    """Connects to one monitor, and connects again after each connection has ended."""

    def __init__(
        self, monitor: Monitor, context: SessionContext, observer: SessionObserver, claims: OwnershipRegistry
    ) -> None:
        self.name = monitor.name
        self._monitor = monitor
        self._context = context
        self._observer = observer
        self._claims = claims
        self._vm: Vm | None = None
        self._build: identity_and_features.QemuBuild | None = None
        self._status: MonitorStatus | None = None
        self._detached_ns: int | None = None
        self._session: Session | None = None
        self._migration = MigrationState()
        self._failures = CollectorFailures()
        self._up_reason = ""
        self._vm_may_run = False
        """True if the connection to a VM was lost although the VM may still run."""
        # A future, not an asyncio.Event, which allocates 0.7 KB.
        self._removed = asyncio.get_running_loop().create_future()

    @property
    def _state(self) -> MonitorState | None:
        return self._status.state if self._status is not None else None

    def stop_reconnecting(self) -> None:
        """Make no new connection, because the monitor's address no longer exists. An open connection stays open."""
        if not self._removed.done():
            self._removed.set_result(None)

    def resume_reconnecting(self) -> None:
        """Make new connections again after `stop_reconnecting`, because the monitor's address exists again."""
        if self._removed.done():
            self._removed = asyncio.get_running_loop().create_future()

    def overdue_seconds(self, now: float) -> float | None:
        """Return by how many seconds the session's next action is overdue; None if the agent does not poll the VM now."""
        polled = self._session is not None and self._state is MonitorState.UP
        return self._session.overdue_seconds(now) if self._session is not None and polled else None

    def resync(self) -> None:
        """Run all collectors again soon, if a VM is attached."""
        if self._session is not None:
            self._session.resync()

    async def run(self) -> None:
        """Connect repeatedly, until this task is cancelled or the monitor is removed."""
        failures = 0
        while not self._removed.done():
            try:
                failures = 0 if await self._run_connection() else failures + 1
            finally:
                self._session = None  # breaks a reference cycle
            delay = retry_delay(failures, FIRST_RETRY_SECONDS, self._context.settings.max_retry_seconds)
            await asyncio.wait({self._removed}, timeout=delay)
        if self._vm_may_run and self._vm is not None and not self._claims.is_held(self._vm.uuid):
            self._report_change(
                VmLifecycleChange.GONE, {"reason": f"its monitor {sanitize(self.name)} no longer exists"}
            )

    async def _run_connection(self) -> bool:
        """Connect, and watch the VM until the connection ends.

        Returns:
            False if the connection failed or soon ended, so that the delay before the next connection has to grow.
        """
        if self._state in (None, MonitorState.NEGOTIATING, MonitorState.UP):
            # Other states, such as busy, stay until this attempt has succeeded or failed.
            self._set_state(MonitorState.CONNECTING)
        events = EventHandler(self._observer)
        try:
            client = await self._monitor.open(
                self._context.allow, events.on_event, deadline=self._context.settings.greeting_seconds
            )
        except (MonitorBusyError, StalledError) as error:
            if isinstance(error, MonitorBusyError) and self._monitor.inbound:
                # No other client can hold a monitor that connects to the agent.
                self._set_state(MonitorState.GONE, "QEMU connected but sent no greeting")
            else:
                self._report_state(
                    MonitorState.BUSY if isinstance(error, MonitorBusyError) else MonitorState.STALLED, str(error)
                )
            return False
        except QmpError as error:
            self._set_state(state_after_failed_connect(error), str(error))
            return False
        with contextlib.closing(client):
            session = self._session = Session(
                self._context,
                self._observer,
                client,
                events,
                self._report_state,
                self._report_degraded,
                self._migration,
                self._failures,
            )
            return await self._identify_and_watch(client, session, events)

    async def _identify_and_watch(self, client: MonitorConnection, session: Session, events: EventHandler) -> bool:
        if self._state is not MonitorState.STANDBY:
            self._set_state(MonitorState.NEGOTIATING)
        try:
            vm = await session.identify(self._monitor)
        except _VM_MAY_RUN as error:
            self._set_state(MonitorState.CONNECTING, f"cannot be identified: {error}")
            return False
        except QmpError as error:
            self._set_state(MonitorState.GONE, str(error))
            return False
        # A connection without events has the lowest priority.
        priority = self._monitor.priority if client.receives_events else MonitorPriority.SHARED
        claim = OwnershipClaim(
            vm.uuid,
            pid_if_qemu(client.peer_pid),
            priority,
            sanitize(self._monitor.name),
            client.close_for_preferred_monitor,
        )
        try:
            while (better := await self._claims.acquire(claim)) is not None:
                self._set_state(MonitorState.STANDBY, f"{vm.name} is watched over {better.name}")
                await self._wait_in_standby(client, better)
                if client.ended_future.done():
                    return True
                events.discard_buffered()  # the session over the better monitor has reported these events
            return await self._watch_vm(client, session, vm, events.dropped_event_count)
        finally:
            self._claims.release(claim)

    async def _wait_in_standby(self, client: MonitorConnection, better: OwnershipClaim) -> None:
        """Wait until the better monitor is lost, for at most one resync interval. The caller then claims the VM again."""
        if not self._monitor.inbound:
            client.close()
        no_longer_usable: asyncio.Future[Any] = client.ended_future if self._monitor.inbound else self._removed
        await asyncio.wait(
            {better.released, no_longer_usable},
            timeout=self._context.settings.intervals.resync,
            return_when=asyncio.FIRST_COMPLETED,
        )

    async def _watch_vm(self, client: MonitorConnection, session: Session, vm: Vm, events_dropped: int) -> bool:
        """Watch the VM until the connection ends. Return whether the connection lasted long enough to reset the back-off."""
        change, reason, state = VmLifecycleChange.DETACHED, "the agent stops watching", MonitorState.GONE
        attached_at = time.monotonic()
        try:
            assert client.greeting is not None
            self._vm, self._build = vm, identity_and_features.qemu_build_of(client.greeting)
            data = self._attached_fields(self._build, client) | {"events_dropped": events_dropped or None}
            self._report_change(VmLifecycleChange.ATTACHED, data, Severity.ERROR if events_dropped else Severity.INFO)
            self._up_reason = "" if client.receives_events else NO_EVENTS
            self._vm_may_run = False
            self._set_state(MonitorState.UP, self._up_reason)
            await session.run(vm)
        except PreemptedError as error:
            reason = str(error)
            return True
        except _VM_MAY_RUN as error:
            reason, state, self._vm_may_run = str(error), MonitorState.CONNECTING, True
        except QmpError as error:
            shut_down = session.shutdown_reason is not None
            moved = isinstance(error, MigratedAwayError) or self._migration.migrated_away(shut_down=shut_down)
            change, reason = VmLifecycleChange.MIGRATED_OUT if moved else VmLifecycleChange.GONE, str(error)
        finally:
            self._detached_ns = time.time_ns()
            incoming = self._migration.is_incoming or None
            self._report_change(
                change, {"reason": reason, "shutdown_reason": session.shutdown_reason, "incoming": incoming}
            )
            if change is not VmLifecycleChange.DETACHED:
                self._migration, self._failures = MigrationState(), CollectorFailures()
            self._set_state(state, reason)
        return time.monotonic() - attached_at >= self._context.settings.max_retry_seconds

    def _attached_fields(self, build: identity_and_features.QemuBuild, client: MonitorConnection) -> dict[str, Any]:
        return {
            "monitor": sanitize(self._monitor.name),
            "qemu_version": build.version or None,
            "qemu_package": build.package,
            "pid": pid_if_qemu(client.peer_pid),
            "reattached": self._detached_ns is not None,
            "incoming": self._migration.is_incoming or None,
            "events_available": None if client.receives_events else False,
            "events_lost_since_timestamp_seconds": self._detached_ns and self._detached_ns / 1e9,
        }

    def _report_state(self, state: MonitorState, reason: str) -> None:
        """Set the state. If the state changed, also report a lifecycle record."""
        before = self._state
        if not self._set_state(state, reason or (self._up_reason if state is MonitorState.UP else "")):
            return
        change = lifecycle_change_between_states(before, state)
        if change is not None:
            data = {} if change is VmLifecycleChange.RECOVERED else {"reason": reason}
            self._report_change(change, data, _SEVERITIES.get(change, Severity.INFO))

    def _set_state(self, state: MonitorState, reason: str = "") -> bool:
        """Set the state and its reason, and report the status if it changed. Return True if the state itself changed."""
        before = self._status
        attached = state in (MonitorState.UP, MonitorState.STALLED)
        degraded = self._failures.degraded if attached else ()
        if before is not None and (state, reason) == (before.state, before.reason):
            if degraded == before.degraded:
                return False
            since_ns = before.since_ns
        else:
            since_ns = time.time_ns()
        self._status = MonitorStatus(self._monitor, state, reason, self._vm, self._build, since_ns, degraded)
        self._observer.on_monitor_status(self._status)
        return before is None or state is not before.state

    def _report_degraded(self) -> None:
        """Report the status again, with the collectors that fail now."""
        if self._status is not None:
            self._set_state(self._status.state, self._status.reason)

    def _report_change(
        self, change: VmLifecycleChange, data: Mapping[str, Any], severity: Severity = Severity.INFO
    ) -> None:
        vm = self._vm or Vm(self._context.settings.host, "", "", self._monitor.name)
        known = {key: value for key, value in data.items() if value is not None}
        self._observer.on_lifecycle(change, Record(change.record_type, vm, known, time.time_ns(), severity=severity))


_VM_MAY_RUN = (TransportLostError, ProtocolError, PeerNotReadingError, UnreadableReplyError)
"""Errors that end the agent's use of a connection although the VM may still run."""

_SEVERITIES = {VmLifecycleChange.BUSY: Severity.WARNING, VmLifecycleChange.STALLED: Severity.ERROR}
"""Severity of a change's record. The record of any other change has the severity info."""

_STATE_AFTER_ERROR = {
    StalledError: MonitorState.STALLED,
    ConnectPermissionError: MonitorState.DENIED,
    TransportLostError: MonitorState.CONNECTING,
    QmpError: MonitorState.GONE,
}
"""State of a monitor after a failed attempt to connect; the first entry that matches the error decides."""


def state_after_failed_connect(error: QmpError) -> MonitorState:
    """Return the state of a monitor after a failed attempt to connect."""
    return next(state for error_type, state in _STATE_AFTER_ERROR.items() if isinstance(error, error_type))
