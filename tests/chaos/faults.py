"""Faults of brokers, of the agent and of the journal's disk, and the scripts that inject them."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from agent.delivery.drops import DropReason
from tests.chaos.environment import REQUEST_TIMEOUT_SECONDS, Environment
from tests.chaos.issuer_process import eventually
from tests.lab.kafka import Broker

BROKER_OUTAGE_SECONDS: Final = 2 * REQUEST_TIMEOUT_SECONDS + 1.5
"""How long a broker must be down so that requests to it time out, and then the batches for its partitions too."""
FILL_MEMORY_SECONDS: Final = 3.0
"""Approximate time in which events fill the memory that the agent may use for records."""
UNJOURNALED_SECONDS: Final = 60.0
"""How old an event may be that the agent on a busy machine has not yet read and journaled."""
DETECT_FULL_DISK_SECONDS: Final = 400.0
"""Maximum time until the journal reports that the disk is full. Until then, it writes to the free pages of its file."""

BACKLOG_RECORDS: Final = 10_000
BACKLOG_SECONDS: Final = 400.0
"""How many records must wait in the journal before it is damaged, and the maximum time until they do."""

# Faults of the brokers.


@contextlib.asynccontextmanager
async def brokers_killed(env: Environment, brokers: Sequence[Broker]) -> AsyncIterator[None]:
    """Kill brokers with SIGKILL, and start them again after the block."""
    _count_broker_fault(env, "killed", brokers)
    await _await_together(broker.kill() for broker in brokers)
    try:
        yield
    finally:
        await _await_together(broker.start() for broker in brokers)


@contextlib.asynccontextmanager
async def brokers_paused(env: Environment, brokers: Sequence[Broker]) -> AsyncIterator[None]:
    """Freeze brokers while the `with` block runs. Their connections stay open, but they answer no request."""
    _count_broker_fault(env, "paused", brokers)
    for broker in brokers:
        await broker.pause()
    try:
        yield
    finally:
        for broker in brokers:
            broker.resume()


def _count_broker_fault(env: Environment, fault: str, brokers: Sequence[Broker]) -> None:
    number = {1: "one broker", len(env.cluster.brokers): "all brokers"}.get(len(brokers), f"{len(brokers)} brokers")
    env.count_fault(f"{number} {fault}")


async def _await_together(starts: Iterable[Awaitable[None]]) -> None:
    """Await all concurrently, because brokers serve only after most of them have started."""
    await asyncio.gather(*starts)


# Faults of the agent.


async def agent_killed(env: Environment, _draw: random.Random | None = None) -> None:
    """Kill the agent with SIGKILL, and start another one."""
    env.count_fault("agent killed")
    await env.kill_agent()
    await env.start_agent()


async def agent_killed_at_start(env: Environment, draw: random.Random) -> None:
    """Kill the agent, kill the next one while it starts, and start a third one."""
    env.count_fault("agent killed", 2)
    await env.kill_agent()
    await env.start_agent_for(draw.uniform(0.2, 1.5))
    await env.start_agent()


async def agent_terminated(env: Environment, _draw: random.Random | None = None) -> None:
    """Stop the agent with SIGTERM, and start another one."""
    env.count_fault("agent terminated")
    await env.terminate_agent()
    await env.start_agent()


async def agent_frozen(env: Environment, draw: random.Random) -> None:
    """Freeze the agent for some seconds."""
    env.count_fault("agent frozen")
    env.agent.send_signal(signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(1.0, 5.0))
    env.agent.send_signal(signal.SIGCONT)
    await eventually(env.metrics, 120, "the agent answers after it was frozen")


AGENT_FAULTS: Final[tuple[Callable[[Environment, random.Random], Awaitable[None]], ...]] = (
    agent_killed,
    agent_killed_at_start,
    agent_terminated,
    agent_frozen,
)

# Faults of the journal's disk. A script must not kill the agent during such a fault: records that it cannot journal are only in memory.


@contextlib.asynccontextmanager
async def disk_full(env: Environment) -> AsyncIterator[None]:
    """Fill the journal's disk while the `with` block runs. After it, wait until the agent journals again and has delivered all records.

    The brokers must serve again by the end of the block.
    """
    if env.disk.mount_error is not None:
        env.report(f"the disk cannot be filled: {env.disk.mount_error}")
        yield
        return
    env.count_fault("journal's disk full")
    began_at = time.time()
    env.disk.fill()
    try:
        yield
    finally:
        env.disk.free()
    await eventually(lambda: _journal_has_state(env, up=True), DETECT_FULL_DISK_SECONDS, "the agent journals again")
    await env.wait_delivered()  # a kill would lose records that are in memory only, without a report
    env.expected_drops.append((DropReason.JOURNAL_UNAVAILABLE, began_at - UNJOURNALED_SECONDS, time.time()))


async def full_disk_detected(env: Environment) -> None:
    """Wait until the agent reports that it cannot journal."""
    if env.disk.mount_error is None:
        await eventually(
            lambda: _journal_has_state(env, up=False),
            DETECT_FULL_DISK_SECONDS,
            "the agent reports that it cannot journal",
        )


async def _journal_has_state(env: Environment, *, up: bool) -> bool:
    return (await env.metrics()).get("qmp_agent_journal_up") == up


# Scripts.


async def short_script(env: Environment, draw: random.Random) -> None:
    """Inject each kind of fault once. Kill and stop the agent while Kafka works, and while it does not."""
    await env.wait_recovered()  # the agent delivers
    single_broker = await env.broker_of_single_replica_topic()
    other_brokers = [broker for broker in env.cluster.brokers if broker is not single_broker]
    draw.shuffle(other_brokers)
    async with disk_full(env), brokers_paused(env, env.cluster.brokers):
        await full_disk_detected(env)
        await asyncio.sleep(
            FILL_MEMORY_SECONDS
        )  # records that memory cannot hold now are dropped, and must be reported
    await env.wait_recovered()
    await agent_killed(env)
    async with brokers_killed(env, other_brokers[:1]):
        await agent_killed(env)
        await asyncio.sleep(1.0)
    async with brokers_paused(env, [single_broker]):  # the topic with one replica has no leader
        await asyncio.sleep(BROKER_OUTAGE_SECONDS)
    async with brokers_paused(env, other_brokers):  # too few for acknowledgements and for elections
        await asyncio.sleep(1.0)
        await agent_killed(env)
    await env.wait_recovered()
    async with brokers_killed(env, env.cluster.brokers):
        await agent_terminated(env)
        await agent_killed_at_start(env, draw)


async def damage_script(env: Environment, draw: random.Random) -> None:
    """Overwrite a page of the journal while it has a backlog and the agent is down."""

    async def has_backlog() -> bool:
        return (await env.metrics()).get('qmp_agent_queue_records{queue="events"}', 0) > BACKLOG_RECORDS

    async with brokers_paused(env, env.cluster.brokers):
        await eventually(has_backlog, BACKLOG_SECONDS, f"{BACKLOG_RECORDS} records wait")
        await env.issuer.set_rate(0)  # so that only the damage loses records
        if draw.random() < 0.5:
            await env.terminate_agent()
        else:
            await env.kill_agent()
        env.count_fault("page of the journal overwritten")
        env.overwrite_page(draw)
        env.expected_drops.append((DropReason.CORRUPT, 0.0, time.time()))
        await env.start_agent()
        await env.issuer.set_rate(env.rate)


async def long_script(env: Environment, draw: random.Random, seconds: float) -> None:
    """Run the short script, and then inject random faults, one at a time or several at once, until `seconds` have passed."""
    deadline = time.monotonic() + seconds
    await short_script(env, draw)
    while time.monotonic() < deadline:
        await env.wait_recovered()
        await _inject_random_faults(env, draw)


async def _inject_random_faults(env: Environment, draw: random.Random) -> None:
    brokers = draw.sample(env.cluster.brokers, draw.choice((0, 1, 1, 1, 2, 2, 3)))
    broker_fault = draw.choice((brokers_killed, brokers_paused))
    fills_disk = draw.random() < 0.25
    async with contextlib.AsyncExitStack() as stack:
        if fills_disk:
            await stack.enter_async_context(disk_full(env))
        if brokers:
            await stack.enter_async_context(broker_fault(env, brokers))
            await asyncio.sleep(draw.uniform(0.0, 2.0))
        if not fills_disk:
            for _ in range(draw.randint(0 if brokers else 1, 4)):
                await draw.choice(AGENT_FAULTS)(env, draw)
                await asyncio.sleep(draw.uniform(0.0, 2.0))
        await asyncio.sleep(draw.uniform(0.0, 1.5 * BROKER_OUTAGE_SECONDS))
