"""What the guest says of its memory, through its balloon driver, where somebody has set its polling interval."""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Answers, Collector, Facts, Intervals
from agent.model.family import Reader, Sample
from agent.model.metrics.memory import GUEST_MEMORY
from agent.qmp.commands import Command

_read = Reader(GUEST_MEMORY)


def _asks(facts: Facts) -> Sequence[Command]:
    if facts.balloon is None or facts.guest_stats_seconds == 0:
        return ()
    return (Command("qom-get", {"path": facts.balloon, "property": "guest-stats"}),)


def _collect(answers: Answers) -> Iterable[Sample]:
    (stats,) = answers
    if not isinstance(stats, dict) or not stats.get("last-update"):  # 0: the guest has never told
        return ()
    return (Sample(GUEST_MEMORY, (), _read(stats)),)


def _again(_samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    return max(intervals.guest_memory, facts.guest_stats_seconds) if facts.guest_stats_seconds else None


COLLECTOR = Collector("guest_memory", (GUEST_MEMORY,), _asks, _collect, _again)
