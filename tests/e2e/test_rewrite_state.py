"""The state topic of a real agent on a real Kafka: kills, `qmp-agent rewrite-state`, and the end of guests and of the agent."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.consumer.state_reader import StateReader
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.fixtures import StartGuest
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import read_topic
from tests.lab.waiting import until

HOST = "hv7"


@pytest.fixture
async def topic(kafka: KafkaCluster) -> str:
    """A new compacted topic."""
    name = f"test-state-{uuid4()}"
    await kafka.create_topic(name, partitions=3, config={"cleanup.policy": "compact"})
    return name


@pytest.fixture
async def agent(kafka: KafkaCluster, topic: str, folder: Path) -> AsyncIterator[AgentProcess]:
    """An agent that writes states to the topic. The test starts it."""
    others = f"test-others-{uuid4()}"
    await kafka.create_topic(others)
    topics = {"events": others, "samples": others, "alerts": others, "state": topic}
    config = {
        "host": HOST,
        "timeouts": {"shutdown": "240s"},  # for a broker on a machine under load
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "kafka": {"bootstrap_servers": kafka.bootstrap, "topics": topics},
    }
    process = AgentProcess(folder, config)
    try:
        yield process
    finally:
        await process.kill()


async def test_the_topic_follows_guests_over_a_kill_and_is_written_again_on_request(
    kafka: KafkaCluster, topic: str, agent: AgentProcess, start_guest: StartGuest
) -> None:
    web, db, old = await start_guest("web"), await start_guest("db"), await start_guest("old")
    await agent.start()
    async with StateReader(topic, client=kafka.client) as reader:

        async def states() -> dict[str, dict[str, Any]]:
            await reader.catch_up()
            return {record.vm_name: dict(record.data) for record in reader.state.vms()}

        async def knows_the_guests() -> bool:
            known = await states()
            return {name: data.get("run_state") for name, data in known.items()} == dict.fromkeys(
                ("web", "db", "old"), "running"
            )

        await until(knows_the_guests)
        await web.command("stop")

        async def knows_the_pause() -> bool:
            return (await states())["web"].get("run_state") == "paused"

        await until(knows_the_pause)
        await db.stop()

        async def has_deleted_the_guest_that_shut_down() -> bool:
            return (await states()).keys() == {"web", "old"}

        await until(has_deleted_the_guest_that_shut_down)

        written = len(await read_topic(kafka, topic))
        ended = await run_command("rewrite-state", "--url", agent.url)
        assert (ended.status, ended.out) == (0, "3 states are written again\n")

        async def is_written_again() -> bool:
            return len(await read_topic(kafka, topic)) >= written + 3

        await until(is_written_again)
        refused = ""

        async def is_refused() -> bool:
            nonlocal refused  # only within ten seconds of the request before, which may have been too long ago
            refused = (await run_command("rewrite-state", "--url", agent.url)).log
            return bool(refused)

        await until(is_refused)
        assert "HTTP 429" in refused

        await agent.kill()
        await old.stop()
        assert (await states()).keys() == {"web", "old"}, "no agent has noticed it yet"
        await agent.start()

        async def has_deleted_the_guest_that_ended_meanwhile() -> bool:
            return (await states()).keys() == {"web"}

        await until(has_deleted_the_guest_that_ended_meanwhile)
        assert (await agent.stop()).status == 0
        assert (await states()).keys() == {"web"}
        (host,) = reader.state.hosts()
        assert (host.host, host.data["state"]) == (HOST, "stopped")
