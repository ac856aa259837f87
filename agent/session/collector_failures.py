"""Back-off of failing collectors. A collector fails if QEMU's reply cannot be read, or because of a bug. Pure: time is an argument."""

from dataclasses import dataclass
from math import inf

from agent.model.record import sanitize

MAX_CAUSE = 200
"""Maximum length of a failure's cause, in characters."""

DegradedCollectors = tuple[tuple[str, str], ...]
"""The failing collectors: pairs of a collector's name and the cause of its failure."""


@dataclass(slots=True)
class _Failure:
    cause: str
    count: int
    retry_at: float


class CollectorFailures:
    """Failing collectors of one VM. A failing collector is off (not polled) for a time, which doubles with each consecutive failure.

    One write can contain the commands of several collectors. If the replies cannot be read, the collector that caused the failure is
    unknown. The agent then isolates these collectors: the agent polls each collector alone until the collector's reply can be read.
    """

    __slots__ = ("_failures", "_isolated")

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}
        self._isolated: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self._failures

    def __bool__(self) -> bool:
        """True if a collector fails or is isolated."""
        return bool(self._failures or self._isolated)

    @property
    def degraded(self) -> DegradedCollectors:
        """The failing collectors and their causes, sorted by name."""
        return tuple((name, failure.cause) for name, failure in sorted(self._failures.items()))

    def add(self, name: str, cause: str, now: float, first_seconds: float, max_seconds: float) -> float:
        """Add a failure of a collector. Return how long the collector is off, in seconds.

        Args:
            name: the collector's name.
            cause: the error's text.
            now: the current time, in seconds on the monotonic clock.
            first_seconds: how long a collector is off after its first failure.
            max_seconds: maximum time that a collector is off.
        """
        previous = self._failures.get(name)
        count = previous.count + 1 if previous is not None else 1
        delay = min(max_seconds, first_seconds * 2.0 ** min(count - 1, 30))
        self._failures[name] = _Failure(sanitize(cause, MAX_CAUSE), count, now + delay)
        self.end_isolation(name)
        return delay

    def clear(self, name: str) -> bool:
        """Remove a collector's failures. Return False if the collector had none."""
        self.end_isolation(name)
        return self._failures.pop(name, None) is not None

    def isolate(self, name: str) -> None:
        """Poll a collector alone from now on, because one of the collectors in the same write caused a failure."""
        if name not in self._isolated:
            self._isolated.append(name)

    def end_isolation(self, name: str) -> None:
        """Poll a collector together with other collectors again."""
        if name in self._isolated:
            self._isolated.remove(name)

    def has_to_poll_alone(self, name: str) -> bool:
        """Return whether a collector has to be polled alone."""
        return name in self._failures or name in self._isolated

    def retry_at(self, name: str) -> float:
        """Return when the agent may poll a collector again, in seconds on the monotonic clock; `-inf` if the collector does not fail."""
        failure = self._failures.get(name)
        return failure.retry_at if failure is not None else -inf
