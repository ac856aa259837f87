"""What is done to a run: the faults, a short script that has each of them, and a long one that is drawn from a seed."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from agent.delivery.drops import DropReason
from tests.chaos.issuer_process import eventually
from tests.chaos.participants import REQUEST_TIMEOUT_SECONDS, WINDOW_SECONDS, World
from tests.lab.kafka import Broker

LONGER_SECONDS: Final = 2 * REQUEST_TIMEOUT_SECONDS + 1.5
"""How long a broker is away so that requests to it time out, its partitions have no leader, and batches for these time out too."""
MEMORY_SECONDS: Final = 3.0
"""How long it takes, more or less, to fill the memory that the agent may use."""
FEEL_SECONDS: Final = 15.0
"""How long it takes at most until the journal feels that its disk is full: it has some pages left inside."""

MUCH: Final = 10_000
MUCH_SECONDS: Final = 30.0
"""How many records wait in a journal that is worth damaging, and how long they take to gather."""

# Of the brokers.


@contextlib.asynccontextmanager
async def killed(world: World, brokers: Sequence[Broker]) -> AsyncIterator[None]:
    """Have brokers killed with SIGKILL while the block runs; they serve again when this has ended."""
    _count(world, "killed", brokers)
    await _together(broker.kill() for broker in brokers)
    try:
        yield
    finally:
        await _together(broker.start() for broker in brokers)


@contextlib.asynccontextmanager
async def paused(world: World, brokers: Sequence[Broker]) -> AsyncIterator[None]:
    """Have brokers stopped in their tracks while the block runs: connections stay, nothing is answered."""
    _count(world, "paused", brokers)
    for broker in brokers:
        await broker.pause()
    try:
        yield
    finally:
        for broker in brokers:
            broker.resume()


def _count(world: World, what: str, brokers: Sequence[Broker]) -> None:
    number = {1: "one broker", len(world.cluster.brokers): "all brokers"}.get(len(brokers), f"{len(brokers)} brokers")
    world.note(f"{number} {what}")


async def _together(starts: Iterable[Awaitable[None]]) -> None:
    """Await all at once: of several brokers none serves before most of them run."""
    await asyncio.gather(*starts)


# Of the agent.


async def agent_killed(world: World, _draw: random.Random | None = None) -> None:
    """Kill the agent with SIGKILL, and start another."""
    world.note("agent killed")
    await world.kill_agent()
    await world.start_agent()


async def agent_killed_young(world: World, draw: random.Random) -> None:
    """Kill the agent, and the next one while it starts, and start a third."""
    world.note("agent killed", 2)
    await world.kill_agent()
    await world.start_agent_for(draw.uniform(0.2, 1.5))
    await world.start_agent()


async def agent_terminated(world: World, _draw: random.Random | None = None) -> None:
    """Ask the agent to end, and start another."""
    world.note("agent terminated")
    await world.terminate_agent()
    await world.start_agent()


async def agent_frozen(world: World, draw: random.Random) -> None:
    """Stop the agent in its tracks for some seconds."""
    world.note("agent frozen")
    world.agent.send_signal(signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(1.0, 5.0))
    world.agent.send_signal(signal.SIGCONT)
    await eventually(world.figures, 20, "an agent that was frozen answers")


AGENT_FAULTS: Final[tuple[Callable[[World, random.Random], Awaitable[None]], ...]] = (
    agent_killed,
    agent_killed_young,
    agent_terminated,
    agent_frozen,
)

# Of the journal's disk. The agent must not be killed meanwhile: what it cannot journal it has in memory only, as it says.


@contextlib.asynccontextmanager
async def disk_full(world: World) -> AsyncIterator[None]:
    """Have the journal's disk full while the block runs; when this has ended, the agent journals again, and has delivered all there was.

    So the brokers have to be back by the block's end.
    """
    if world.disk.cannot is not None:
        world.say(f"the disk is not filled: {world.disk.cannot}")
        yield
        return
    world.note("journal's disk full")
    begin = time.time()
    world.disk.fill()
    try:
        yield
    finally:
        world.disk.free()
    await eventually(lambda: _journals(world, up=True), FEEL_SECONDS, "the agent journals again")
    await world.delivered()  # what is in memory alone would go with a kill, and neither be journaled nor told of
    world.excuses.append((DropReason.JOURNAL_UNAVAILABLE, begin - MEMORY_SECONDS, time.time()))


async def felt(world: World) -> None:
    """Wait until the agent says that it cannot journal."""
    if world.disk.cannot is None:
        await eventually(lambda: _journals(world, up=False), FEEL_SECONDS, "the agent says that it cannot journal")


async def _journals(world: World, *, up: bool) -> bool:
    return (await world.figures()).get("qmp_agent_journal_up") == up


# Scripts.


async def short(world: World, draw: random.Random) -> None:
    """Do each kind of fault, the agent's ends in good and in bad weather."""
    await world.recovered()  # it has come to deliver
    single = await world.broker_of_single()
    others = [broker for broker in world.cluster.brokers if broker is not single]
    draw.shuffle(others)
    async with disk_full(world), paused(world, world.cluster.brokers):
        await felt(world)
        await asyncio.sleep(MEMORY_SECONDS)  # what memory cannot hold now is lost, and has to be told
    await world.recovered()
    await agent_killed(world)
    async with killed(world, others[:1]):
        await agent_killed(world)
        await asyncio.sleep(1.0)
    async with paused(world, [single]):  # no leader for the topic that has no replica
        await asyncio.sleep(LONGER_SECONDS)
    async with paused(world, others):  # too few for an acknowledgement, and for electing anybody
        await asyncio.sleep(1.0)
        await agent_killed(world)
    await world.recovered()
    async with killed(world, world.cluster.brokers):
        await agent_terminated(world)
        await agent_killed_young(world, draw)


async def damage(world: World, draw: random.Random) -> None:
    """Overwrite a page of the journal, with much in it and the agent down."""

    async def much() -> bool:
        return (await world.figures()).get('qmp_agent_queue_records{queue="events"}', 0) > MUCH

    async with paused(world, world.cluster.brokers):
        await eventually(much, MUCH_SECONDS, f"{MUCH} records wait")
        await world.issuer.rate(0)
        await asyncio.sleep(1.5 * WINDOW_SECONDS)  # what is missing then is so for the damage alone
        if draw.random() < 0.5:
            await world.terminate_agent()
        else:
            await world.kill_agent()
        world.note("page of the journal overwritten")
        world.damage(draw)
        world.excuses.append((DropReason.CORRUPT, 0.0, time.time()))
        await world.start_agent()
        await world.issuer.rate(world.rate)


async def long(world: World, draw: random.Random, seconds: float) -> None:
    """Do the short script, and then faults as they are drawn, one after the other and several at once, for so long in all."""
    deadline = time.monotonic() + seconds
    await short(world, draw)
    while time.monotonic() < deadline:
        await world.recovered()
        await _episode(world, draw)


async def _episode(world: World, draw: random.Random) -> None:
    brokers = draw.sample(world.cluster.brokers, draw.choice((0, 1, 1, 1, 2, 2, 3)))
    weather = draw.choice((killed, paused))
    full = draw.random() < 0.25
    async with contextlib.AsyncExitStack() as faults:
        if full:
            await faults.enter_async_context(disk_full(world))
        if brokers:
            await faults.enter_async_context(weather(world, brokers))
            await asyncio.sleep(draw.uniform(0.0, 2.0))
        if not full:
            for _ in range(draw.randint(0 if brokers else 1, 4)):
                await draw.choice(AGENT_FAULTS)(world, draw)
                await asyncio.sleep(draw.uniform(0.0, 2.0))
        await asyncio.sleep(draw.uniform(0.0, 1.5 * LONGER_SECONDS))
