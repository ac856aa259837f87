"""Evaluates the alert rules on samples. Pure.

An alert fires when its condition has held for long enough, and is resolved when the condition ends. Only a poll changes an alert, because
the value is unknown between two polls. A field that is absent from a sample neither fires nor resolves an alert.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from agent.alerts.pool_usage import PoolUsage
from agent.alerts.rules.comparison import Operator, check_all, compare, with_hysteresis
from agent.alerts.rules.derived_samples import SampleDerivation, VmRuleState, all_sample_derivations
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.rules.rule_types import SampleAlertRule
from agent.alerts.rules.snapshot_ages import ExternalSnapshotAges
from agent.alerts.store import Alert, AlertStore
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm, sanitize

MAX_RULE_SUBJECTS = 256
"""Maximum number of subjects of one VM whose conditions are stored between two polls. A malicious QEMU may report any number of names."""

PoolsOfDisk = Callable[[Vm, str], Iterable[PoolUsage]]
"""Returns the pools that have images of a VM's disk."""


class SampleRuleEvaluator:
    """Evaluates the alert rules on samples, for all VMs.

    Attributes:
        overrides: The config's overrides of the rules.
        families: The families that the rules use. Pass only samples of these families to `on_samples`.
        ages: The ages of external snapshots.
        pools_of_disk: Returns the pools that have images of a VM's disk.
    """

    def __init__(self, store: AlertStore, rules: Iterable[SampleAlertRule], overrides: AlertOverrides) -> None:
        self.overrides = overrides
        self.ages = ExternalSnapshotAges()
        self.pools_of_disk: PoolsOfDisk = lambda _vm, _disk: ()
        self.families: frozenset[Family] = frozenset()
        self._store = store
        self._derivations = all_sample_derivations(self.ages)
        self._rules: dict[Family, tuple[SampleAlertRule, ...]] = {}
        # By the family whose poll triggers the derivations.
        self._derivations_after: dict[Family, tuple[SampleDerivation, ...]] = {}
        self._further_sources: frozenset[Family] = frozenset()  # families whose last values the derivations need
        # The compared fields of families whose rules compare counters only.
        self._counter_fields: dict[Family, tuple[str, ...]] = {}
        self._rule_set_number = 0
        self.set_rules(rules)

    def set_rules(self, rules: Iterable[SampleAlertRule]) -> None:
        """Replace the rules, from the next poll on."""
        self._rule_set_number += 1
        by_family: dict[Family, tuple[SampleAlertRule, ...]] = {}
        for rule in rules:
            by_family[rule.family] = (*by_family.get(rule.family, ()), rule)
        self._rules = by_family
        needed = [derivation for derivation in self._derivations if derivation.family in by_family]
        self._derivations_after = {
            source: tuple(derivation for derivation in needed if derivation.sources[0] is source)
            for source in {derivation.sources[0] for derivation in needed}
        }
        self._further_sources = frozenset(family for derivation in needed for family in derivation.sources[1:])
        self.families = frozenset({*by_family, *self._derivations_after, *self._further_sources})
        self._counter_fields = {
            family: tuple(rule.field for rule in of_family)
            for family, of_family in by_family.items()
            if all(rule.operator is Operator.INCREASES and not rule.where for rule in of_family)
            and family not in {*self._derivations_after, *self._further_sources}
        }

    def on_samples(
        self, state: VmProcessState, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        """Evaluate the rules after a poll. `samples` are all samples of these families."""
        for family in families:
            if family not in self.families:
                continue
            own = [sample for sample in samples if sample.family is family]
            if self._has_equal_counters(state, family, own):
                continue  # A fast path, because most polls change no counter.
            if family in self._further_sources:
                state.rule_state.latest[family] = own[0].values if own else {}
            yield from self._evaluate_family(state, family, own, time_ns)
            for derivation in self._derivations_after.get(family, ()):
                derived = list(derivation.derive(state.vm.uuid, state.rule_state, own, time_ns))
                yield from self._evaluate_family(state, derivation.family, derived, time_ns)

    def _has_equal_counters(self, state: VmProcessState, family: Family, samples: Sequence[Sample]) -> bool:
        """Return whether the rules compare only counters of the family, and no counter has changed since the previous poll."""
        fields = self._counter_fields.get(family)
        if fields is None:
            return False
        values = [(sample.labels, [sample.values.get(field) for field in fields]) for sample in samples]
        counted = (self._rule_set_number, values)
        if state.rule_state.counters.get(family) == counted:
            return True
        state.rule_state.counters[family] = counted
        return False

    def _evaluate_family(
        self, state: VmProcessState, family: Family, samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        for rule in self._rules.get(family, ()):
            yield from self._evaluate_rule(state, rule, samples, time_ns)

    def _evaluate_rule(
        self, state: VmProcessState, rule: SampleAlertRule, samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        firing = self._firing_alerts(state, rule)
        polled_keys = set()
        for sample in samples:
            subject, level = key = rule.key_of(sample)
            if not rule.applies_to(state.vm, subject) or (rule.where and not rule.matches_labels(sample)):
                continue
            polled_keys.add(key)
            pools = self._pools_with_alert(state, rule, subject)
            if pools or (rule.unless and self._fires(state.owner, rule.unless)):
                if pools and self._would_fire(state, rule, sample, firing.get(key)):
                    for pool in pools:
                        pool.has_stalled_disk = True
                state.rule_state.pending.pop((rule.alert, *key), None)
                if (alert := firing.get(key)) is not None and time_ns >= alert.seen_ns:
                    yield from self._store.resolve([alert], time_ns, "covered")
                continue
            holds = self._condition_holds(state, rule, sample, is_firing=firing.get(key) is not None)
            yield from self._fire_or_resolve(state, rule, sample, firing.get((subject, level)), time_ns, holds=holds)
        if rule.resolve_after_seconds is None and firing:
            alerts_without_subject = [alert for key, alert in firing.items() if key not in polled_keys]
            yield from self._store.resolve(alerts_without_subject, time_ns, "subject_gone")
        _remove_absent_subjects(state.rule_state, rule.alert, polled_keys)

    def _firing_alerts(self, state: VmProcessState, rule: SampleAlertRule) -> dict[tuple[str, str], Alert]:
        """Return the firing and muted alerts of a rule by subject and level."""
        if state.owner not in self._store:
            return {}
        alerts = self._store.alerts_of_owner(state.owner)
        return {(alert.subject, alert.level): alert for alert in alerts if alert.name == rule.alert}

    def _pools_with_alert(self, state: VmProcessState, rule: SampleAlertRule, subject: str) -> list[PoolUsage]:
        """Return the pools of a disk for which the rule's alert `unless_pool` fires."""
        pools = self.pools_of_disk(state.vm, subject) if rule.unless_pool else ()
        return [pool for pool in pools if self._fires(pool.owner, rule.unless_pool, pool.name)]

    def _fires(self, owner: int, name: str, subject: str = "") -> bool:
        """Return whether an alert of a process or a pool fires. A muted alert does not fire."""
        alert = self._store.find(owner, name, subject)
        return alert is not None and not alert.muted

    def _would_fire(self, state: VmProcessState, rule: SampleAlertRule, sample: Sample, firing: Alert | None) -> bool:
        """Return whether the rule's alert would fire for a sample if no pool alert reported the same cause."""
        override = self.overrides.find(rule.alert, state.vm, rule.key_of(sample)[0])
        is_off = override is not None and not override.enabled
        return not is_off and self._condition_holds(state, rule, sample, is_firing=firing is not None) is True

    def _condition_holds(
        self, state: VmProcessState, rule: SampleAlertRule, sample: Sample, *, is_firing: bool
    ) -> bool | None:
        """Return whether the rule's condition holds for a sample; None if that is unknown."""
        data = sample.data if rule.where or rule.field not in sample.values else sample.values
        tests_pass = check_all(rule.where, data)
        if tests_pass is False:
            return False
        value = data.get(rule.field)
        if rule.operator is Operator.INCREASES:
            return self._has_increased(state, rule, sample, value) if tests_pass else None
        limit = rule.value
        if rule.limit is not None:
            limit = self.overrides.limit_of_rule(rule, state.vm, rule.key_of(sample)[0])
        if is_firing and rule.resolve_at is not None:
            limit = rule.resolve_at
        elif is_firing and rule.hysteresis:
            limit = with_hysteresis(rule.operator, limit, rule.hysteresis)
        holds = compare(value, rule.operator, limit)
        return holds if holds is False else None if tests_pass is None else holds

    def _has_increased(
        self, state: VmProcessState, rule: SampleAlertRule, sample: Sample, value: object
    ) -> bool | None:
        """Return whether a counter is higher than at the previous poll; None without a previous poll.

        A counter that restarted at 0 did not increase.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        key = (rule.alert, *rule.key_of(sample))
        previous = state.rule_state.previous
        if key not in previous and len(previous) >= MAX_RULE_SUBJECTS:
            self._store.suppressed += 1
            return None
        previous_value, previous[key] = previous.get(key), value
        return value > previous_value if previous_value is not None else None

    def _fire_or_resolve(
        self,
        state: VmProcessState,
        rule: SampleAlertRule,
        sample: Sample,
        firing: Alert | None,
        time_ns: int,
        *,
        holds: bool | None,
    ) -> Iterator[Record]:
        """Fire or resolve the alert of one subject. `holds` is whether the condition holds; None (unknown) changes nothing."""
        subject, level = rule.key_of(sample)
        pending, key = state.rule_state.pending, (rule.alert, subject, level)
        if holds is None:
            return
        if not holds:
            pending.pop(key, None)
            if (
                firing is not None
                and rule.resolve_after_seconds is None
                and rule.resolved_when_false
                and time_ns >= firing.seen_ns
            ):
                yield from self._store.resolve([firing], time_ns, "condition")
            return
        seconds = self.overrides.min_duration_seconds_of_alert(rule.alert, state.vm, subject, rule.seconds)
        if seconds and firing is None:
            if key not in pending and len(pending) >= MAX_RULE_SUBJECTS:
                self._store.suppressed += 1
                return
            pending[key] = since_ns = min(pending.get(key, time_ns), time_ns)  # the clock may have been set back
            if time_ns - since_ns < seconds * 1e9:
                return
            pending.pop(key)
        yield from self._store.fire(self._to_alert(state, rule, sample, time_ns))

    def _to_alert(self, state: VmProcessState, rule: SampleAlertRule, sample: Sample, time_ns: int) -> Alert:
        subject, level = rule.key_of(sample)
        values = sample.data
        data: dict[str, Any] = {
            "help": rule.help,
            **dict(zip(sample.family.labels[1:], sample.labels[1:], strict=True)),
        }
        for name in (rule.field, *rule.copied_fields):
            if isinstance(value := values.get(name), bool | int | float | str):
                data[name] = sanitize(value) if isinstance(value, str) else value
        until_ns = time_ns + int(rule.resolve_after_seconds * 1e9) if rule.resolve_after_seconds is not None else 0
        return state.build_alert(
            rule.alert, subject, rule.severity, time_ns, data, level=level, until_ns=until_ns, custom=rule.custom
        )


def _remove_absent_subjects(rule_state: VmRuleState, alert: str, polled_keys: Collection[tuple[str, str]]) -> None:
    """Remove an alert's stored values of subjects that are missing in a poll."""
    for values_by_key in (rule_state.pending, rule_state.previous):
        if values_by_key:
            for key in [key for key in values_by_key if key[0] == alert and key[1:] not in polled_keys]:
                del values_by_key[key]
