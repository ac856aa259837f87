"""Restores the order of the records of one partition, drops duplicates and reports gaps. Pure.

The attribute `previoussequence` of a record is the `sequence` of its predecessor: the previous record of its source in the same topic.
The newest sequence of each source is therefore enough to detect duplicates and losses. The first digits of a sequence identify the run of
the agent, from its start to its end. The records of two runs form one chain if the agent knows the predecessor from its earlier run.
Otherwise the new run begins another chain. The sequences of the new run are lower if the host's clock was set back.
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
    """Missing records of one source, or records that may be missing.

    Attributes:
        topic: topic of the missing records.
        source: the source of the missing records.
        after: `sequence` of the last record before the gap; empty if no earlier record is known.
        through: `sequence` of the last missing record. Empty if records may be missing, because a killed agent had not stored which
            record it sent last.
        next_record: the first record after the gap.
    """

    topic: str
    source: str
    after: str
    through: str
    next_record: StreamRecord

    @property
    def is_certain(self) -> bool:
        """True if records are certainly missing; False if records may be missing."""
        return bool(self.through)


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """Limits of the records that wait for an earlier record of their source.

    Attributes:
        hold_seconds: how long a record waits for its predecessor, in seconds.
        max_held_records: maximum number of waiting records in a partition.
        max_sources: maximum number of sources whose state is kept for a partition. A source is a VM on a host, a monitor, or a host.
    """

    hold_seconds: float = 2.0
    max_held_records: int = 10_000
    max_sources: int = 100_000


@dataclass(slots=True)
class _HeldRecord:
    """A record that waits for its predecessor until `deadline`, in seconds on the monotonic clock."""

    record: StreamRecord
    deadline: float


@dataclass(slots=True)
class _Chain:
    """State of a chain: the records of one source that `previoussequence` connects, over one or more runs of the agent.

    Attributes:
        last: `sequence` of the last record that was returned or is treated as missing; empty if there is none.
        held: waiting records, by `sequence`.
        order: sequences of the waiting records, as a heap.
        gaps: gaps that late records can fill, each as two sequences: of the last record before the gap, and of the last missing record.
        unreported: `sequence` of the last record that was sent before the consumer began to read. Gaps up to it are not reported.
    """

    last: str = ""
    held: dict[str, _HeldRecord] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)
    unreported: str = ""

    def hold(self, held: _HeldRecord) -> None:
        """Add a waiting record."""
        self.held[held.record.sequence] = held
        heapq.heappush(self.order, held.record.sequence)

    def fill_gap(self, record: StreamRecord) -> bool:
        """Remove a late record from its gap. Return False if no gap contains the record, which is then a duplicate."""
        for index, (after, through) in enumerate(self.gaps):
            if after < record.sequence <= through:
                before = record.previous_sequence or _sequence_before(record.sequence)
                parts = [(after, before), (record.sequence, through)]
                self.gaps[index : index + 1] = [(begin, end) for begin, end in parts if begin < end]
                return True
        return False

    def skip_to(self, sequence: str) -> None:
        """Treat the records after `last` as missing, up to and including this `sequence`."""
        self.add_gap(sequence)
        self.last = sequence

    def add_gap(self, through: str) -> None:
        """Add a gap after `last`, up to and including this sequence. Late records can fill the gap."""
        self.gaps.append((self.last, through))
        del self.gaps[:-_MAX_GAPS]


class RecordOrderer:
    """Orders the records of one partition, and returns each record once.

    The records of a source are in order, except for late records and records from before the consumer's start.

    Attributes:
        duplicates: number of duplicates that were dropped.
        late_records: number of records that arrived after their gap was reported.
    """

    def __init__(self, settings: OrderSettings, clock: Callable[[], float], *, complete: bool) -> None:
        """Set up an orderer without records.

        Args:
            settings: limits of waiting records and of sources.
            clock: returns the time of a monotonic clock in seconds.
            complete: whether the consumer reads the partition from offset 0. If False, no gap is reported before the first record of
                each source.
        """
        self.duplicates = 0
        self.late_records = 0
        self._settings = settings
        self._clock = clock
        self._complete = complete
        self._sources: OrderedDict[str, OrderedDict[str, _Chain]] = OrderedDict()  # by source and run
        # The record that has waited longest comes first.
        self._waiting: OrderedDict[tuple[str, str], tuple[_Chain, _HeldRecord]] = OrderedDict()

    def add(self, record: StreamRecord) -> list[StreamRecord | Gap]:
        """Add the next record of the partition. Return the records and gaps that are ready, in order."""
        if not record.sequence:
            return [record]
        chain, possible_gap = self._chain_of_record(record)
        if record.sequence <= chain.last:
            if chain.fill_gap(record):
                self.late_records += record.sequence > chain.unreported
                return [record]
            self.duplicates += 1
            return []
        if record.previous_sequence <= chain.last:
            if possible_gap and chain.last:
                chain.add_gap(_sequence_before(record.sequence))
            chain.last = record.sequence
            return [*possible_gap, record, *self._release_successors(chain)]
        if record.sequence in chain.held:
            self.duplicates += 1
            return []
        held = _HeldRecord(record, self._clock() + self._settings.hold_seconds)
        chain.hold(held)
        self._waiting[record.source, record.sequence] = chain, held
        return self.release_overdue()

    def release_overdue(self) -> list[StreamRecord | Gap]:
        """Return the records that waited too long for their predecessors. A `Gap` precedes each record whose predecessor is missing."""
        released: list[StreamRecord | Gap] = []
        now = self._clock()
        while self._waiting:
            chain, held = next(iter(self._waiting.values()))
            if held.deadline > now and len(self._waiting) <= self._settings.max_held_records:
                break
            released += self._release_through(chain, held.record.sequence)
        return released

    def release_all(self) -> list[StreamRecord | Gap]:
        """Return all waiting records. A `Gap` precedes each record whose predecessor is missing."""
        released: list[StreamRecord | Gap] = []
        while self._waiting:
            chain, held = next(iter(self._waiting.values()))
            released += self._release_through(chain, held.record.sequence)
        return released

    @property
    def first_held_offset(self) -> int | None:
        """The lowest offset of a waiting record; None if no record waits. A consumer must not commit a higher offset."""
        return min((held.record.position.offset for _, held in self._waiting.values()), default=None)

    def _chain_of_record(self, record: StreamRecord) -> tuple[_Chain, list[Gap]]:
        """Return the chain to which a record belongs. Create the chain if it does not exist.

        Also return a list with at most one gap: records may be missing directly before this record.
        """
        source_is_known = record.source in self._sources
        chains = self._sources.setdefault(record.source, OrderedDict())
        self._sources.move_to_end(record.source)
        run, previous = record.sequence[:RUN_DIGITS], record.previous_sequence
        newest = max((known.last for known in chains.values()), default="")
        chain = self._continued_chain(chains, run, previous) or chains.get(run)
        if chain is None:
            chain = _Chain()
            if previous and not source_is_known and not self._complete:
                chain.unreported = previous
                chain.skip_to(previous)  # no gap: the earlier records were sent before this consumer began to read
        chains[run] = chain
        chains.move_to_end(run)
        self._discard_oldest(chains)
        after = chain.last or newest
        # After a kill, records that were not in the journal may be missing between the stored predecessor and this record.
        continues_older = previous[:RUN_DIGITS] != run and previous < chain.last
        is_uncertain = after != "" and (continues_older or not previous)
        gap = Gap(record.position.topic, record.source, after, "", record)
        return chain, [gap] if is_uncertain else []

    def _continued_chain(self, chains: OrderedDict[str, _Chain], run: str, previous: str) -> _Chain | None:
        """Return the chain of an earlier run that a record continues; None if the predecessor is not from an earlier run.

        Args:
            chains: the chains of the source, by run.
            run: the run of the record.
            previous: the record's `previoussequence`.
        """
        if not previous or previous[:RUN_DIGITS] == run:
            return None
        known = (
            previous[:RUN_DIGITS]
            if previous[:RUN_DIGITS] in chains
            else max((name for name in chains if name < run), default="")
        )
        chain, own = chains.get(known), chains.get(run)
        if chain is None or own is None or own is chain:
            return chain
        if own.last:
            return None
        for held in own.held.values():  # the waiting records of this chain precede the added record
            chain.hold(held)
            self._waiting[held.record.source, held.record.sequence] = chain, held
        return chain

    def _discard_oldest(self, chains: OrderedDict[str, _Chain]) -> None:
        """Discard the oldest runs of a source, and the oldest source, beyond the limits. Keep runs with waiting records."""
        for name in [name for name, chain in chains.items() if not chain.held][: max(0, len(chains) - _MAX_RUNS)]:
            del chains[name]
        if len(self._sources) > self._settings.max_sources:
            source = next(iter(self._sources))
            if any(chain.held for chain in self._sources[source].values()):
                self._sources.move_to_end(source)
            else:
                del self._sources[source]

    def _release_successors(self, chain: _Chain) -> Iterator[StreamRecord]:
        """Yield the waiting records that directly follow the last returned record, in order."""
        while chain.order and chain.held[chain.order[0]].record.previous_sequence <= chain.last:
            chain.last = heapq.heappop(chain.order)
            record = chain.held.pop(chain.last).record
            del self._waiting[record.source, record.sequence]
            yield record

    def _release_through(self, chain: _Chain, sequence: str) -> Iterator[StreamRecord | Gap]:
        """Yield the waiting records of the chain up to this `sequence`, then the later records up to the next gap."""
        while chain.order and chain.order[0] <= sequence:
            record = chain.held[chain.order[0]].record
            yield Gap(record.position.topic, record.source, chain.last, record.previous_sequence, record)
            chain.skip_to(record.previous_sequence)
            yield from self._release_successors(chain)


def _sequence_before(sequence: str) -> str:
    """Return the sequence directly before this one."""
    number = sequence[RUN_DIGITS:]
    return f"{sequence[:RUN_DIGITS]}{int(number) - 1:0{len(number)}d}" if number.isdecimal() else sequence[:-1]
