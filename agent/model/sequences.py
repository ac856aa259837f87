"""Creates the attributes `sequence` and `previoussequence`. Consumers order the records of a source by them, and detect lost records."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RUN_DIGITS: Final = 10

TopicOf = Callable[[str], str]
"""Returns the topic of a record type."""

DIGITS: Final = 12
"""Number of decimal digits after the run id in a sequence. They suffice for three years at 10,000 records per second from one source."""

MAX_SOURCES: Final = 16384
"""Maximum number of sources whose state is kept. If there are more, the state of the source with the oldest last record is discarded."""


def format_run_id(millis: int) -> str:
    """Return the id of a run that starts at `millis`, milliseconds since the epoch: ten Crockford base-32 digits, which sort by time."""
    return "".join(_BASE32[millis >> shift & 31] for shift in range(5 * (_RUN_DIGITS - 1), -1, -5))


def run_id_after(run_id: str) -> str | None:
    """Return the next run id in sort order; None if `run_id` is not a valid run id, or is the last possible one."""
    if len(run_id) != _RUN_DIGITS or not set(run_id) <= set(_BASE32):
        return None
    millis = 0
    for digit in run_id:
        millis = millis << 5 | _BASE32.index(digit)
    following = format_run_id(millis + 1)
    return following if following > run_id else None


class SourceSequence:
    """Numbers the records of one source. The numbers have no gaps, and the sequences as text sort in the same order."""

    __slots__ = ("_last", "_run_id", "number")

    def __init__(self, run_id: str, number: int) -> None:
        self.number = number
        """Number of the newest record of the source."""
        self._run_id = run_id
        self._last: dict[str, str] = {}  # the newest record's sequence, by topic

    def next_attributes(self, topic: str) -> str:
        """Return the JSON members `sequence` and `previoussequence` of the next record.

        The first record in a topic has no `previoussequence`.
        """
        self.number = number = self.number + 1
        sequence = f"{self._run_id}{number:0{DIGITS}d}"
        previous = self._last.get(topic)
        self._last[topic] = sequence
        if previous is None:
            return f'"sequence":"{sequence}"'
        return f'"sequence":"{sequence}","previoussequence":"{previous}"'


class SequenceRegistry:
    """The sequences of all sources in one run of the agent."""

    def __init__(self, run_id: str, max_sources: int = MAX_SOURCES) -> None:
        """Create a registry without sources.

        Args:
            run_id: the first part of each sequence. The run id of a later run sorts after the run ids of earlier runs.
            max_sources: maximum number of sources to keep.
        """
        self._run_id = run_id
        self._max_sources = max_sources
        self._sequences: OrderedDict[str, SourceSequence] = (
            OrderedDict()
        )  # the source with the oldest last record comes first
        self._highest_discarded = 0

    def of_source(self, source: str) -> SourceSequence:
        """Return the sequence of a source."""
        sequence = self._sequences.get(source)
        if sequence is not None:
            self._sequences.move_to_end(source)
            return sequence
        if len(self._sequences) >= self._max_sources:
            _, discarded = self._sequences.popitem(last=False)
            self._highest_discarded = max(self._highest_discarded, discarded.number)
        # A source whose state was discarded continues with a number higher than its last number, so that its order is kept.
        sequence = self._sequences[source] = SourceSequence(self._run_id, self._highest_discarded)
        return sequence
