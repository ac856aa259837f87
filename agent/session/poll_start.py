"""The time of a poll, on the wall clock and on the monotonic clock."""

import time
from typing import NamedTuple, Self


class PollStart(NamedTuple):
    """When a poll began.

    Attributes:
        time_ns: nanoseconds since the epoch.
        monotonic: seconds on the monotonic clock.
    """

    time_ns: int
    monotonic: float

    @classmethod
    def now(cls) -> Self:
        """Return the present time."""
        return cls(time.time_ns(), time.monotonic())
