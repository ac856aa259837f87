"""Back-off of collectors that fail, because QEMU's replies cannot be read. Pure: time is an argument."""

from dataclasses import dataclass
from math import inf

from agent.model.record import sanitize

MAX_CAUSE = 200
"""Maximum length of a failure's cause, in characters."""

Degraded = tuple[tuple[str, str], ...]
"""Pairs of a failing collector's name and the cause."""


@dataclass(slots=True)
class _Failure:
    cause: str
    count: int
    retry_at: float


class CollectorFailures:
    """Failing collectors of one VM. The agent does not poll a failing collector for a time, which doubles with each failure in a row."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._failures

    @property
    def degraded(self) -> Degraded:
        """The failing collectors and their causes, sorted by name."""
        return tuple((name, failure.cause) for name, failure in sorted(self._failures.items()))

    def add(self, name: str, cause: str, now: float, first_seconds: float, max_seconds: float) -> float:
        """Add a failure of a collector; return how long the collector is off, in seconds.

        Args:
            name: the collector's name.
            cause: the error's text.
            now: the current time, in seconds on the monotonic clock.
            first_seconds: how long a collector is off after its first failure.
            max_seconds: maximum time for which a collector is off.
        """
        previous = self._failures.get(name)
        count = previous.count + 1 if previous is not None else 1
        delay = min(max_seconds, first_seconds * 2.0 ** min(count - 1, 30))
        self._failures[name] = _Failure(sanitize(cause, MAX_CAUSE), count, now + delay)
        return delay

    def clear(self, name: str) -> bool:
        """Remove a collector's failures; return False if it had none."""
        return self._failures.pop(name, None) is not None

    def retry_at(self, name: str) -> float:
        """Return the monotonic time from which the agent may poll a collector again; `-inf` if the collector does not fail."""
        failure = self._failures.get(name)
        return failure.retry_at if failure is not None else -inf
