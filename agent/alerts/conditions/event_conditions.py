"""Evaluates the rows on events: one or several events fire an alert, and other events resolve it. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.alerts.conditions.comparison import check_all
from agent.alerts.conditions.rows import EventAlertRow, EventMatch
from agent.alerts.conditions.sample_conditions import MAX_INSTANCES
from agent.alerts.overrides import AlertOverrides
from agent.alerts.process_state import VmProcessState
from agent.alerts.store import Alert, AlertStore
from agent.model.record import Record, sanitize


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event whose alert fires at `due_ns` unless another event resolves it earlier.

    Attributes:
        state: The process.
        alert: The alert.
        due_ns: When the alert fires, in nanoseconds since the epoch.
    """

    state: VmProcessState
    alert: Alert
    due_ns: int


class EventConditions:
    """The rows on events, for all VMs.

    Attributes:
        overrides: The config's overrides of the rows.
        events: Names of the events that the rows use. Pass only these events to `on_event`.
    """

    def __init__(self, store: AlertStore, rows: Iterable[EventAlertRow], overrides: AlertOverrides) -> None:
        self.overrides = overrides
        self.events: frozenset[str] = frozenset()
        self._store = store
        self._rows: dict[str, list[EventAlertRow]] = {}
        self._resolved: dict[str, list[tuple[EventMatch, EventAlertRow]]] = {}
        self._pending: dict[int, dict[tuple[str, str], PendingEvent]] = {}  # by process, alert and subject
        self.set_rows(rows)

    def set_rows(self, rows: Iterable[EventAlertRow]) -> None:
        """Replace the rows, from the next event on."""
        self._rows, self._resolved = {}, {}
        for row in rows:
            self._rows.setdefault(row.match.event, []).append(row)
            for match in row.resolved_by:
                self._resolved.setdefault(match.event, []).append((match, row))
        self.events = frozenset({*self._rows, *self._resolved})

    def on_event(self, state: VmProcessState, event: Record, name: str, subject: str, now_ns: int) -> Iterator[Record]:
        """Handle an event.

        Args:
            state: The process.
            event: The event's record.
            name: The event's name in QEMU.
            subject: The disk, job or other device of the event, by its stable name; empty for the VM as a whole.
            now_ns: The current time in nanoseconds since the epoch.
        """
        data = event.data["qemu"]
        for match, row in self._resolved.get(name, ()):
            if check_all(match.where, data) is True:
                yield from self._resolve(state, row, name, subject, event.time_ns)
        for row in self._rows.get(name, ()):
            if check_all(row.match.where, data) is True and row.covers(state.vm, subject):
                yield from self._on_match(state, row, event, subject, now_ns)

    def _on_match(
        self, state: VmProcessState, row: EventAlertRow, event: Record, subject: str, now_ns: int
    ) -> Iterator[Record]:
        seconds = self.overrides.seconds_of(row.alert, state.vm, subject, row.seconds)
        count = 1
        if row.limit is not None:
            limit = max(1.0, self.overrides.limit_of(row, state.vm, subject))
            count = self._count(state, row, subject, event.time_ns, int(limit), seconds)
            if count < limit:
                return
        alert = self._to_alert(state, row, event, subject, count, now_ns)
        if row.limit is not None or not seconds:
            yield from self._store.fire(alert)
            return
        pending, key = self._pending.setdefault(state.owner, {}), (row.alert, subject)
        if key in pending or len(pending) < MAX_INSTANCES:
            pending.setdefault(key, PendingEvent(state, alert, event.time_ns + int(seconds * 1e9)))
        else:
            self._store.suppressed += 1

    def _count(
        self, state: VmProcessState, row: EventAlertRow, subject: str, time_ns: int, limit: int, seconds: float
    ) -> int:
        """Count an event. Return the number of such events in the last `seconds`, at most `limit`.

        Return 0 if too many subjects are counted.
        """
        counted, key = state.conditions.events, (row.alert, subject)
        if key not in counted and len(counted) >= MAX_INSTANCES:
            self._store.suppressed += 1
            return 0
        recent = [each for each in counted.get(key, ()) if abs(time_ns - each) < seconds * 1e9]
        counted[key] = [*recent, time_ns][-limit:]
        return len(counted[key])

    def _to_alert(
        self, state: VmProcessState, row: EventAlertRow, event: Record, subject: str, count: int, now_ns: int
    ) -> Alert:
        qemu: Mapping[str, Any] = event.data["qemu"]
        data: dict[str, Any] = {"help": row.help, "event": row.match.event}
        data |= {"count": count} if row.limit is not None else {}
        for name in row.copied_fields:
            if isinstance(value := qemu.get(name), bool | int | float | str):
                data[name] = sanitize(value) if isinstance(value, str) else value
        until_ns = now_ns + int(row.lasts * 1e9) if row.lasts is not None else 0
        attributes = {"until_ns": until_ns, "custom": row.custom}
        return state.alert(row.alert, subject, row.severity, event.time_ns, data, **attributes)

    def _resolve(
        self, state: VmProcessState, row: EventAlertRow, name: str, subject: str, time_ns: int
    ) -> Iterator[Record]:
        """Resolve the row's alert of this subject, or drop it if it waits to fire. Keep an alert that began after the event.

        An event about the VM as a whole resolves the alerts of all subjects.
        """
        pending = self._pending.get(state.owner, {})
        for key, event in list(pending.items()):
            if key[0] == row.alert and subject in ("", key[1]) and event.alert.since_ns <= time_ns:
                del pending[key]
        ended = [
            alert
            for alert in self._store.alerts_of_owner(state.owner)
            if alert.name == row.alert and subject in ("", alert.subject) and alert.seen_ns <= time_ns
        ]
        yield from self._store.resolve(ended, time_ns, name)

    def on_tick(self, now_ns: int) -> Iterator[Record]:
        """Fire the alerts that are due and that no other event has resolved. Drop the events of detached VMs."""
        for owner, pending in list(self._pending.items()):
            for key, event in list(pending.items()):
                if event.state.gone_at is not None or now_ns >= event.due_ns:
                    del pending[key]
                if event.state.gone_at is None and now_ns >= event.due_ns:
                    yield from self._store.fire(event.alert)
            if not pending:
                del self._pending[owner]
