"""Restores the order of the records of one partition, drops repetitions and reports gaps. Pure.

The attribute `previoussequence` of a record is the `sequence` of its predecessor: the previous record of its source in the same topic. So
the newest sequence of each source is enough to detect a repetition or a loss. The first digits of a sequence identify the run of the agent.
Runs are ordered separately, because the sequences of a later run may be lower after the host's clock was set back.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agent.consumer.stream_record import StreamRecord

RUN_DIGITS: Final = 10
"""Number of digits at the start of a `sequence` that identify the run of the agent."""
_MAX_RUNS: Final = 4
"""Maximum number of runs of the agent whose state is kept for each source."""
_MAX_GAPS: Final = 16
"""Maximum number of gaps that are kept for each run, so that late records can fill them."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing records of one source in one run of the agent.

    Attributes:
        topic: topic of the missing records.
        source: the source of the missing records.
        after: `sequence` of the last record before the gap; empty if the gap is at the start of a run of the agent.
        through: `sequence` of the last missing record.
        next: the first record after the gap.
    """

    topic: str
    source: str
    after: str
    through: str
    next: StreamRecord


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """Settings of a `RecordOrderer`.

    Attributes:
        hold_seconds: how long a record waits for its predecessor, in seconds.
        max_held: maximum number of waiting records in a partition.
        max_sources: maximum number of sources in a partition whose state is kept. A source is a VM on a host, a monitor or a host.
    """

    hold_seconds: float = 2.0
    max_held: int = 10_000
    max_sources: int = 100_000


@dataclass(slots=True)
class _HeldRecord:
    """A record that waits for its predecessor, at most until the time `until` of the monotonic clock."""

    record: StreamRecord
    until: float


@dataclass(slots=True)
class _AgentRun:
    """The records of one source in one run of the agent.

    Attributes:
        last: `sequence` of the last returned record, or of the last record that is treated as missing; empty if there is none.
        held: waiting records, by `sequence`.
        order: sequences of the waiting records, as a heap.
        gaps: reported gaps, as pairs of sequences: of the last record before the gap, and of the last missing record.
    """

    last: str = ""
    held: dict[str, _HeldRecord] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)

    def fill_gap(self, record: StreamRecord) -> bool:
        """Remove a late record from its gap. Return False if no gap contains the record, which is a repetition then."""
        for index, (after, through) in enumerate(self.gaps):
            if after < record.sequence <= through:
                parts = [(after, record.previous_sequence), (record.sequence, through)]
                self.gaps[index : index + 1] = [(begin, end) for begin, end in parts if begin < end]
                return True
        return False

    def skip_to(self, sequence: str) -> None:
        """Treat the records after `last` as missing, up to and including the record with this `sequence`."""
        self.gaps.append((self.last, sequence))
        del self.gaps[:-_MAX_GAPS]
        self.last = sequence


class RecordOrderer:
    """Orders the records of one partition.

    It returns each record once. The records of a source are in order, except late records, which arrive after their gap was reported.

    Attributes:
        duplicates: number of repetitions that were dropped.
        late: number of records that arrived after their gap was reported.
    """

    def __init__(self, settings: OrderSettings, clock: Callable[[], float], *, complete: bool) -> None:
        """Set up an orderer without records.

        Args:
            settings: limits of waiting records and of sources.
            clock: returns the time of a monotonic clock in seconds.
            complete: whether the consumer reads from the first record that was ever in the partition. If not, the missing predecessor of
                the first record of each source is no gap.
        """
        self.duplicates = 0
        self.late = 0
        self._settings = settings
        self._clock = clock
        self._complete = complete
        self._sources: OrderedDict[str, OrderedDict[str, _AgentRun]] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, str], tuple[_AgentRun, _HeldRecord]] = (
            OrderedDict()
        )  # the longest waiting record comes first

    def add(self, record: StreamRecord) -> list[StreamRecord | Gap]:
        """Add the next record of the partition. Return the records and gaps that need not wait any longer, in order."""
        if not record.sequence:
            return [record]
        run = self._run_of_record(record)
        if record.sequence <= run.last:
            if run.fill_gap(record):
                self.late += 1
                return [record]
            self.duplicates += 1
            return []
        if record.previous_sequence <= run.last:
            run.last = record.sequence
            return [record, *self._release_successors(run)]
        if record.sequence in run.held:
            self.duplicates += 1
            return []
        held = _HeldRecord(record, self._clock() + self._settings.hold_seconds)
        run.held[record.sequence] = held
        heapq.heappush(run.order, record.sequence)
        self._waiting[record.source, record.sequence] = run, held
        return self.release_overdue()

    def release_overdue(self) -> list[StreamRecord | Gap]:
        """Return the records that have waited too long for their predecessors, each after the gap before it."""
        released: list[StreamRecord | Gap] = []
        now = self._clock()
        while self._waiting:
            run, held = next(iter(self._waiting.values()))
            if held.until > now and len(self._waiting) <= self._settings.max_held:
                break
            released += self._release_through(run, held.record.sequence)
        return released

    def release_all(self) -> list[StreamRecord | Gap]:
        """Return all waiting records, each after the gap before it."""
        released: list[StreamRecord | Gap] = []
        while self._waiting:
            run, held = next(iter(self._waiting.values()))
            released += self._release_through(run, held.record.sequence)
        return released

    @property
    def first_held_offset(self) -> int | None:
        """The lowest offset of a waiting record; None if no record waits. A consumer must not commit a higher offset."""
        return min((held.record.position.offset for _, held in self._waiting.values()), default=None)

    def _run_of_record(self, record: StreamRecord) -> _AgentRun:
        source_is_known = record.source in self._sources
        runs = self._sources.setdefault(record.source, OrderedDict())
        self._sources.move_to_end(record.source)
        name = record.sequence[:RUN_DIGITS]
        run = runs.get(name)
        if run is None:
            run = runs[name] = _AgentRun()
            if record.previous_sequence and not source_is_known and not self._complete:
                run.skip_to(record.previous_sequence)  # earlier records were sent before this consumer began to read
        runs.move_to_end(name)
        self._discard_oldest(runs)
        return run

    def _discard_oldest(self, runs: OrderedDict[str, _AgentRun]) -> None:
        """Discard the oldest runs of a source that has too many, and the oldest source of too many. Keep runs with waiting records."""
        for name in [name for name, run in runs.items() if not run.held][: max(0, len(runs) - _MAX_RUNS)]:
            del runs[name]
        if len(self._sources) > self._settings.max_sources:
            source = next(iter(self._sources))
            if any(run.held for run in self._sources[source].values()):
                self._sources.move_to_end(source)
            else:
                del self._sources[source]

    def _release_successors(self, run: _AgentRun) -> Iterator[StreamRecord]:
        """Yield the records that waited for the last returned record, in order."""
        while run.order and run.held[run.order[0]].record.previous_sequence <= run.last:
            run.last = heapq.heappop(run.order)
            record = run.held.pop(run.last).record
            del self._waiting[record.source, record.sequence]
            yield record

    def _release_through(self, run: _AgentRun, sequence: str) -> Iterator[StreamRecord | Gap]:
        """Yield the waiting records of the run up to this `sequence`, and the records that follow it without a gap."""
        while run.order and run.order[0] <= sequence:
            record = run.held[run.order[0]].record
            yield Gap(record.position.topic, record.source, run.last, record.previous_sequence, record)
            run.skip_to(record.previous_sequence)
            yield from self._release_successors(run)
