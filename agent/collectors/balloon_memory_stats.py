"""Memory statistics from the guest's balloon driver. The agent reads the statistics only if QEMU polls the guest for statistics."""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, PollIntervals, Replies, VmFacts, optional_reply
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import GUEST_MEMORY
from agent.qmp.commands import Command

_read = FieldReader(GUEST_MEMORY)


def _commands(facts: VmFacts) -> Sequence[Command]:
    if facts.balloon is None or facts.guest_stats_seconds == 0:
        return ()
    return (Command("qom-get", {"path": facts.balloon, "property": "guest-stats"}),)


def _collect(replies: Replies) -> Iterable[Sample]:
    stats = optional_reply(replies[0], dict)
    if stats is None or not stats.get("last-update"):  # 0: the guest has not sent any statistics yet
        return ()
    return (Sample(GUEST_MEMORY, (), _read(stats)),)


def _next_poll_delay(_samples: Sequence[Sample], facts: VmFacts, intervals: PollIntervals) -> float | None:
    return max(intervals.guest_memory, facts.guest_stats_seconds) if facts.guest_stats_seconds else None


COLLECTOR = Collector("guest_memory", (GUEST_MEMORY,), _commands, _collect, _next_poll_delay)
