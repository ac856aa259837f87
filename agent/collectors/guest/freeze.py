"""Freezes of the guest's file systems, as during a snapshot."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import Exchange, GuestCollector, expect
from agent.model.family import Sample
from agent.model.metrics.guest import GUEST_FREEZE

_STATES = {"frozen": True, "thawed": False}


def _collect(exchanges: Sequence[Exchange]) -> Iterable[Sample]:
    state = expect(exchanges[0], str)
    return (Sample(GUEST_FREEZE, (), {"frozen": _STATES[state]}),) if state in _STATES else ()


COLLECTOR = GuestCollector("freeze", (GUEST_FREEZE,), ("guest-fsfreeze-status",), _collect, while_frozen=True)
