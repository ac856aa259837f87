"""All that takes part in a run: three brokers, one agent after the other, an issuer of events and a disk for the journal."""

import asyncio
import contextlib
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import Final, Self

import aiohttp
import yaml
from aiokafka import AIOKafkaConsumer

from agent.delivery.drops import DropReason
from agent.delivery.journal.writer import FILE as JOURNAL
from tests.chaos import numbered
from tests.chaos.issuer_process import Disk, Issuer, eventually
from tests.lab.agent_process import AgentProcess
from tests.lab.kafka import Broker, KafkaCluster

REQUEST_TIMEOUT_SECONDS: Final = 3.0
DISK_BYTES: Final = 384 << 20
MEMORY_BUDGET: Final = 12 << 20
"""Small, so that a second or two without Kafka has records wait on disk alone."""
WINDOW_SECONDS: Final = 1.0
"""An event counts as accepted when it was written this long before its agent's end."""
STOP_SECONDS: Final = 5.0
FEW: Final = 20_000
"""Records that may wait while all is well: a few seconds' worth, on a machine that has much else to do."""
RECOVER_SECONDS: Final = 120.0
VMS: Final = 20
PARTITIONS: Final = 6
PAGE_BYTES: Final = 4096
"""A page of SQLite's."""

REPLICATED: Final = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}


class How(StrEnum):
    """How an agent ended."""

    KILLED = auto()
    TERMINATED = auto()


@dataclass(slots=True)
class Life:
    """One process of the agent, in nanoseconds of the monotonic clock; `ended_ns` is just before the signal was sent."""

    started_ns: int
    ended_ns: int = 0
    how: How | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Where records go.

    Attributes:
        events, samples, alerts: three replicas each, of which two have to be there.
        single: the events of one kind; it has one partition and one replica, so that it has no leader when that broker is gone.
    """

    events: str
    samples: str
    alerts: str
    single: str

    @classmethod
    def named(cls, prefix: str) -> Self:
        """Return names that begin so."""
        return cls(*(f"{prefix}.{name}" for name in ("events", "samples", "alerts", "single")))

    async def create(self, cluster: KafkaCluster) -> None:
        """Create them all."""
        for name in (self.events, self.samples, self.alerts):
            await cluster.create_topic(name, partitions=PARTITIONS, replication=3, config=REPLICATED)
        await cluster.create_topic(self.single)

    def config(self) -> dict[str, object]:
        """Return them as the agent's config names them."""
        route = {"type": f"qemu.event.{numbered.READY.lower()}", "topic": self.single}
        return {"events": self.events, "samples": self.samples, "alerts": self.alerts, "routes": [route]}


@dataclass(slots=True)
class World:
    """One run. Made by `running`.

    Attributes:
        lives: each process of the agent.
        rate: events a second.
        say: what tells a person how it goes.
        faults: how often each was done, by name.
        excuses: why and for which events, by their times, the agent may tell of a loss.
        complaints: what went wrong that the records cannot tell.
        recoveries: how long it took, each time, from the end of a fault until all was well.
    """

    folder: Path
    cluster: KafkaCluster
    topics: Topics
    issuer: Issuer
    disk: Disk
    agent: AgentProcess
    rate: float
    say: Callable[[str], None]
    lives: list[Life] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    excuses: list[tuple[DropReason, float, float]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, folder: Path, cluster: KafkaCluster, seed: int, rate: float, say: Callable[[str], None]
    ) -> AsyncIterator[Self]:
        """Run the issuer, at rest, and an agent, against brokers that run already, from entering to leaving."""
        topics = Topics.named(folder.name)
        await topics.create(cluster)
        with Disk.mounted(folder / "disk", DISK_BYTES) as disk:
            async with Issuer(folder, VMS, seed) as issuer:
                agent = _agent(folder, cluster, topics, issuer, disk)
                world = cls(folder, cluster, topics, issuer, disk, agent, rate, say)
                try:
                    await world.start_agent()
                    yield world
                finally:
                    await world.agent.kill()

    # The agent's lives.

    async def start_agent(self) -> None:
        """Start an agent and return when it answers."""
        self.lives.append(Life(time.monotonic_ns()))
        await self.agent.start()

    async def start_agent_for(self, seconds: float) -> None:
        """Start an agent, and kill it before it may have come to anything."""
        self.lives.append(Life(time.monotonic_ns()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.agent.start()
        await self.kill_agent()

    async def kill_agent(self) -> None:
        """Kill the agent with SIGKILL."""
        self._ends(How.KILLED)
        await self.agent.kill()

    async def terminate_agent(self) -> None:
        """Ask the agent to end, and see that it does, within its deadline and with status 0."""
        self._ends(How.TERMINATED)
        begin = time.monotonic()
        ended = await self.agent.stop(signal.SIGTERM)
        took = time.monotonic() - begin
        if ended.status or took > STOP_SECONDS + 5:
            self.complaints.append(f"the agent took {took:.1f} s to stop, and ended with {ended.status}")

    def _ends(self, how: How) -> None:
        self.lives[-1].ended_ns, self.lives[-1].how = time.monotonic_ns(), how

    # What the agent tells of itself.

    async def figures(self) -> dict[str, float]:
        """Return the agent's own series, by name with labels; empty while it does not answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            _, text = await self.agent.get("/metrics")
            return {name: float(value) for name, value in re.findall(r"^(qmp_agent_\S+) (\S+)$", text, re.MULTILINE)}
        return {}

    async def well(self) -> bool:
        """Say whether the agent watches all VMs, journals, delivers, and has delivered most of what there was."""
        figures = await self.figures()
        return (
            figures.get("qmp_agent_sink_up") == 1
            and figures.get("qmp_agent_journal_up") == 1
            and figures['qmp_agent_monitors{state="up"}'] == self.issuer.vms
            and figures['qmp_agent_queue_records{queue="events"}'] < FEW
        )

    async def recovered(self) -> None:
        """Wait until all is well."""
        begin = time.monotonic()
        try:
            await eventually(self.well, RECOVER_SECONDS / 3, "the agent is well")
        except AssertionError:
            self.say("the machine is slow: half as many events, until all is well")
            await self.issuer.rate(self.rate / 2)
            await eventually(self.well, RECOVER_SECONDS, "the agent is well")
            await self.issuer.rate(self.rate)
        self.recoveries.append(time.monotonic() - begin)
        self.say(f"all well after {self.recoveries[-1]:.1f} s")

    async def delivered(self) -> None:
        """Hold the issuing for as long as it takes until everything is delivered."""
        await self.issuer.rate(0)
        await eventually(self._empty, RECOVER_SECONDS, "everything is delivered")
        await self.issuer.rate(self.rate)

    async def fresh(self) -> float:
        """Wait for an event that is younger than this moment to come out of Kafka; return how long it took."""
        begin, since_ms = time.monotonic(), time.time_ns() // 1_000_000
        async with asyncio.timeout(RECOVER_SECONDS), self._consumer() as consumer:
            async for message in consumer:
                if message.timestamp > since_ms:
                    break
        return time.monotonic() - begin

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(self.topics.events, auto_offset_reset="latest", **self.cluster.client)

    async def finish(self) -> None:
        """Issue no more, wait until everything is delivered and all losses are told, and end the agent."""
        await self.issuer.rate(0)
        await eventually(self._empty, RECOVER_SECONDS, "everything is delivered")
        await self.terminate_agent()
        await self.start_agent()  # it tells at once of losses that the one before had only noted
        await self.recovered()
        await eventually(self._empty, RECOVER_SECONDS, "everything is delivered")
        await self.terminate_agent()
        await self.issuer.count()

    async def _empty(self) -> bool:
        return (await self.figures()).get('qmp_agent_queue_records{queue="events"}') == 0

    # What was done.

    def note(self, fault: str, times: int = 1) -> None:
        """Count a fault, and tell of it."""
        self.faults[fault] += times
        self.say(fault)

    def damage(self, draw: random.Random) -> None:
        """Overwrite a page in the midst of the journal's file."""
        with (self.disk.folder / "journal" / JOURNAL).open("r+b") as file:
            pages = file.seek(0, 2) // PAGE_BYTES
            page = draw.randrange(pages // 4, pages * 3 // 4)
            self.say(f"page {page} of {pages}")
            file.seek(page * PAGE_BYTES)
            file.write(draw.randbytes(PAGE_BYTES))

    async def broker_of_single(self) -> Broker:
        """Return the broker that alone has the topic with one replica."""
        async with self.cluster._admin() as admin:
            (found,) = await admin.describe_topics([self.topics.single])
        (partition,) = found["partitions"]
        leader: int = partition["leader"]
        return self.cluster.brokers[leader - 1]


def _agent(folder: Path, cluster: KafkaCluster, topics: Topics, issuer: Issuer, disk: Disk) -> AgentProcess:
    agent = AgentProcess(folder, {})
    config = {
        "host": numbered.HOST,
        "monitors": [{"dial": issuer.monitors}],
        "kafka": {
            "bootstrap_servers": cluster.bootstrap,
            "topics": topics.config(),
            "request_timeout": REQUEST_TIMEOUT_SECONDS,
        },
        "journal": {"directory": str(disk.folder / "journal"), "events": DISK_BYTES // 2, "samples": MEMORY_BUDGET},
        "buffer_memory": MEMORY_BUDGET,
        "web": {"listen_address": f"127.0.0.1:{agent.port}"},
        "timeouts": {"shutdown": STOP_SECONDS},
    }
    agent.config.write_text(yaml.safe_dump(config))
    return agent
