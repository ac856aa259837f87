"""The alerts of all tables and the custom alerts, with the changes that the config makes to them. Pure: it returns records."""

from collections.abc import Collection, Iterator, Sequence

from agent.alerts.conditions.event_alert_table import EVENT_ALERT_ROWS
from agent.alerts.conditions.event_conditions import EventConditions
from agent.alerts.conditions.rows import EventAlertRow, SampleAlertRow
from agent.alerts.conditions.sample_alert_table import SAMPLE_ALERT_ROWS
from agent.alerts.conditions.sample_conditions import SampleConditions
from agent.alerts.overrides import AlertOverrides
from agent.alerts.process_state import VmProcessState
from agent.alerts.store import AlertStore
from agent.model.family import Family, Sample
from agent.model.record import Record


class ConditionAlerts:
    """The rows on samples and on events, for all VMs.

    Attributes:
        overrides: The config's overrides of alerts.
        samples: The rows on samples.
        events: The rows on events.
    """

    def __init__(self, store: AlertStore) -> None:
        self.overrides = AlertOverrides()
        self.samples = SampleConditions(store, SAMPLE_ALERT_ROWS, self.overrides)
        self.events = EventConditions(store, EVENT_ALERT_ROWS, self.overrides)
        self._store = store
        self._custom: frozenset[str] = frozenset()
        self._is_store_checked = False

    def configure(self, overrides: AlertOverrides, custom: Sequence[SampleAlertRow | EventAlertRow]) -> None:
        """Use a config's changes to alerts and its custom alerts, from the next tick on."""
        self.overrides = self.samples.overrides = self.events.overrides = overrides
        self._store.adjust = overrides.adjust
        self._custom = frozenset(row.alert for row in custom)
        self.samples.set_rows((*SAMPLE_ALERT_ROWS, *(row for row in custom if isinstance(row, SampleAlertRow))))
        self.events.set_rows((*EVENT_ALERT_ROWS, *(row for row in custom if isinstance(row, EventAlertRow))))
        self._is_store_checked = False

    def on_samples(
        self, state: VmProcessState, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        """Handle a poll of an active VM. Ignore an inactive VM, such as the destination of a migration: the source has the same disks."""
        if state.is_active:
            yield from self.samples.on_samples(state, families, samples, time_ns)

    def on_tick(self, now_ns: int) -> Iterator[Record]:
        """Fire the event alerts whose waiting time is over. After a new config, apply its overrides to the alerts that already fire."""
        yield from self.events.on_tick(now_ns)
        if not self._is_store_checked:
            self._is_store_checked = True
            # Skip alerts of pools, which have no UUID. They change at the next reading of the pool.
            alerts = [alert for alert in self._store.all_including_muted() if alert.vm.uuid]
            removed = [alert for alert in alerts if alert.custom and alert.name not in self._custom]
            yield from self._store.resolve(removed, now_ns, "rule_gone")
            yield from self._store.apply_overrides((alert for alert in alerts if alert not in removed), now_ns)
