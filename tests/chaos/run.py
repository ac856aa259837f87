"""One run from its beginning to its verdict, and what is kept of it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.chaos.issuer_process import eventually
from tests.chaos.judge import WRONG, Verdict, judge, read
from tests.chaos.participants import WINDOW_SECONDS, How, World
from tests.lab.kafka import KafkaCluster

Script = Callable[[World, random.Random], Awaitable[None]]

_ATTACH_SECONDS: Final = 20.0
_ENOUGH_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        script: the faults.
        seed: what it, and the issuer, draw from.
        rate: events a second.
        least: how many events to issue at least.
        say: what tells a person how it goes.
    """

    script: Script
    seed: int
    rate: float
    least: int = 0
    say: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Result:
    """How a run went.

    Attributes:
        problems: what must not be; empty when all is well.
        table: the figures, in markdown.
    """

    verdict: Verdict
    problems: list[str]
    table: str


async def run(folder: Path, cluster: KafkaCluster, plan: Plan) -> Result:
    """Issue, do the faults, and judge. Where something is wrong, what Kafka has is left in the empty `folder`, beside the logs."""
    begin = time.monotonic()

    def say(text: str) -> None:
        plan.say(f"{time.monotonic() - begin:6.1f} s  {text}")

    async with World.running(folder, cluster, plan.seed, plan.rate, say) as world:

        async def attached() -> bool:
            return (await world.issuer.count())[1] == world.issuer.vms

        async def enough() -> bool:
            return (await world.issuer.count())[0] >= plan.least

        await eventually(attached, _ATTACH_SECONDS, "all VMs are watched")
        await world.issuer.rate(plan.rate)
        telling = asyncio.create_task(_tell(world))
        try:
            await plan.script(world, random.Random(plan.seed))
        finally:
            telling.cancel()
        fresh = await world.fresh()
        say(f"a fresh event after {fresh:.1f} s")
        await world.recovered()
        await eventually(enough, _ENOUGH_SECONDS, "enough events are issued")
        await world.finish()
        say("judging")
        verdict = await judge(world)
        problems = verdict.problems() + world.complaints
        if problems:
            await _dump(world)
        return Result(verdict, problems, _table(world, verdict, fresh, time.monotonic() - begin))


async def _tell(world: World) -> None:
    """Tell every few seconds how it goes, until cancelled."""
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        issued, ready = await world.issuer.count()
        waiting = (await world.figures()).get('qmp_agent_queue_records{queue="events"}')
        waits = "the agent does not answer" if waiting is None else f"{waiting:,.0f} records wait"
        world.say(f"{issued:,} issued, {ready} VMs watched, {waits}")


async def _dump(world: World) -> None:
    topics = world.topics
    with (world.folder / "topics.jsonl").open("wb") as file:

        def write(topic: str, partition: int, key: bytes, value: bytes) -> None:
            file.write(orjson.dumps([topic, partition, key.decode()])[:-1] + b"," + value + b"]\n")

        await read(world, (topics.events, topics.single, topics.alerts), write)


def _table(world: World, verdict: Verdict, fresh: float, seconds: float) -> str:
    killed, terminated = verdict.ends[How.KILLED], verdict.ends[How.TERMINATED]
    faults = ", ".join(f"{what}: {count}" for what, count in sorted(world.faults.items()))
    rows: list[tuple[str, object]] = [
        ("events issued", f"{verdict.issued:,}"),
        ("accepted", f"{verdict.accepted:,}"),
        ("delivered", f"{verdict.delivered:,}"),
        ("delivered again (same id)", f"{verdict.duplicates:,}"),
        ("accepted, but missing", f"{verdict.missing:,}"),
        ("told as lost", ", ".join(f"{n:,} {reason}" for reason, n in verdict.told.items()) or 0),
        *((what, verdict.wrong[what]) for what in WRONG),
        (f"gone with a kill -9, of the last {WINDOW_SECONDS:g} s", f"{killed.lost:,}"),
        ("the oldest of these was written before the kill", f"{killed.window_seconds * 1000:.0f} ms"),
        ("gone with a SIGTERM", f"{terminated.lost:,}"),
        ("the oldest of these was written before the agent hung up", f"{terminated.window_seconds * 1000:.0f} ms"),
        ("fresh event after the last fault", f"{fresh:.1f} s"),
        ("longest until all was well again", f"{max(world.recoveries, default=0.0):.1f} s"),
        ("agents' lives", len(world.lives)),
        ("faults", faults),
        ("took", f"{seconds:.0f} s"),
    ]
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
