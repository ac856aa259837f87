"""Alerts about the inside of guests. Pure: it returns records."""

from collections.abc import Iterator

from agent.alerts.process_state import VmProcessState
from agent.alerts.rules import GUEST_AGENT_LOST_HELP, GUEST_AGENT_LOST_SECONDS
from agent.alerts.store import AlertStore
from agent.model.record import Record, Severity


class GuestAlerts:
    """Alerts about the inside of guests, for all VMs."""

    def __init__(self, store: AlertStore) -> None:
        self._store = store

    def on_channel(self, state: VmProcessState, time_ns: int, *, connected: bool) -> Iterator[Record]:
        """Handle a poll of the guest agent's channel; `connected` says whether the guest has opened it."""
        guest = state.guest
        if connected:
            guest.had_agent, guest.agent_lost_ns = True, 0
            known = self._store.find(state.owner, "guest_agent_lost")
            yield from self._store.resolve([known] if known is not None else [], time_ns, "connected")
        elif guest.had_agent and not guest.agent_lost_ns:
            guest.agent_lost_ns = time_ns

    def on_tick(self, state: VmProcessState, now_ns: int) -> Iterator[Record]:
        """Fire the alert of a guest agent that has been lost for too long. A reboot of the guest takes less time."""
        lost_ns = state.guest.agent_lost_ns
        if lost_ns and state.run.running and now_ns - lost_ns >= GUEST_AGENT_LOST_SECONDS * 1e9:
            data = {"help": GUEST_AGENT_LOST_HELP, "lost_since_timestamp_seconds": lost_ns / 1e9}
            yield from self._store.fire(state.alert("guest_agent_lost", "", Severity.WARNING, now_ns, data))
