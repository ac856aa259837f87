"""The environment of a run: three brokers, one agent at a time, an event issuer, and a file system for the journal."""

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
from agent.delivery.journal.journal import JOURNAL_FILE
from tests.chaos import numbered_events
from tests.chaos.issuer_process import Disk, Issuer, eventually
from tests.lab.agent_process import AgentProcess
from tests.lab.kafka import Broker, KafkaCluster

REQUEST_TIMEOUT_SECONDS: Final = 3.0
DISK_BYTES: Final = 384 << 20
MEMORY_BUDGET: Final = 12 << 20
"""Bytes of memory for records. It is small, so that after a second or two without Kafka some records are only on disk."""
IDLE_ANSWERS: Final = 25
"""A journal without a commit during so many answers of the agent in a row, five a second, has no record to write."""
STOP_SECONDS: Final = 5.0
STOP_TOLERANCE_SECONDS: Final = 120.0
"""How much longer a stop may take, on a busy machine."""
MAX_WAITING_RECORDS: Final = 20_000
"""How many records may wait while everything works: those of a few seconds, on a busy machine."""
SLOW_SECONDS: Final = 40.0
"""After this time without a recovery, the issuer pauses, because the machine is slow."""
RECOVER_SECONDS: Final = 400.0
VMS: Final = 20
PARTITIONS: Final = 6
COMMITS: Final = "qmp_agent_journal_commits_total"
WAITING: Final = 'qmp_agent_queue_records{queue="events"}'
PAGE_BYTES: Final = 4096
"""Size of a page of SQLite."""

REPLICATED: Final = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}


class ExitKind(StrEnum):
    """How an agent exited."""

    KILLED = auto()
    TERMINATED = auto()


@dataclass(slots=True)
class AgentRun:
    """One process of the agent.

    Attributes:
        started_ns: when it was started, by the monotonic clock in nanoseconds.
        accepted_ns: until when it has journaled or delivered all events that were written to it, by the same clock; 0 if that is unknown.
        ended_ns: the time just before the signal that ended it, by the same clock.
        exit: how it exited; None while it runs.
    """

    started_ns: int
    accepted_ns: int = 0
    ended_ns: int = 0
    exit: ExitKind | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the Kafka topics.

    Attributes:
        events: topic with three replicas; two of them must be in sync.
        samples: topic with the same replicas.
        alerts: topic with the same replicas.
        state: compacted state topic.
        single: topic of one event type, with one partition and one replica. It has no leader while the broker of the replica is down.
    """

    events: str
    samples: str
    alerts: str
    state: str
    single: str

    @classmethod
    def named(cls, prefix: str) -> Self:
        """Return topics whose names begin with a prefix."""
        return cls(*(f"{prefix}.{name}" for name in ("events", "samples", "alerts", "state", "single")))

    async def create(self, cluster: KafkaCluster) -> None:
        """Create all topics."""
        for name in (self.events, self.samples, self.alerts):
            await cluster.create_topic(name, partitions=PARTITIONS, replication=3, config=REPLICATED)
        compacted = {**REPLICATED, "cleanup.policy": "compact"}
        await cluster.create_topic(self.state, partitions=PARTITIONS, replication=3, config=compacted)
        await cluster.create_topic(self.single)

    def config(self) -> dict[str, object]:
        """Return the section `kafka.topics` of the agent's config."""
        route = {"type": f"qemu.event.{numbered_events.READY.lower()}", "topic": self.single}
        kinds = {"events": self.events, "samples": self.samples, "alerts": self.alerts, "state": self.state}
        return {**kinds, "routes": [route]}


@dataclass(slots=True)
class Environment:
    """Brokers, issuer, disk and agent of a run; `running` creates it.

    Attributes:
        folder: the directory of the run.
        cluster: the brokers.
        topics: the topics.
        issuer: the issuer of events.
        disk: the journal's file system.
        agent: the agent.
        rate: events per second.
        report: called with lines of progress.
        processes: all processes of the agent.
        faults: how often each fault was injected.
        expected_drops: reasons and times, in seconds since the epoch, of events that the agent may report as dropped.
        problems: problems that do not appear in any topic.
        recoveries: seconds from the end of each fault until everything worked.
    """

    folder: Path
    cluster: KafkaCluster
    topics: Topics
    issuer: Issuer
    disk: Disk
    agent: AgentProcess
    rate: float
    report: Callable[[str], None]
    processes: list[AgentRun] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    expected_drops: list[tuple[DropReason, float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, folder: Path, cluster: KafkaCluster, seed: int, rate: float, report: Callable[[str], None]
    ) -> AsyncIterator[Self]:
        """Run the issuer, at rate 0, and an agent inside `async with`; the brokers are already running."""
        topics = Topics.named(folder.name)
        await topics.create(cluster)
        with Disk.mounted(folder / "disk", DISK_BYTES) as disk:
            async with Issuer(folder, VMS, seed) as issuer:
                agent = _make_agent(folder, cluster, topics, issuer, disk)
                env = cls(folder, cluster, topics, issuer, disk, agent, rate, report)
                try:
                    await env.start_agent()
                    yield env
                finally:
                    await env.agent.kill()

    # Processes of the agent.

    async def start_agent(self) -> None:
        """Start an agent and wait until it answers."""
        self.processes.append(AgentRun(time.monotonic_ns()))
        await self.agent.start()

    async def start_agent_for(self, seconds: float) -> None:
        """Start an agent, and kill it after `seconds`, even if it is still starting."""
        self.processes.append(AgentRun(time.monotonic_ns()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.agent.start()
        self._record_end(ExitKind.KILLED)
        await self.agent.kill()

    async def kill_agent(self) -> None:
        """Kill the agent with SIGKILL."""
        await self._wait_accepted()
        self._record_end(ExitKind.KILLED)
        await self.agent.kill()

    async def terminate_agent(self) -> None:
        """Stop the agent with SIGTERM, and check that it exits within its deadline and with status 0."""
        await self._wait_accepted()
        self._record_end(ExitKind.TERMINATED)
        begin = time.monotonic()
        ended = await self.agent.stop(signal.SIGTERM)
        duration = time.monotonic() - begin
        if ended.status or duration > STOP_SECONDS + STOP_TOLERANCE_SECONDS:
            self.problems.append(f"the agent took {duration:.1f} s to stop, and exited with status {ended.status}")

    async def _wait_accepted(self) -> None:
        """Wait until the agent has journaled or delivered all events that are written to it now, and record this time.

        An agent that answers a request has read what was written to its sockets before. The next transaction of its journal has the
        records of these events. A transaction that is under way may not have them. An empty queue has delivered them.
        """
        now_ns = time.monotonic_ns()
        first = last = (await self._answer()).get(COMMITS, 0.0)
        idle_answers = 0

        async def is_journaled() -> bool:
            nonlocal last, idle_answers  # answers, and not seconds, in which the agent may not have run at all
            metrics = await self._answer()
            commits = metrics.get(COMMITS, 0.0)
            idle_answers = idle_answers + 1 if commits == last else 0
            last = commits
            return commits >= first + 2 or idle_answers >= IDLE_ANSWERS or metrics.get(WAITING) == 0

        await eventually(is_journaled, RECOVER_SECONDS, "the agent journals what it has read")
        self.processes[-1].accepted_ns = now_ns

    async def _answer(self) -> dict[str, float]:
        """Return the agent's own metrics. Wait until it answers."""
        metrics: dict[str, float] = {}

        async def answers() -> bool:
            nonlocal metrics
            metrics = await self.metrics()
            return bool(metrics)

        await eventually(answers, RECOVER_SECONDS, "the agent answers")
        return metrics

    def _record_end(self, kind: ExitKind) -> None:
        self.processes[-1].ended_ns, self.processes[-1].exit = time.monotonic_ns(), kind

    # The agent's own metrics.

    async def metrics(self) -> dict[str, float]:
        """Return the agent's own metrics, by name with labels; empty while it does not answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            _, text = await self.agent.get("/metrics")
            return {name: float(value) for name, value in re.findall(r"^(qmp_agent_\S+) (\S+)$", text, re.MULTILINE)}
        return {}

    async def is_healthy(self) -> bool:
        """Return whether the agent watches all VMs, journals and delivers, and has few waiting records."""
        metrics = await self.metrics()
        return (
            metrics.get("qmp_agent_sink_up") == 1
            and metrics.get("qmp_agent_journal_up") == 1
            and metrics['qmp_agent_monitors{state="up"}'] == self.issuer.vms
            and metrics['qmp_agent_queue_records{queue="events"}'] < MAX_WAITING_RECORDS
        )

    async def wait_recovered(self) -> None:
        """Wait until the agent is healthy."""
        begin = time.monotonic()
        try:
            await eventually(self.is_healthy, SLOW_SECONDS, "the agent is healthy")
        except AssertionError:
            self.report("the machine is slow: no events until the agent is healthy")
            await self.issuer.set_rate(0)
            await eventually(self.is_healthy, RECOVER_SECONDS, "the agent is healthy")
            await self.issuer.set_rate(self.rate)
        self.recoveries.append(time.monotonic() - begin)
        self.report(f"healthy after {self.recoveries[-1]:.1f} s")

    async def wait_delivered(self) -> None:
        """Pause the issuer until everything is delivered."""
        await self.issuer.set_rate(0)
        await eventually(self._events_are_delivered, RECOVER_SECONDS, "everything is delivered")
        await self.issuer.set_rate(self.rate)

    async def wait_fresh_event(self) -> float:
        """Wait until an event is delivered that is issued after this call. Return how many seconds that took."""
        begin, since_ms = time.monotonic(), time.time_ns() // 1_000_000
        async with asyncio.timeout(RECOVER_SECONDS), self._consumer() as consumer:
            async for message in consumer:
                if message.timestamp > since_ms:
                    break
        return time.monotonic() - begin

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(self.topics.events, auto_offset_reset="latest", **self.cluster.client)

    async def finish(self) -> None:
        """Stop the issuer, wait until everything is delivered and all drops are reported, and stop the agent."""
        await self.issuer.set_rate(0)
        await eventually(self._events_are_delivered, RECOVER_SECONDS, "everything is delivered")
        await self.terminate_agent()
        await self.start_agent()  # it reports drops that the agent before had only stored
        await self.wait_recovered()
        await eventually(self._events_are_delivered, RECOVER_SECONDS, "everything is delivered")
        await self.terminate_agent()
        await self.issuer.count()

    async def _events_are_delivered(self) -> bool:
        return (await self.metrics()).get(WAITING) == 0

    # Faults.

    def count_fault(self, fault: str, times: int = 1) -> None:
        """Count and report a fault."""
        self.faults[fault] += times
        self.report(fault)

    def overwrite_page(self, draw: random.Random) -> None:
        """Overwrite a random page in the middle of the journal's file."""
        with (self.disk.folder / "journal" / JOURNAL_FILE).open("r+b") as file:
            pages = file.seek(0, 2) // PAGE_BYTES
            page = draw.randrange(pages // 4, pages * 3 // 4)
            self.report(f"page {page} of {pages}")
            file.seek(page * PAGE_BYTES)
            file.write(draw.randbytes(PAGE_BYTES))

    async def broker_of_single_replica_topic(self) -> Broker:
        """Return the broker of the topic with one replica."""
        leader = 0

        async def has_leader() -> bool:
            nonlocal leader
            async with self.cluster._admin() as admin:
                (topic,) = await admin.describe_topics([self.topics.single])
            (partition,) = topic["partitions"]
            leader = partition["leader"]
            return bool(leader > 0)

        await eventually(has_leader, RECOVER_SECONDS, "the topic with one replica has a leader")
        return self.cluster.brokers[leader - 1]


def _make_agent(folder: Path, cluster: KafkaCluster, topics: Topics, issuer: Issuer, disk: Disk) -> AgentProcess:
    agent = AgentProcess(folder, {}, is_forked=False)  # some faults hit an agent that starts
    config = {
        "host": numbered_events.HOST,
        "monitors": [{"dial": issuer.monitors}],
        "kafka": {
            "bootstrap_servers": cluster.bootstrap,
            "topics": topics.config(),
            "request_timeout": REQUEST_TIMEOUT_SECONDS,
        },
        "journal": {
            "directory": str(disk.folder / "journal"),
            "max_size": {"events": DISK_BYTES // 2, "samples": MEMORY_BUDGET},
        },
        "buffer_memory": MEMORY_BUDGET,
        "web": {"listen_address": f"127.0.0.1:{agent.port}"},
        # An issuer without CPU time is no busy monitor, whose connection the agent closes.
        "timeouts": {"shutdown": STOP_SECONDS, "greeting": "120s", "response": "120s"},
    }
    agent.config.write_text(yaml.safe_dump(config))
    return agent
