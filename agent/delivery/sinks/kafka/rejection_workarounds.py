"""Workarounds for topics that rejected a batch: for some time, the sink sends smaller batches, or messages without timestamps."""

import math
import time


class RejectionWorkarounds:
    """Remembers the topics that need a workaround, and the end of each workaround."""

    def __init__(self, seconds: float) -> None:
        """Start without workarounds.

        Args:
            seconds: duration of a workaround in seconds. Afterwards, the sink tries again without the workaround.
        """
        self._seconds = seconds
        self._max_batch_bytes: dict[str, tuple[int, float]] = {}  # bytes, and until when, by time.monotonic
        self._without_timestamps: dict[str, float] = {}  # until when, by time.monotonic

    def limit_batches(self, topic: str, max_bytes: int) -> None:
        """Limit the batches for a topic to `max_bytes` for the duration of a workaround."""
        self._max_batch_bytes[topic] = max_bytes, time.monotonic() + self._seconds

    def max_batch_bytes(self, topic: str) -> float:
        """Return the maximum bytes of a batch for a topic; infinite if there is no limit."""
        max_bytes, until = self._max_batch_bytes.get(topic, (math.inf, math.inf))
        return max_bytes if time.monotonic() < until else math.inf

    def stop_timestamps(self, topic: str) -> bool:
        """Send a topic's messages without timestamps until the workaround ends. Return whether this is the first call for the topic."""
        is_first = topic not in self._without_timestamps
        self._without_timestamps[topic] = time.monotonic() + self._seconds
        return is_first

    def sends_timestamps(self, topic: str) -> bool:
        """Return whether the sink sends timestamps to a topic."""
        return time.monotonic() >= self._without_timestamps.get(topic, 0.0)

    def topics_without_timestamps(self) -> list[str]:
        """Return the topics that get no timestamps now, sorted by name."""
        return [topic for topic in sorted(self._without_timestamps) if not self.sends_timestamps(topic)]
