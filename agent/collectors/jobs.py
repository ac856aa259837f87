"""Jobs, polled at attach, after a job's event and each second while one runs.

query-block-jobs reports limits, pauses and I/O errors; query-jobs (QEMU 3.0) also reports jobs without a block device. QEMU reports no
rate, so the rate is derived from two polls.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Poll, Replies, on_event_only, require_type
from agent.collectors.untrusted import as_list_of_objects
from agent.model.family import Sample, Values
from agent.model.metrics.jobs import JOB
from agent.model.reader import Reader
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read = Reader(JOB)

MAX_JOBS = 256

_SETTLED = frozenset({"paused", "standby", "waiting", "pending", "concluded", "null"})
"""Statuses without progress, which an event ends."""


def _commands(facts: Facts) -> tuple[Command, ...]:
    return (Command("query-block-jobs"), *((Command("query-jobs"),) if facts.has_command("query-jobs") else ()))


def _collect(replies: Replies) -> Iterable[Sample]:
    """Merge the two replies; without query-jobs, a block job's offset and length are its progress."""
    jobs: dict[str, dict[str, Any]] = {}
    for job in as_list_of_objects(require_type(replies[0], list)):
        if isinstance(name := job.get("device"), str):  # despite its name, this is the job's id
            jobs[name] = {"current-progress": job.get("offset"), "total-progress": job.get("len")} | job
    for job in as_list_of_objects(require_type(replies[1], list)) if len(replies) > 1 else ():
        if isinstance(name := job.get("id"), str):
            jobs[name] = jobs.get(name, {}) | job
    return [_sample(name, job) for name, job in list(jobs.items())[:MAX_JOBS]]


def _sample(name: str, job: dict[str, Any]) -> Sample:
    kind = job.get("type")
    values = _read(job)
    if (goal := values.get("goal", 0)) > 0 and "progress" in values:
        values["progress_ratio"] = min(1.0, max(0.0, values["progress"] / goal))
    return Sample(
        JOB, (sanitize(name) or "unknown", sanitize(kind, 64) if isinstance(kind, str) and kind else "unknown"), values
    )


def _derive(before: Poll, now: Poll) -> Sequence[Sample]:
    return [
        Sample(s.family, s.labels, s.values | _rate(before.matching(s), s.values, now.at - before.at))
        for s in now.samples
    ]


def _rate(before: Sample | None, values: Values, seconds: float) -> Values:
    """Return the job's rate since the last poll and the remaining time at that rate."""
    if before is None or seconds <= 0 or not {"progress", "goal"} <= values.keys() & before.values.keys():
        return {}
    rate = max(0.0, (values["progress"] - before.values["progress"]) / seconds)
    left = max(0, values["goal"] - values["progress"])
    return {"progress_per_second": rate} | ({"remaining_seconds": left / rate} if rate > 0 else {})


def _next_poll_delay(samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    return min(_delays(samples, intervals), default=on_event_only(samples, facts, intervals))


def _delays(samples: Sequence[Sample], intervals: Intervals) -> Iterator[float]:
    for sample in samples:
        status = sample.values.get("status", "running")
        if status == "ready":  # a mirror can stay ready for days; it only copies the guest's writes
            yield max(intervals.poll, intervals.migration)
        elif status not in _SETTLED:
            yield intervals.migration


COLLECTOR = Collector(
    "jobs",
    (JOB,),
    _commands,
    _collect,
    _next_poll_delay,
    topology=lambda samples: {
        sample.labels for sample in samples
    },  # a job adds and removes nodes, such as a mirror's filter
    invalidates=("nodes",),
    derive=_derive,
)
