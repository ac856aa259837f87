"""Evaluates the built-in and custom alert rules on samples and events. Applies the config's overrides. Pure: the result is records."""

from collections.abc import Collection, Iterator, Sequence

from agent.alerts.rules.event_rule_evaluator import EventRuleEvaluator
from agent.alerts.rules.event_rules import EVENT_ALERT_RULES
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.rules.rule_types import EventAlertRule, SampleAlertRule
from agent.alerts.rules.sample_rule_evaluator import SampleRuleEvaluator
from agent.alerts.rules.sample_rules import SAMPLE_ALERT_RULES
from agent.alerts.store import AlertStore
from agent.model.family import Family, Sample
from agent.model.record import Record


class RuleEvaluator:
    """Evaluates the alert rules on samples and events, for all VMs.

    Attributes:
        overrides: The config's overrides of alerts.
        samples: Evaluates the rules on samples.
        events: Evaluates the rules on events.
    """

    def __init__(self, store: AlertStore) -> None:
        self.overrides = AlertOverrides()
        self.samples = SampleRuleEvaluator(store, SAMPLE_ALERT_RULES, self.overrides)
        self.events = EventRuleEvaluator(store, EVENT_ALERT_RULES, self.overrides)
        self._store = store
        self._custom: frozenset[str] = frozenset()
        self._are_overrides_applied = False

    def configure(self, overrides: AlertOverrides, custom: Sequence[SampleAlertRule | EventAlertRule]) -> None:
        """Replace the overrides and the custom alerts. The next `on_tick` applies the overrides to the alerts that already fire."""
        self.overrides = self.samples.overrides = self.events.overrides = overrides
        self._store.apply_override = overrides.override_severity_or_mute
        self._custom = frozenset(rule.alert for rule in custom)
        self.samples.set_rules((*SAMPLE_ALERT_RULES, *(rule for rule in custom if isinstance(rule, SampleAlertRule))))
        self.events.set_rules((*EVENT_ALERT_RULES, *(rule for rule in custom if isinstance(rule, EventAlertRule))))
        self._are_overrides_applied = False

    def on_samples(
        self, state: VmProcessState, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        """Evaluate the rules on the samples of a poll of a VM's process.

        Ignore a process that is not active. The destination of a migration is not active, because the source has the same disks.
        """
        if state.is_active:
            yield from self.samples.on_samples(state, families, samples, time_ns)

    def on_tick(self, now_ns: int) -> Iterator[Record]:
        """Fire the delayed event alerts that are due. After a config reload, apply the new overrides to the firing alerts."""
        yield from self.events.on_tick(now_ns)
        if not self._are_overrides_applied:
            self._are_overrides_applied = True
            # Skip alerts of pools, which have no UUID. The next reading of the pool applies the overrides to its alerts.
            alerts = [alert for alert in self._store.all_including_muted() if alert.vm.uuid]
            removed = [alert for alert in alerts if alert.custom and alert.name not in self._custom]
            yield from self._store.resolve(removed, now_ns, "rule_gone")
            yield from self._store.apply_overrides((alert for alert in alerts if alert not in removed), now_ns)
