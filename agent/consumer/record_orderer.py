"""Order of the records of one partition: repetitions are dropped, records wait for their predecessors, gaps are reported. Pure.

Each record has the `sequence` of its predecessor: the previous record of its source in the same topic. So a consumer needs no other
topic, and only the newest sequence of each source, to recognise a repetition or a loss. The part of `sequence` that starts each run of
the agent separates runs, because a clock that was set back would reverse their order.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agent.consumer.stream_record import StreamRecord

RUN_DIGITS: Final = 10
"""Length of the part of `sequence` that names the run of the agent."""
_MAX_RUNS: Final = 4
"""Runs of the agent that are remembered for each source."""
_MAX_GAPS: Final = 16
"""Gaps in one run that late records can still fill."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one source that did not arrive.

    Attributes:
        topic: the topic.
        source: the source of the missing records.
        after: `sequence` of the last record before the gap; empty if the gap is at the start of a run of the agent.
        through: `sequence` of the last missing record.
        next: the record after the gap.
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
        hold_seconds: how long a record waits for its predecessor.
        max_held: how many records may wait in a partition.
        max_sources: how many sources a partition remembers. A source is a VM on a host, a monitor or a host.
    """

    hold_seconds: float = 2.0
    max_held: int = 10_000
    max_sources: int = 100_000


@dataclass(slots=True)
class _Held:
    record: StreamRecord
    until: float


@dataclass(slots=True)
class _Run:
    """The records of one source in one run of the agent.

    Attributes:
        last: the newest `sequence` that was handed on; empty if none was.
        held: records whose predecessor is missing, by `sequence`.
        order: the sequences of the held records, as a heap.
        gaps: pairs of sequences; what is after the first one, up to the second one, has not arrived.
    """

    last: str = ""
    held: dict[str, _Held] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)

    def fill_gap(self, record: StreamRecord) -> bool:
        """Remove a late record from the gap that it is in. Return False if it is in no gap, so that it is a repetition."""
        for index, (after, through) in enumerate(self.gaps):
            if after < record.sequence <= through:
                parts = [(after, record.previous_sequence), (record.sequence, through)]
                self.gaps[index : index + 1] = [(begin, end) for begin, end in parts if begin < end]
                return True
        return False

    def skip_to(self, sequence: str) -> None:
        """Treat all records after the last one, up to this `sequence`, as missing."""
        self.gaps.append((self.last, sequence))
        del self.gaps[:-_MAX_GAPS]
        self.last = sequence


class RecordOrderer:
    """Hands on the records of one partition.

    Each record is handed on once. The records of a source are in order, except for those that arrive after their gap was reported.

    Attributes:
        duplicates: number of repetitions that were dropped.
        late: number of records that were handed on after their gap was reported.
    """

    def __init__(self, settings: OrderSettings, clock: Callable[[], float], *, complete: bool) -> None:
        """Set up an orderer without records.

        Args:
            settings: the settings.
            clock: returns the time in seconds; it never goes back.
            complete: whether reading begins at the first record that was ever in the partition. Otherwise the first record of
                each source has a predecessor that was not read, and that is no gap.
        """
        self.duplicates = 0
        self.late = 0
        self._settings = settings
        self._clock = clock
        self._complete = complete
        self._sources: OrderedDict[str, OrderedDict[str, _Run]] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, str], tuple[_Run, _Held]] = OrderedDict()  # the oldest first

    def add(self, record: StreamRecord) -> list[StreamRecord | Gap]:
        """Add the partition's next record, and return what can be handed on now, in order."""
        if not record.sequence:
            return [record]
        run = self._run_of(record)
        if record.sequence <= run.last:
            if run.fill_gap(record):
                self.late += 1
                return [record]
            self.duplicates += 1
            return []
        if record.previous_sequence <= run.last:
            run.last = record.sequence
            return [record, *self._hand_on_successors(run)]
        if record.sequence in run.held:
            self.duplicates += 1
            return []
        held = _Held(record, self._clock() + self._settings.hold_seconds)
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
        """Return all records that wait, each after the gap before it."""
        released: list[StreamRecord | Gap] = []
        while self._waiting:
            run, held = next(iter(self._waiting.values()))
            released += self._release_through(run, held.record.sequence)
        return released

    @property
    def first_held_offset(self) -> int | None:
        """The lowest offset of a record that waits; None if none waits. A consumer must not commit a higher offset."""
        return min((held.record.position.offset for _, held in self._waiting.values()), default=None)

    def _run_of(self, record: StreamRecord) -> _Run:
        source_is_known = record.source in self._sources
        runs = self._sources.setdefault(record.source, OrderedDict())
        self._sources.move_to_end(record.source)
        name = record.sequence[:RUN_DIGITS]
        run = runs.get(name)
        if run is None:
            run = runs[name] = _Run()
            if record.previous_sequence and not source_is_known and not self._complete:
                run.skip_to(record.previous_sequence)  # what was sent before this consumer began to read
        runs.move_to_end(name)
        self._forget_oldest(runs)
        return run

    def _forget_oldest(self, runs: OrderedDict[str, _Run]) -> None:
        """Forget the oldest runs of a source, and the oldest sources, beyond the limits. Runs with records that wait are kept."""
        for name in [name for name, run in runs.items() if not run.held][: max(0, len(runs) - _MAX_RUNS)]:
            del runs[name]
        if len(self._sources) > self._settings.max_sources:
            source = next(iter(self._sources))
            if any(run.held for run in self._sources[source].values()):
                self._sources.move_to_end(source)
            else:
                del self._sources[source]

    def _hand_on_successors(self, run: _Run) -> Iterator[StreamRecord]:
        """Yield the records that waited for the run's last record, in order."""
        while run.order and run.held[run.order[0]].record.previous_sequence <= run.last:
            run.last = heapq.heappop(run.order)
            record = run.held.pop(run.last).record
            del self._waiting[record.source, record.sequence]
            yield record

    def _release_through(self, run: _Run, sequence: str) -> Iterator[StreamRecord | Gap]:
        """Yield the run's records that wait, up to this `sequence` and what follows it without a gap."""
        while run.order and run.order[0] <= sequence:
            record = run.held[run.order[0]].record
            yield Gap(record.position.topic, record.source, run.last, record.previous_sequence, record)
            run.skip_to(record.previous_sequence)
            yield from self._hand_on_successors(run)
