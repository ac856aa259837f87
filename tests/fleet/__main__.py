"""Fleet test: `python -m tests.fleet --minutes 10`. Five agents with 200 scripted VMs under the Flink jobs; one agent is killed.

The run has a real Kafka and a real Flink. It passes if the job of silent hosts reports the killed agent within 90 seconds, reports it as
back after its restart, and reports no other host in the whole run. In the end a reader of the state topic, and the job of the current
state, have all VMs and the hosts that run them, and the consumers' library finds no gap in the records. Only the samples of the killed
agent may have gaps, because samples are not journaled.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from aiokafka import AIOKafkaConsumer

from agent.consumer.kafka_consumer import ForeignMessage, RecordConsumer
from agent.consumer.record_orderer import Gap
from agent.consumer.state_reader import StateReader
from tests.bench.monitors import Monitors
from tests.lab.agent_process import AgentProcess
from tests.lab.flink import FlinkJobs
from tests.lab.kafka import KafkaCluster
from tests.lab.waiting import until

HOSTS: Final = 5
VMS_PER_HOST: Final = 40
PARTITIONS: Final = 6
SILENT_SECONDS: Final = 90.0
"""A killed agent must be reported within this time."""
START_SECONDS: Final = 900.0
"""Deadline of the first result of the jobs, and of the last: generous, for a machine under load."""
TOPICS: Final = ("qemu.events", "qemu.alerts", "qemu.samples", "qemu.state")
RESULTS: Final = ("fleet.silent_hosts", "fleet.top_talkers", "fleet.vms")


@dataclass(slots=True)
class Fleet:
    """The participants of a run.

    Attributes:
        agents: The agents by the names of their hosts.
        jobs: The Flink jobs.
        silent: Hosts that the job reported, with the time; False stands for a host that is back.
        hosts_of_vms: The host of each VM, from the job of the current state.
        results: The number of messages by topic.
    """

    agents: dict[str, AgentProcess]
    jobs: FlinkJobs
    silent: list[tuple[float, str, bool]] = field(default_factory=list)
    hosts_of_vms: dict[str, str] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))

    async def collect(self, kafka: KafkaCluster) -> None:
        """Store the results of the jobs as they arrive, until cancelled."""
        async with AIOKafkaConsumer(*RESULTS, auto_offset_reset="earliest", **kafka.client) as consumer:
            async for message in consumer:
                self.results[message.topic] += 1
                if message.topic == "fleet.silent_hosts":
                    self.silent.append((time.monotonic(), message.key.decode(), message.value is not None))
                elif message.topic == "fleet.vms" and message.value is not None:
                    self.hosts_of_vms[message.key.decode()] = json.loads(message.value)["host"]
                elif message.topic == "fleet.vms":
                    self.hosts_of_vms.pop(message.key.decode(), None)

    def reported(self, host: str, *, silent: bool) -> float | None:
        """Return when a host was first reported as silent or as back; None if it was not."""
        return next((at for at, name, is_silent in self.silent if (name, is_silent) == (host, silent)), None)


def print_line(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def running_fleet(folder: Path, kafka: KafkaCluster) -> AsyncIterator[Fleet]:
    """Run the VMs, the agents and the jobs while the block runs."""
    for topic in TOPICS:
        policy = "compact" if topic == "qemu.state" else "delete"
        config = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": policy}
        await kafka.create_topic(topic, partitions=PARTITIONS, config=config)
    for topic in (*RESULTS, "fleet.clock"):
        await kafka.create_topic(topic, partitions=PARTITIONS)
    (folder / "vms").mkdir()
    async with AsyncExitStack() as stack:
        vms = await stack.enter_async_context(Monitors(folder / "vms", HOSTS * VMS_PER_HOST))
        agents = {}
        for number in range(HOSTS):
            paths = vms.paths[number * VMS_PER_HOST : (number + 1) * VMS_PER_HOST]
            settings: dict[str, Any] = {
                "host": f"hv{number}",
                "monitors": [{"dial": str(path)} for path in paths],
                "kafka": {"bootstrap_servers": kafka.bootstrap},
            }
            agent = AgentProcess(folder, settings, name=f"hv{number}")
            agents[f"hv{number}"] = await stack.enter_async_context(agent)
        jobs = FlinkJobs(folder / "flink", ("silent_hosts", "top_talkers", "current_state"), kafka.bootstrap[0])
        fleet = Fleet(agents, await stack.enter_async_context(jobs))
        collector = asyncio.create_task(fleet.collect(kafka))
        try:
            yield fleet
        finally:
            collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await collector


def has_results(fleet: Fleet) -> bool:
    """Return whether the jobs have reported a result; fail if a job has ended."""
    fleet.jobs.check()
    return bool(fleet.results["fleet.top_talkers"])


async def run(minutes: float) -> list[str]:
    """Run the test, and return what is wrong."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as name:
        async with KafkaCluster(Path(name, "kafka")) as kafka, running_fleet(Path(name), kafka) as fleet:
            print_line(f"{HOSTS} agents with {VMS_PER_HOST} VMs each are running")
            await until(lambda: has_results(fleet), START_SECONDS)
            print_line("the jobs report results")
            problems = await kill_an_agent(fleet, minutes * 60)
            problems += await check_state(fleet, kafka)
            problems += await check_records(kafka, next(iter(fleet.agents)))
            print_line(f"results by topic: {fleet.results}")
            fleet.jobs.check()
    return problems


async def kill_an_agent(fleet: Fleet, seconds: float) -> list[str]:
    """Kill an agent in the middle of this time, start it again at the end, and return what the job of silent hosts reported wrongly."""
    problems = []
    killed, agent = next(iter(fleet.agents.items()))
    await asyncio.sleep(seconds / 2)
    print_line(f"{killed} is killed; silent hosts so far: {fleet.silent}")
    await agent.kill()
    killed_at = time.monotonic()
    await asyncio.sleep(seconds / 2)
    silent_at = fleet.reported(killed, silent=True)
    if silent_at is None or silent_at - killed_at > SILENT_SECONDS:
        problems.append(f"{killed} was not reported as silent within {SILENT_SECONDS:g} s")
    if silent_at is not None:
        print_line(f"{killed} was reported as silent {silent_at - killed_at:.1f} s after the kill")
    await agent.start()
    started_at = time.monotonic()
    with contextlib.suppress(TimeoutError):
        await until(lambda: fleet.reported(killed, silent=False), SILENT_SECONDS)
    back_at = fleet.reported(killed, silent=False)
    if back_at is None:
        problems.append(f"{killed} was not reported as back")
    else:
        print_line(f"{killed} was reported as back {back_at - started_at:.1f} s after its endpoint responded")
    problems += [f"{host} was reported as silent" for _, host, _ in fleet.silent if host != killed]
    return problems + ([] if len(fleet.silent) == 2 else [f"reported: {fleet.silent}"])


async def check_state(fleet: Fleet, kafka: KafkaCluster) -> list[str]:
    """Return what is wrong in the state that a late reader has, and in that which the job of the current state reports."""
    truth = {
        str(UUID(int=number * VMS_PER_HOST + vm + 1)): host
        for number, host in enumerate(fleet.agents)
        for vm in range(VMS_PER_HOST)
    }
    async with StateReader("qemu.state", client=kafka.client) as reader:
        read = {record.vm_uuid: record.host for record in reader.state.vms()}
        hosts = {record.host for record in reader.state.hosts()}
    with contextlib.suppress(TimeoutError):
        await until(lambda: fleet.hosts_of_vms == truth, START_SECONDS)
    print_line(f"VMs in the state topic: {len(read)}, in the job's result: {len(fleet.hosts_of_vms)}")
    problems = {
        "the state topic lacks VMs, or has wrong hosts": read != truth,
        "the job of the current state lacks VMs, or has wrong hosts": fleet.hosts_of_vms != truth,
        "the state topic lacks hosts": hosts != set(fleet.agents),
    }
    return [problem for problem, is_wrong in problems.items() if is_wrong]


async def check_records(kafka: KafkaCluster, killed: str) -> list[str]:
    """Return what is wrong in the records of all topics, as the consumers' library reads them from the beginning.

    Args:
        kafka: The broker.
        killed: The host of the killed agent. Its samples are not journaled, so it is unknown whether the kill lost some.
    """
    counts: Counter[str] = Counter()
    gaps = []
    topics = [topic for topic in TOPICS if topic != "qemu.state"]
    async with RecordConsumer(topics, group="check", client=kafka.client) as consumer:
        async for items in consumer:
            counts.update(type(item).__name__ for item in items)
            gaps += [item for item in items if isinstance(item, Gap)]
            if not items and counts:
                break
    expected = [
        gap for gap in gaps if gap.topic == "qemu.samples" and not gap.is_certain and gap.next_record.host == killed
    ]
    print_line(f"read from the beginning: {dict(counts)}, with {len(expected)} gaps that may be in samples of {killed}")
    problems = [
        f"{gap.source}: missing in {gap.topic}: {gap.after} to {gap.through or 'unknown'}"
        for gap in gaps
        if gap not in expected
    ]
    return problems + (["messages are not records"] if counts[ForeignMessage.__name__] else [])


def main() -> int:
    """Run the test, and return 0 only if it passes."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description="Runs a fleet under the Flink jobs.")
    parser.add_argument("--minutes", type=float, default=10.0, help="half of this time is before the kill")
    problems = asyncio.run(run(parser.parse_args().minutes))
    for problem in problems:
        print_line(f"failed: {problem}")
    print_line("failed" if problems else "passed")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
