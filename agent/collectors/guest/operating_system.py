"""Operating system, host name and time zone of the guest. A guest agent may lack any of the three commands."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import MAX_TEXT, GuestCollector, TimedGuestReply, value_unless_error
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_OS
from agent.model.record import sanitize

_read = FieldReader(GUEST_OS)


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    merged: dict[str, object] = {}
    for exchange in exchanges:
        merged |= value_unless_error(exchange, dict) or {}
    values = {
        name: sanitize(value, MAX_TEXT) if isinstance(value, str) else value for name, value in _read(merged).items()
    }
    return (Sample(GUEST_OS, (), values),) if values else ()


COLLECTOR = GuestCollector(
    "os", (GUEST_OS,), ("guest-get-osinfo", "guest-get-host-name", "guest-get-timezone"), _collect
)
