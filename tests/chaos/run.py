"""One run of the chaos tests: start, faults, verdict, and a table of figures."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.chaos.environment import Environment, ExitKind
from tests.chaos.issuer_process import eventually
from tests.chaos.judge import PROBLEM_KINDS, Verdict, judge, read_topics
from tests.lab.kafka import KafkaCluster

Script = Callable[[Environment, random.Random], Awaitable[None]]

_ATTACH_SECONDS: Final = 400.0
_MIN_EVENTS_SECONDS: Final = 400.0
_PROGRESS_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run.

    Attributes:
        script: injects the faults.
        seed: seed of the random choices of the script and of the issuer.
        rate: events per second.
        min_events: how many events to issue at least.
        report: called with lines of progress.
    """

    script: Script
    seed: int
    rate: float
    min_events: int = 0
    report: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run.

    Attributes:
        verdict: the findings.
        problems: broken guarantees; empty if there are none.
        table: the figures, in Markdown.
    """

    verdict: Verdict
    problems: list[str]
    table: str


async def run(folder: Path, cluster: KafkaCluster, plan: Plan) -> Result:
    """Issue events, inject faults, and compare the topics with the issued events. If there are problems, write the topics into `folder`."""
    begin = time.monotonic()

    def report(text: str) -> None:
        plan.report(f"{time.monotonic() - begin:6.1f} s  {text}")

    async with Environment.running(folder, cluster, plan.seed, plan.rate, report) as env:

        async def all_attached() -> bool:
            return (await env.issuer.count())[1] == env.issuer.vms

        async def enough_issued() -> bool:
            return (await env.issuer.count())[0] >= plan.min_events

        await eventually(all_attached, _ATTACH_SECONDS, "all VMs are attached")
        await env.issuer.set_rate(plan.rate)
        progress = asyncio.create_task(_report_progress(env))
        try:
            await plan.script(env, random.Random(plan.seed))
        finally:
            progress.cancel()
        fresh = await env.wait_fresh_event()
        report(f"a fresh event after {fresh:.1f} s")
        await env.wait_recovered()
        await eventually(enough_issued, _MIN_EVENTS_SECONDS, "enough events are issued")
        await env.finish()
        report("judging")
        verdict = await judge(env)
        problems = verdict.problems() + env.problems
        if problems:
            await _write_topics(env)
        return Result(verdict, problems, _table(env, verdict, fresh, time.monotonic() - begin))


async def _report_progress(env: Environment) -> None:
    """Report progress every few seconds, until cancelled."""
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        issued, ready = await env.issuer.count()
        waiting = (await env.metrics()).get('qmp_agent_queue_records{queue="events"}')
        state = "the agent does not answer" if waiting is None else f"{waiting:,.0f} records wait"
        env.report(f"{issued:,} issued, {ready} VMs attached, {state}")


async def _write_topics(env: Environment) -> None:
    topics = env.topics
    with (env.folder / "topics.jsonl").open("wb") as file:

        def write(topic: str, partition: int, key: bytes, value: bytes) -> None:
            file.write(orjson.dumps([topic, partition, key.decode()])[:-1] + b"," + value + b"]\n")

        await read_topics(env, (topics.events, topics.single, topics.alerts), write)


def _table(env: Environment, verdict: Verdict, fresh: float, seconds: float) -> str:
    killed, terminated = verdict.exits[ExitKind.KILLED], verdict.exits[ExitKind.TERMINATED]
    faults = ", ".join(f"{what}: {count}" for what, count in sorted(env.faults.items()))
    rows: list[tuple[str, object]] = [
        ("events issued", f"{verdict.issued:,}"),
        ("accepted", f"{verdict.accepted:,}"),
        ("delivered", f"{verdict.delivered:,}"),
        ("delivered again (same id)", f"{verdict.duplicates:,}"),
        ("accepted, but missing", f"{verdict.missing:,}"),
        ("reported as dropped", ", ".join(f"{n:,} {reason}" for reason, n in verdict.reported.items()) or 0),
        *((what, verdict.wrong[what]) for what in PROBLEM_KINDS),
        ("lost with a kill -9, of those read just before it", f"{killed.lost:,}"),
        ("the oldest of these was written before the kill", f"{killed.window_seconds * 1000:.0f} ms"),
        ("lost with a SIGTERM", f"{terminated.lost:,}"),
        ("the oldest of these was written before the agent disconnected", f"{terminated.window_seconds * 1000:.0f} ms"),
        ("fresh event after the last fault", f"{fresh:.1f} s"),
        ("longest recovery", f"{max(env.recoveries, default=0.0):.1f} s"),
        ("agent processes", len(env.processes)),
        ("faults", faults),
        ("duration", f"{seconds:.0f} s"),
    ]
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
