"""Reports whether the guest's file systems are frozen, for example during a snapshot."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import GuestCollector, TimedGuestReply, require_value
from agent.model.family import Sample
from agent.model.metrics.guest import GUEST_FREEZE

_FROZEN_BY_STATUS = {"frozen": True, "thawed": False}


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    state = require_value(exchanges[0], str)
    return (Sample(GUEST_FREEZE, (), {"frozen": _FROZEN_BY_STATUS[state]}),) if state in _FROZEN_BY_STATUS else ()


COLLECTOR = GuestCollector("freeze", (GUEST_FREEZE,), ("guest-fsfreeze-status",), _collect, while_frozen=True)
