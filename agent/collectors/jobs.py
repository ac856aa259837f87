"""QEMU's jobs, such as backups and mirrors: polled at attach, after a job's event, and at a short interval while a job runs.

query-block-jobs reports limits, pauses and I/O errors. query-jobs (QEMU 3.0) also reports jobs without a block device. QEMU reports no
rate, so the agent derives the rate from two polls.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agent.collectors.base import (
    Collector,
    PollIntervals,
    PollResult,
    Replies,
    VmFacts,
    on_event_else_poll_interval,
    require_type,
)
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.jobs import JOB
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read = FieldReader(JOB)

MAX_JOBS = 256

_WAITING_STATUSES = frozenset({"paused", "standby", "waiting", "pending", "concluded", "null"})
"""Statuses in which a job makes no progress. The agent does not poll these jobs, because an event reports the next status."""


def _commands(facts: VmFacts) -> tuple[Command, ...]:
    return (Command("query-block-jobs"), *((Command("query-jobs"),) if facts.has_command("query-jobs") else ()))


def _collect(replies: Replies) -> Iterable[Sample]:
    """Merge the two replies by job. Without query-jobs, a block job's offset is its progress, and its length is its target."""
    jobs: dict[str, dict[str, Any]] = {}
    for job in list_of_objects_or_empty(require_type(replies[0], list)):
        if isinstance(name := job.get("device"), str):  # `device` contains the job's id
            jobs[name] = {"current-progress": job.get("offset"), "total-progress": job.get("len")} | job
    for job in list_of_objects_or_empty(require_type(replies[1], list)) if len(replies) > 1 else ():
        if isinstance(name := job.get("id"), str):
            jobs[name] = jobs.get(name, {}) | job
    return [_to_sample(name, job) for name, job in list(jobs.items())[:MAX_JOBS]]


def _to_sample(name: str, job: dict[str, Any]) -> Sample:
    values = _read(job)
    if (target := values.get("progress_target", 0)) > 0 and "progress" in values:
        values["progress_ratio"] = min(1.0, max(0.0, values["progress"] / target))
    job_type = sanitize(text_or_empty(job.get("type")), 64)
    return Sample(JOB, (sanitize(name) or "unknown", job_type or "unknown"), values)


def _derive(before: PollResult, now: PollResult) -> Sequence[Sample]:
    seconds = now.monotonic_seconds - before.monotonic_seconds
    return [
        Sample(job.family, job.labels, job.values | _rate_fields(before.find_matching_sample(job), job.values, seconds))
        for job in now.samples
    ]


def _rate_fields(before: Sample | None, values: FieldValues, seconds: float) -> FieldValues:
    """Return a job's rate over the `seconds` since the last poll, and the remaining time at this rate."""
    if before is None or seconds <= 0 or not {"progress", "progress_target"} <= values.keys() & before.values.keys():
        return {}
    rate = max(0.0, (values["progress"] - before.values["progress"]) / seconds)
    remaining = max(0, values["progress_target"] - values["progress"])
    return {"progress_per_second": rate} | ({"remaining_seconds": remaining / rate} if rate > 0 else {})


def _next_poll_delay(samples: Sequence[Sample], facts: VmFacts, intervals: PollIntervals) -> float | None:
    return min(_delays_of_jobs(samples, intervals), default=on_event_else_poll_interval(samples, facts, intervals))


def _delays_of_jobs(samples: Sequence[Sample], intervals: PollIntervals) -> Iterator[float]:
    for sample in samples:
        status = sample.values.get("status", "running")
        if status == "ready":  # a mirror can be ready for days, and copies only the guest's writes then
            yield max(intervals.poll, intervals.migrations_and_jobs)
        elif status not in _WAITING_STATUSES:
            yield intervals.migrations_and_jobs


COLLECTOR = Collector(
    "jobs",
    (JOB,),
    _commands,
    _collect,
    _next_poll_delay,
    topology=lambda samples: {sample.labels for sample in samples},
    invalidates=("nodes",),  # a job adds and removes nodes, such as the filter node of a mirror
    derive=_derive,
)
