"""Number of users that are logged in to the guest. The names of the users are not recorded."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import GuestCollector, TimedGuestReply, require_value
from agent.model.family import Sample
from agent.model.metrics.guest import GUEST_USERS


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    return (Sample(GUEST_USERS, (), {"logged_in": len(require_value(exchanges[0], list))}),)


COLLECTOR = GuestCollector("users", (GUEST_USERS,), ("guest-get-users",), _collect)
