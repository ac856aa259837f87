"""Creates the attributes `sequence` and `previoussequence`, by which consumers order a source's records and detect lost records.

`previoussequence` is the sequence of the source's previous record in the same topic. `agent.app.stored_sequences` stores the newest
sequences for the next run of the agent.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RUN_DIGITS: Final = 10

TopicFor = Callable[[str], str]
"""Returns the topic of a record type."""

SEQUENCE_DIGITS: Final = 12
"""Number of decimal digits after the run id in a sequence. One source can emit 10,000 records per second for three years."""

MAX_SOURCES: Final = 16384
"""Maximum number of sources whose sequences are kept. A further source replaces the source whose last record is oldest."""


def format_run_id(millis: int) -> str:
    """Return the run id for a start time in milliseconds since the epoch: ten Crockford base-32 digits, which sort by time."""
    return "".join(_BASE32[millis >> shift & 31] for shift in range(5 * (_RUN_DIGITS - 1), -1, -5))


def run_id_after(run_id: str) -> str | None:
    """Return the next run id in sort order; None if `run_id` is invalid or is the highest run id."""
    if len(run_id) != _RUN_DIGITS or not set(run_id) <= set(_BASE32):
        return None
    millis = 0
    for digit in run_id:
        millis = millis << 5 | _BASE32.index(digit)
    following = format_run_id(millis + 1)
    return following if following > run_id else None


class SourceSequence:
    """Numbers the records of one source without gaps. A sequence is a text; the texts sort like the numbers."""

    __slots__ = ("_first_longer_number", "_prefix", "_run_id", "last_by_topic", "number", "source")

    def __init__(self, source: str, run_id: str, number: int) -> None:
        self.source = source
        self.number = number
        """Number of the newest record of the source in this run."""
        self.last_by_topic: dict[str, str] = {}
        """Sequence of the newest record of the source, by topic. The sequence may be from an earlier run."""
        self._run_id = run_id
        self._prefix = ""  # the run id and the leading zeros, for numbers with as many digits as the newest
        self._first_longer_number = 0  # the first number with more digits

    def next_attributes(self, topic: str | None) -> str:
        """Return the JSON members `sequence` and `previoussequence` of the next record.

        A record has no `previoussequence` if the source's previous record in the topic is unknown.

        Args:
            topic: the record's topic; None for a record that never has `previoussequence`.
        """
        self.number = number = self.number + 1
        if number >= self._first_longer_number:  # the number has one digit more than before
            digits = len(str(number))
            self._prefix, self._first_longer_number = self._run_id + "0" * (SEQUENCE_DIGITS - digits), 10**digits
        sequence = f"{self._prefix}{number}"
        if topic is not None:
            last = self.last_by_topic
            previous = last.get(topic)
            last[topic] = sequence
            if previous is not None:
                return f'"sequence":"{sequence}","previoussequence":"{previous}"'
        return f'"sequence":"{sequence}"'


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
        # The source whose last record is oldest comes first.
        self._sequences: OrderedDict[str, SourceSequence] = OrderedDict()
        self._highest_discarded = 0
        self._changed: set[SourceSequence] = set()
        # Discarded since the last call of `pop_changes`.
        self._discarded: deque[SourceSequence] = deque(maxlen=max_sources)

    def next_attributes(self, source: str, topic: str | None) -> str:
        """Return the JSON members `sequence` and `previoussequence` of the next record of a source.

        Args:
            source: the record's source.
            topic: the record's topic; None for a record that never has `previoussequence`.
        """
        sequence = self._sequences.get(source)
        if sequence is None:
            sequence = self.get_or_create(source)
        else:
            self._sequences.move_to_end(source)
        self._changed.add(sequence)
        return sequence.next_attributes(topic)

    def get_or_create(self, source: str) -> SourceSequence:
        """Return the sequence of a source. Create the sequence if the source is new."""
        sequence = self._sequences.get(source)
        if sequence is not None:
            self._sequences.move_to_end(source)
            return sequence
        if len(self._sequences) >= self._max_sources:
            _, discarded = self._sequences.popitem(last=False)
            self._highest_discarded = max(self._highest_discarded, discarded.number)
            self._changed.discard(discarded)
            self._discarded.append(discarded)
        # This source may have been discarded earlier. Start above its last number, so that its records stay in order.
        sequence = self._sequences[source] = SourceSequence(source, self._run_id, self._highest_discarded)
        return sequence

    # Storing the sequences, and restoring them in the next run.

    def restore(self, stored: Iterable[tuple[str, str, str]]) -> None:
        """Restore the newest sequences of the previous run. Call this before the first record.

        Args:
            stored: tuples of topic, source and sequence.
        """
        for topic, source, sequence in sorted(stored, key=lambda entry: entry[2]):  # the newest entry comes last
            self.get_or_create(source).last_by_topic[topic] = sequence

    def newest_sequences(self, topics: AbstractSet[str]) -> Iterator[tuple[str, str, str]]:
        """Yield tuples of topic, source and newest sequence, for each source that has records in these topics."""
        for sequence in self._sequences.values():
            yield from (
                (topic, sequence.source, last) for topic, last in sequence.last_by_topic.items() if topic in topics
            )

    def pop_changes(self, without: AbstractSet[str]) -> Iterator[tuple[str, str, str | None]]:
        """Yield tuples of topic, source and newest sequence, for each source that had records since the last call.

        The sequence is None if the source's state was discarded. Samples that `RecordEncoder.encode_samples` encodes do not count.

        Args:
            without: topics to leave out.
        """
        changed, self._changed = self._changed, set()
        while self._discarded:
            sequence = self._discarded.popleft()
            if sequence.source not in self._sequences:
                yield from ((topic, sequence.source, None) for topic in sequence.last_by_topic if topic not in without)
        for sequence in changed:
            yield from (
                (topic, sequence.source, last) for topic, last in sequence.last_by_topic.items() if topic not in without
            )

    def mark_all_changed(self) -> None:
        """Make the next `pop_changes` yield all sequences."""
        self._changed = set(self._sequences.values())
