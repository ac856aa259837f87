"""Load average of the guest."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import GuestCollector, TimedGuestReply, require_value
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_LOAD

_read = FieldReader(GUEST_LOAD)


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    values = {name: load for name, load in _read(require_value(exchanges[0], dict)).items() if load >= 0}
    return (Sample(GUEST_LOAD, (), values),) if values else ()


COLLECTOR = GuestCollector("load", (GUEST_LOAD,), ("guest-get-load",), _collect)
