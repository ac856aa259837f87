"""Migration: asked when MIGRATION events say so, each second while one runs, and on a timer only where those events are off."""

from collections.abc import Iterable, Sequence

from agent.catalogue.metrics import MIGRATION
from agent.catalogue.model import Reader, Sample
from agent.collectors.base import Answers, Collector, Facts, Intervals, expect
from agent.qmp.commands import Ask

_read = Reader(MIGRATION)

ENDED = frozenset({"none", "completed", "failed", "cancelled"})
"""States in which nothing moves. Any other, one from a future QEMU too, is worth looking at each second."""


def _collect(answers: Answers) -> Iterable[Sample]:
    return (Sample(MIGRATION, (), {"status": "none"} | _read(expect(answers[0], dict))),)


def _again(samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    if any(sample.values["status"] not in ENDED for sample in samples):
        return intervals.migration
    return None if facts.migration_events else intervals.poll


COLLECTOR = Collector("migration", (MIGRATION,), lambda _facts: (Ask("query-migrate"),), _collect, _again)
