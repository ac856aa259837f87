"""Evaluates the rows on samples. An alert fires when its condition has held for long enough, and is resolved when the condition ends. Pure.

Only a poll changes an alert. Between polls the value is unknown. A field that is absent from a sample
neither fires nor resolves an alert.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from agent.alerts.conditions.comparison import Operator, check_all, compare, with_hysteresis
from agent.alerts.conditions.derived import Derivation, VmConditionState, derivations
from agent.alerts.conditions.rows import SampleAlertRow
from agent.alerts.conditions.snapshot_ages import SnapshotAges
from agent.alerts.overrides import AlertOverrides
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.process_state import VmProcessState
from agent.alerts.store import Alert, AlertStore
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm, sanitize

MAX_INSTANCES = 256
"""Maximum number of subjects of one VM whose conditions are stored between two polls. A QEMU chooses the names of its devices."""

PoolsOfDisk = Callable[[Vm, str], Iterable[PoolUsage]]
"""Returns the pools that have images of a VM's disk."""


class SampleConditions:
    """The rows on samples, for all VMs.

    Attributes:
        overrides: The config's overrides of the rows.
        families: The families that the rows use. Pass only samples of these families to `on_samples`.
        ages: The ages of external snapshots.
        pools_of_disk: Returns the pools that have images of a VM's disk.
    """

    def __init__(self, store: AlertStore, rows: Iterable[SampleAlertRow], overrides: AlertOverrides) -> None:
        self.overrides = overrides
        self.ages = SnapshotAges()
        self.pools_of_disk: PoolsOfDisk = lambda _vm, _disk: ()
        self.families: frozenset[Family] = frozenset()
        self._store = store
        self._derivations = derivations(self.ages)
        self._rows: dict[Family, tuple[SampleAlertRow, ...]] = {}
        self._derived: dict[Family, tuple[Derivation, ...]] = {}
        self._latest: frozenset[Family] = frozenset()
        self._counters: dict[
            Family, tuple[str, ...]
        ] = {}  # the compared fields of families whose rows compare counters only
        self._generation = 0
        self.set_rows(rows)

    def set_rows(self, rows: Iterable[SampleAlertRow]) -> None:
        """Replace the rows, from the next poll on."""
        self._generation += 1
        by_family: dict[Family, tuple[SampleAlertRow, ...]] = {}
        for row in rows:
            by_family[row.family] = (*by_family.get(row.family, ()), row)
        self._rows = by_family
        needed = [derivation for derivation in self._derivations if derivation.family in by_family]
        self._derived = {
            source: tuple(derivation for derivation in needed if derivation.sources[0] is source)
            for source in {derivation.sources[0] for derivation in needed}
        }
        self._latest = frozenset(family for derivation in needed for family in derivation.sources[1:])
        self.families = frozenset({*by_family, *self._derived, *self._latest})
        self._counters = {
            family: tuple(row.field for row in of_family)
            for family, of_family in by_family.items()
            if all(row.operator is Operator.INCREASES and not row.where for row in of_family)
            and family not in {*self._derived, *self._latest}
        }

    def on_samples(
        self, state: VmProcessState, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        """Handle a poll: all samples of these families."""
        for family in families:
            if family not in self.families:
                continue
            own = [sample for sample in samples if sample.family is family]
            if self._has_equal_counters(state, family, own):
                continue  # A fast path, because most polls change no counter.
            if family in self._latest:
                state.conditions.latest[family] = own[0].values if own else {}
            yield from self._evaluate_family(state, family, own, time_ns)
            for derivation in self._derived.get(family, ()):
                derived = list(derivation.derive(state.vm.uuid, state.conditions, own, time_ns))
                yield from self._evaluate_family(state, derivation.family, derived, time_ns)

    def _has_equal_counters(self, state: VmProcessState, family: Family, samples: Sequence[Sample]) -> bool:
        """Return whether the rows compare only counters of the family, and no counter has changed since the previous poll."""
        fields = self._counters.get(family)
        if fields is None:
            return False
        values = [(sample.labels, [sample.values.get(field) for field in fields]) for sample in samples]
        counted = (self._generation, values)
        if state.conditions.counters.get(family) == counted:
            return True
        state.conditions.counters[family] = counted
        return False

    def _evaluate_family(
        self, state: VmProcessState, family: Family, samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        for row in self._rows.get(family, ()):
            yield from self._evaluate_row(state, row, samples, time_ns)

    def _evaluate_row(
        self, state: VmProcessState, row: SampleAlertRow, samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        firing = self._firing_alerts(state, row)
        polled_keys = set()
        for sample in samples:
            subject, level = key = row.key_of(sample)
            if not row.covers(state.vm, subject) or (row.where and not row.selects(sample)):
                continue
            polled_keys.add(key)
            pools = self._silent_pools(state, row, subject)
            if pools or (row.unless and self._store.find(state.owner, row.unless) is not None):
                if pools and self._would_fire(state, row, sample, firing.get(key)):
                    for pool in pools:
                        pool.guests_stand_still = True
                state.conditions.pending.pop((row.alert, *key), None)
                if (alert := firing.get(key)) is not None and time_ns >= alert.seen_ns:
                    yield from self._store.resolve([alert], time_ns, "covered")
                continue
            holds = self._condition_holds(state, row, sample, is_firing=firing.get(key) is not None)
            yield from self._fire_or_resolve(state, row, sample, firing.get((subject, level)), time_ns, holds=holds)
        if row.lasts is None and firing:
            alerts_without_subject = [alert for key, alert in firing.items() if key not in polled_keys]
            yield from self._store.resolve(alerts_without_subject, time_ns, "subject_gone")
        _remove_absent_subjects(state.conditions, row.alert, polled_keys)

    def _firing_alerts(self, state: VmProcessState, row: SampleAlertRow) -> dict[tuple[str, str], Alert]:
        """Return the row's firing alerts by subject and level."""
        if state.owner not in self._store:
            return {}
        alerts = self._store.alerts_of_owner(state.owner)
        return {(alert.subject, alert.level): alert for alert in alerts if alert.name == row.alert}

    def _silent_pools(self, state: VmProcessState, row: SampleAlertRow, subject: str) -> list[PoolUsage]:
        """Return the pools of a disk whose firing alert reports the cause of the row's alert."""
        pools = self.pools_of_disk(state.vm, subject) if row.unless_pool else ()
        found = ((pool, self._store.find(pool.owner, row.unless_pool, pool.name)) for pool in pools)
        return [pool for pool, alert in found if alert is not None and not alert.muted]

    def _would_fire(self, state: VmProcessState, row: SampleAlertRow, sample: Sample, firing: Alert | None) -> bool:
        """Return whether the row's alert would fire for a sample if no alert of a pool reported its cause."""
        override = self.overrides.find(row.alert, state.vm, row.key_of(sample)[0])
        is_off = override is not None and not override.enabled
        return not is_off and self._condition_holds(state, row, sample, is_firing=firing is not None) is True

    def _condition_holds(
        self, state: VmProcessState, row: SampleAlertRow, sample: Sample, *, is_firing: bool
    ) -> bool | None:
        """Return whether the row's condition holds for a sample; None if that is unknown."""
        data = sample.data if row.where or row.field not in sample.values else sample.values
        tests_pass = check_all(row.where, data)
        if tests_pass is False:
            return False
        value = data.get(row.field)
        if row.operator is Operator.INCREASES:
            return self._check_increase(state, row, sample, value) if tests_pass else None
        limit = row.value
        if row.limit is not None:
            limit = self.overrides.limit_of(row, state.vm, row.key_of(sample)[0])
        if is_firing and row.resolve_at is not None:
            limit = row.resolve_at
        elif is_firing and row.hysteresis:
            limit = with_hysteresis(row.operator, limit, row.hysteresis)
        holds = compare(value, row.operator, limit)
        return holds if holds is False else None if tests_pass is None else holds

    def _check_increase(self, state: VmProcessState, row: SampleAlertRow, sample: Sample, value: object) -> bool | None:
        """Return whether a counter is higher than at the previous poll; None without a previous poll.

        A counter that restarted at 0 did not increase.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        key = (row.alert, *row.key_of(sample))
        previous = state.conditions.previous
        if key not in previous and len(previous) >= MAX_INSTANCES:
            self._store.suppressed += 1
            return None
        previous_value, previous[key] = previous.get(key), value
        return value > previous_value if previous_value is not None else None

    def _fire_or_resolve(
        self,
        state: VmProcessState,
        row: SampleAlertRow,
        sample: Sample,
        firing: Alert | None,
        time_ns: int,
        *,
        holds: bool | None,
    ) -> Iterator[Record]:
        """Fire or resolve the alert of one subject. `holds` is whether its condition holds. If it is None, the alert does not change."""
        subject, level = row.key_of(sample)
        pending, key = state.conditions.pending, (row.alert, subject, level)
        if holds is None:
            return
        if not holds:
            pending.pop(key, None)
            if firing is not None and row.lasts is None and row.resolved_when_false and time_ns >= firing.seen_ns:
                yield from self._store.resolve([firing], time_ns, "condition")
            return
        seconds = self.overrides.seconds_of(row.alert, state.vm, subject, row.seconds)
        if seconds and firing is None:
            if key not in pending and len(pending) >= MAX_INSTANCES:
                self._store.suppressed += 1
                return
            pending[key] = since_ns = min(pending.get(key, time_ns), time_ns)  # the clock may have been set back
            if time_ns - since_ns < seconds * 1e9:
                return
            pending.pop(key)
        yield from self._store.fire(self._to_alert(state, row, sample, time_ns))

    def _to_alert(self, state: VmProcessState, row: SampleAlertRow, sample: Sample, time_ns: int) -> Alert:
        subject, level = row.key_of(sample)
        values = sample.data
        data: dict[str, Any] = {"help": row.help, **dict(zip(sample.family.labels[1:], sample.labels[1:], strict=True))}
        for name in (row.field, *row.copied_fields):
            if isinstance(value := values.get(name), bool | int | float | str):
                data[name] = sanitize(value) if isinstance(value, str) else value
        until_ns = time_ns + int(row.lasts * 1e9) if row.lasts is not None else 0
        return state.alert(
            row.alert, subject, row.severity, time_ns, data, level=level, until_ns=until_ns, custom=row.custom
        )


def _remove_absent_subjects(conditions: VmConditionState, alert: str, polled_keys: Collection[tuple[str, str]]) -> None:
    """Remove the state of subjects that are missing in a poll."""
    for values_by_key in (conditions.pending, conditions.previous):
        if values_by_key:
            for key in [key for key in values_by_key if key[0] == alert and key[1:] not in polled_keys]:
                del values_by_key[key]
