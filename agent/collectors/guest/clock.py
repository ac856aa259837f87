"""Offset of the guest's clock from the host's clock.

The guest reads its clock after the agent sends the command and before the reply arrives. The offset is the guest's time minus the middle
between sending and arrival. So the error of the offset is at most half of the time between the command and the reply.
"""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import GuestCollector, TimedGuestReply, require_value
from agent.model.family import Sample
from agent.model.metrics.guest import GUEST_CLOCK

_MAX_NS = 2**63 - 1


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    (exchange,) = exchanges
    guest_ns = require_value(exchange, int)
    if type(guest_ns) is not int or not 0 <= guest_ns <= _MAX_NS:
        return ()
    middle_ns, half_ns = (exchange.sent_ns + exchange.received_ns) // 2, (exchange.received_ns - exchange.sent_ns) / 2
    return (
        Sample(GUEST_CLOCK, (), {"offset_seconds": (guest_ns - middle_ns) / 1e9, "uncertainty_seconds": half_ns / 1e9}),
    )


COLLECTOR = GuestCollector("clock", (GUEST_CLOCK,), ("guest-get-time",), _collect)
