"""Evaluates the alert rules on events: one or several events fire an alert, and other events resolve the alert. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.alerts.rules.comparison import check_all
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.rules.rule_types import EventAlertRule, EventMatch
from agent.alerts.rules.sample_rule_evaluator import MAX_RULE_SUBJECTS
from agent.alerts.store import Alert, AlertStore
from agent.model.record import Record, sanitize


@dataclass(frozen=True, slots=True)
class DelayedAlert:
    """An alert that fires at `due_ns`, unless an event resolves the alert earlier.

    Attributes:
        state: State of the VM's process.
        alert: The alert.
        due_ns: When the alert fires, in nanoseconds since the epoch.
    """

    state: VmProcessState
    alert: Alert
    due_ns: int


class EventRuleEvaluator:
    """Evaluates the alert rules on events, for all VMs.

    Attributes:
        overrides: The config's overrides of the rules.
        event_names: Names of the events that the rules use. Pass only these events to `on_event`.
    """

    def __init__(self, store: AlertStore, rules: Iterable[EventAlertRule], overrides: AlertOverrides) -> None:
        self.overrides = overrides
        self.event_names: frozenset[str] = frozenset()
        self._store = store
        self._rules: dict[str, list[EventAlertRule]] = {}
        self._resolving: dict[str, list[tuple[EventMatch, EventAlertRule]]] = {}
        self._delayed: dict[int, dict[tuple[str, str], DelayedAlert]] = {}  # by process, alert and subject
        self.set_rules(rules)

    def set_rules(self, rules: Iterable[EventAlertRule]) -> None:
        """Replace the rules, from the next event on."""
        self._rules, self._resolving = {}, {}
        for rule in rules:
            self._rules.setdefault(rule.match.event, []).append(rule)
            for match in rule.resolved_by:
                self._resolving.setdefault(match.event, []).append((match, rule))
        self.event_names = frozenset({*self._rules, *self._resolving})

    def on_event(self, state: VmProcessState, event: Record, name: str, subject: str, now_ns: int) -> Iterator[Record]:
        """Fire and resolve alerts after an event.

        Args:
            state: State of the VM's process.
            event: The event's record.
            name: The event's name in QEMU.
            subject: The disk, job or other device of the event, by its stable name; empty for the VM as a whole.
            now_ns: The current time in nanoseconds since the epoch.
        """
        data = event.data["qemu"]
        for match, rule in self._resolving.get(name, ()):
            if check_all(match.where, data) is True:
                yield from self._resolve(state, rule, name, subject, event.time_ns)
        for rule in self._rules.get(name, ()):
            if check_all(rule.match.where, data) is True and rule.applies_to(state.vm, subject):
                yield from self._on_match(state, rule, event, subject, now_ns)

    def _on_match(
        self, state: VmProcessState, rule: EventAlertRule, event: Record, subject: str, now_ns: int
    ) -> Iterator[Record]:
        seconds = self.overrides.min_duration_seconds_of_alert(rule.alert, state.vm, subject, rule.seconds)
        count = 1
        if rule.limit is not None:
            limit = max(1.0, self.overrides.limit_of_rule(rule, state.vm, subject))
            count = self._count_event(state, rule, subject, event.time_ns, int(limit), seconds)
            if count < limit:
                return
        delay_ns = int(seconds * 1e9) if rule.limit is None else 0
        alert = self._to_alert(state, rule, event, subject, count, now_ns + delay_ns)
        if not delay_ns:
            yield from self._store.fire(alert)
            return
        delayed, key = self._delayed.setdefault(state.owner, {}), (rule.alert, subject)
        if key in delayed or len(delayed) < MAX_RULE_SUBJECTS:
            delayed.setdefault(key, DelayedAlert(state, alert, event.time_ns + delay_ns))
        else:
            self._store.suppressed += 1

    def _count_event(
        self, state: VmProcessState, rule: EventAlertRule, subject: str, time_ns: int, limit: int, seconds: float
    ) -> int:
        """Count an event of a rule and a subject. Return the number of these events in the last `seconds`, at most `limit`.

        Return 0 if the events of MAX_RULE_SUBJECTS other subjects are counted already.
        """
        counted, key = state.rule_state.events, (rule.alert, subject)
        if key not in counted and len(counted) >= MAX_RULE_SUBJECTS:
            self._store.suppressed += 1
            return 0
        recent = [each for each in counted.get(key, ()) if abs(time_ns - each) < seconds * 1e9]
        counted[key] = [*recent, time_ns][-limit:]
        return len(counted[key])

    def _to_alert(
        self, state: VmProcessState, rule: EventAlertRule, event: Record, subject: str, count: int, fires_ns: int
    ) -> Alert:
        qemu: Mapping[str, Any] = event.data["qemu"]
        data: dict[str, Any] = {"help": rule.help, "event": rule.match.event}
        data |= {"count": count} if rule.limit is not None else {}
        for name in rule.copied_fields:
            if isinstance(value := qemu.get(name), bool | int | float | str):
                data[name] = sanitize(value) if isinstance(value, str) else value
        until_ns = fires_ns + int(rule.resolve_after_seconds * 1e9) if rule.resolve_after_seconds is not None else 0
        attributes = {"until_ns": until_ns, "custom": rule.custom}
        return state.build_alert(rule.alert, subject, rule.severity, event.time_ns, data, **attributes)

    def _resolve(
        self, state: VmProcessState, rule: EventAlertRule, name: str, subject: str, time_ns: int
    ) -> Iterator[Record]:
        """Resolve the rule's firing or delayed alert of this subject. Keep an alert that began after the event.

        An event about the VM as a whole resolves the alerts of all subjects.
        """
        delayed = self._delayed.get(state.owner, {})
        for key, waiting in list(delayed.items()):
            if key[0] == rule.alert and subject in ("", key[1]) and waiting.alert.since_ns <= time_ns:
                del delayed[key]
        ended = [
            alert
            for alert in self._store.alerts_of_owner(state.owner)
            if alert.name == rule.alert and subject in ("", alert.subject) and alert.seen_ns <= time_ns
        ]
        yield from self._store.resolve(ended, time_ns, name)

    def on_tick(self, now_ns: int) -> Iterator[Record]:
        """Fire the delayed alerts that are due. Drop the delayed alerts of detached VMs."""
        for owner, delayed in list(self._delayed.items()):
            for key, waiting in list(delayed.items()):
                if waiting.state.detached_at is not None or now_ns >= waiting.due_ns:
                    del delayed[key]
                if waiting.state.detached_at is None and now_ns >= waiting.due_ns:
                    yield from self._store.fire(waiting.alert)
            if not delayed:
                del self._delayed[owner]
