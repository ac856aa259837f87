"""Guest-agent alerts: full file systems, frozen file systems and a wrong clock in the guest, and a lost guest agent. Pure.

A guest can report false values, because the guest agent runs in the guest. The loss of the guest agent resolves no alert.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from agent.alerts.disk_levels import levels_as_used_bytes
from agent.alerts.failure_rules import (
    GUEST_AGENT_LOST_HELP,
    GUEST_AGENT_LOST_SECONDS,
    GUEST_CLOCK_HELP,
    GUEST_FILESYSTEM_HELP,
    GUEST_FROZEN_HELP,
)
from agent.alerts.guest_policy import GuestAlertPolicy
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.store import Alert, AlertStore
from agent.model.family import Family, Sample
from agent.model.metrics.guest import GUEST_AGENT_SESSION, GUEST_CLOCK, GUEST_FILESYSTEM, GUEST_FREEZE
from agent.model.record import Record, Severity

FILESYSTEM_ALERT = "guest_filesystem_space"
LOST_ALERT = "guest_agent_lost"
FROZEN_ALERT = "guest_frozen"
CLOCK_ALERT = "guest_clock_offset"

CLOCK_POLLS = 2
"""Number of consecutive polls that must show a wrong clock before the alert fires. A guest corrects its clock some time after a pause."""


class GuestAlerts:
    """The guest-agent alerts of all VMs.

    Attributes:
        policy: The levels of file systems, and the limits of freezes and clock offsets.
        overrides: The config's overrides of alerts.
    """

    def __init__(self, store: AlertStore, policy: GuestAlertPolicy | None = None) -> None:
        self.policy = policy or GuestAlertPolicy()
        self.overrides = AlertOverrides()
        self._store = store

    def _resolve_by_name(
        self, state: VmProcessState, name: str, time_ns: int, reason: str, data: Mapping[str, Any] | None = None
    ) -> Iterator[Record]:
        known = self._store.find(state.owner, name)
        return self._store.resolve([known] if known is not None else [], time_ns, reason, data)

    # Whether the guest agent responds.

    def on_channel(self, state: VmProcessState, time_ns: int, *, connected: bool) -> Iterator[Record]:
        """Handle a poll of the guest agent's channel. `connected` is whether a program in the guest has opened the channel."""
        guest = state.guest
        if connected:
            guest.had_agent, guest.agent_lost_ns = True, 0
            if not guest.agent_unresponsive_ns:
                yield from self._resolve_by_name(state, LOST_ALERT, time_ns, "connected")
        elif guest.had_agent and not guest.agent_lost_ns:
            guest.agent_lost_ns = time_ns

    def _on_session(self, state: VmProcessState, session: str, time_ns: int) -> Iterator[Record]:
        """Handle the state of the session with the guest agent: `up`, `unresponsive` or `absent`. Other states change nothing."""
        guest = state.guest
        if session == "unresponsive":
            guest.agent_unresponsive_ns = guest.agent_unresponsive_ns or time_ns
        elif session == "up":
            guest.agent_unresponsive_ns = 0
            if not guest.agent_lost_ns:
                yield from self._resolve_by_name(state, LOST_ALERT, time_ns, "connected")
        elif session == "absent":
            guest.agent_unresponsive_ns = 0

    def on_tick(self, state: VmProcessState, now_ns: int) -> Iterator[Record]:
        """Fire `guest_agent_lost` after `GUEST_AGENT_LOST_SECONDS` without a guest agent. A reboot of the guest takes less time."""
        guest = state.guest
        lost_ns = guest.agent_lost_ns or guest.agent_unresponsive_ns
        if not lost_ns or not state.run.running:
            return
        if (
            now_ns - lost_ns
            >= self.overrides.min_duration_seconds_of_alert(LOST_ALERT, state.vm, "", GUEST_AGENT_LOST_SECONDS) * 1e9
        ):
            reason = "closed" if guest.agent_lost_ns else "unresponsive"
            data = {"help": GUEST_AGENT_LOST_HELP, "reason": reason, "lost_since_timestamp_seconds": lost_ns / 1e9}
            yield from self._store.fire(state.build_alert(LOST_ALERT, "", Severity.WARNING, now_ns, data))

    # The values that the guest agent reports.

    def on_samples(
        self, state: VmProcessState, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Record]:
        """Handle a query of a guest agent. `samples` are all samples of `families`."""
        if GUEST_FILESYSTEM in families:
            yield from self._on_filesystems(state, samples, time_ns)
        for sample in samples:
            if sample.family is GUEST_FREEZE:
                yield from self._on_freeze(state, time_ns, frozen=sample.values.get("frozen") is True)
            elif sample.family is GUEST_CLOCK:
                yield from self._on_clock(state, sample.values, time_ns)
            elif sample.family is GUEST_AGENT_SESSION:
                yield from self._on_session(state, str(sample.values.get("state", "")), time_ns)

    def on_disabled(self, state: VmProcessState, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts of a guest agent that is no longer queried. No later value can resolve these alerts."""
        guest = state.guest
        guest.agent_unresponsive_ns = guest.frozen_ns = guest.clock_polls = 0
        names = {FILESYSTEM_ALERT, FROZEN_ALERT, CLOCK_ALERT}
        if not guest.agent_lost_ns:
            names.add(LOST_ALERT)
        alerts = [alert for alert in self._store.alerts_of_owner(state.owner) if alert.name in names]
        yield from self._store.resolve(alerts, time_ns, "disabled")

    def _on_filesystems(self, state: VmProcessState, samples: Sequence[Sample], time_ns: int) -> Iterator[Record]:
        mounted = {sample.subject: sample for sample in samples if sample.family is GUEST_FILESYSTEM}
        known = [alert for alert in self._store.alerts_of_owner(state.owner) if alert.name == FILESYSTEM_ALERT]
        unmounted = [alert for alert in known if alert.subject not in mounted]
        yield from self._store.resolve(unmounted, time_ns, "unmounted")
        for mountpoint, sample in mounted.items():
            firing = {alert.level: alert for alert in known if alert.subject == mountpoint}
            yield from self._on_filesystem(state, mountpoint, sample, firing, time_ns)

    def _on_filesystem(
        self, state: VmProcessState, mountpoint: str, sample: Sample, firing: Mapping[str, Alert], time_ns: int
    ) -> Iterator[Record]:
        """Fire and resolve the alerts of one file system, one for each level."""
        used, size = sample.values.get("used_bytes"), sample.values.get("size_bytes")
        if used is None or not size:
            return
        levels = levels_as_used_bytes(self.policy.levels(state.vm, mountpoint), size)
        figures = {"used_bytes": used, "limit_bytes": size, "free_bytes": size - used}
        without_level = [alert for text, alert in firing.items() if text not in {level.text for level in levels}]
        yield from self._store.resolve(without_level, time_ns, "level_gone", figures)
        _, device, kind = sample.labels
        for level in levels:
            if used > level.bytes:
                severity = Severity.CRITICAL if level is levels[-1] else Severity.WARNING
                where = {"help": GUEST_FILESYSTEM_HELP, "mountpoint": mountpoint, "device": device, "type": kind}
                data = {**where, "level_bytes": level.bytes, **figures}
                yield from self._store.fire(
                    state.build_alert(FILESYSTEM_ALERT, mountpoint, severity, time_ns, data, level=level.text)
                )
            elif level.text in firing and used <= level.bytes - size * self.policy.hysteresis:
                yield from self._store.resolve([firing[level.text]], time_ns, "space", figures)

    def _on_freeze(self, state: VmProcessState, time_ns: int, *, frozen: bool) -> Iterator[Record]:
        guest = state.guest
        if not frozen:
            guest.frozen_ns = 0
            yield from self._resolve_by_name(state, FROZEN_ALERT, time_ns, "thawed")
            return
        guest.frozen_ns = guest.frozen_ns or time_ns
        if time_ns - guest.frozen_ns >= self.policy.frozen_seconds * 1e9:
            data = {"help": GUEST_FROZEN_HELP, "frozen_since_timestamp_seconds": guest.frozen_ns / 1e9}
            options = {"resolved_by": frozenset({"RESET"})}
            yield from self._store.fire(state.build_alert(FROZEN_ALERT, "", Severity.ERROR, time_ns, data, **options))

    def _on_clock(self, state: VmProcessState, values: Mapping[str, Any], time_ns: int) -> Iterator[Record]:
        """Fire `guest_clock_offset` if the offset minus its maximum error exceeds the limit in `CLOCK_POLLS` consecutive polls."""
        offset, uncertainty = values.get("offset_seconds"), values.get("uncertainty_seconds")
        if offset is None or uncertainty is None:
            return
        figures = {"offset_seconds": offset, "uncertainty_seconds": uncertainty}
        if abs(offset) - uncertainty <= self.policy.clock_offset_seconds:
            state.guest.clock_polls = 0
            yield from self._resolve_by_name(state, CLOCK_ALERT, time_ns, "clock", figures)
            return
        state.guest.clock_polls += 1
        if state.guest.clock_polls >= CLOCK_POLLS:
            data: dict[str, Any] = {"help": GUEST_CLOCK_HELP, **figures}
            yield from self._store.fire(state.build_alert(CLOCK_ALERT, "", Severity.WARNING, time_ns, data))
