"""The agent is killed at each step between a threshold and its alert. Then each level is in Kafka exactly once."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.integration.qemu.test_pools import SIZE as POOL_SIZE
from tests.integration.qemu.test_pools import image as pool_image
from tests.integration.qemu.test_pools import needs_root, small_file_system
from tests.lab.agent_process import AgentProcess
from tests.lab.kafka import KafkaCluster
from tests.lab.thin_guests import MIB, ThinGuest, make_qcow2, network_device, run, thin_guest
from tests.lab.waiting import until

SIZE: Final = 32 * MIB
LEVELS: Final = ["10%", "25%", "40%", "55%"]
LEVEL_BYTES: Final = [SIZE * percent // 100 for percent in (10, 25, 40, 55)]


class AlertsTopic:
    """Reads the Kafka topic of alerts."""

    def __init__(self, kafka: KafkaCluster, name: str) -> None:
        self.name = name
        self._consumer = AIOKafkaConsumer(**kafka.client)
        self._at = TopicPartition(name, 0)
        self._records: dict[str, dict[str, Any]] = {}

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign([self._at])
        await self._consumer.seek_to_beginning(self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the data of all alert records so far. A record that was delivered twice is returned once."""
        end = (await self._consumer.end_offsets([self._at]))[self._at]
        while await self._consumer.position(self._at) < end:
            for messages in (await self._consumer.getmany(timeout_ms=200)).values():
                for message in messages:
                    record = json.loads(message.value)
                    self._records[record["id"]] = record
        return [record["data"] for record in self._records.values()]

    async def firing(self) -> list[dict[str, Any]]:
        """Return the data of all firing alert records so far."""
        return [alert for alert in await self.alerts() if alert["state"] == "firing"]

    async def levels(self) -> list[str]:
        return [alert["level"] for alert in await self.firing()]


@pytest.fixture
async def topic(kafka: KafkaCluster) -> AsyncIterator[AlertsTopic]:
    name = f"test-alerts-{uuid4()}"
    await kafka.create_topic(name)
    async with AlertsTopic(kafka, name) as reader:
        yield reader


@pytest.fixture
async def agent(kafka: KafkaCluster, topic: AlertsTopic, folder: Path) -> AsyncIterator[AgentProcess]:
    """An agent that sets write thresholds. The test starts it."""
    other_records = f"test-other_records-{uuid4()}"
    await kafka.create_topic(other_records)
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "kafka": {
            "bootstrap_servers": kafka.bootstrap,
            "topics": {"events": other_records, "samples": other_records, "alerts": topic.name, "state": None},
        },
        "alerts": {"disks": {"mode": "arm", "levels": LEVELS}},
        "timeouts": {"shutdown": "240s"},  # for a broker on a machine under load
    }
    agent = AgentProcess(folder, config)
    try:
        yield agent
    finally:
        await agent.kill()


@pytest.fixture
async def guest(folder: Path) -> AsyncIterator[ThinGuest]:
    """A paused guest that has not written to its disk."""
    async with network_device(folder / "nbd", SIZE) as device:
        await make_qcow2(f"nbd+unix:///?socket={folder}/nbd", 2 * SIZE)
        async with thin_guest(folder, disk_mib=64, storage=device, extra=["-S"]) as running:
            yield running


async def wait_until_armed(guest: ThinGuest, value: int) -> None:
    """Wait until QEMU's threshold slot has this value."""

    async def is_set() -> bool:
        return await guest.slot() == value

    await until(is_set)


async def cross(guest: ThinGuest, level_bytes: int) -> None:
    """Let the guest write until QEMU reports that the write threshold was exceeded. It stops far before the next level."""
    await guest.stop_writes_at(level_bytes + MIB // 2)
    await guest.command("cont")
    await guest.wait_for_event("BLOCK_WRITE_THRESHOLD")


async def have_fired_once(topic: AlertsTopic, levels: list[str]) -> bool:
    """Return whether exactly these levels have fired, each of them once."""
    firing = await topic.firing()
    count = Counter((alert["fingerprint"], alert["level"]) for alert in firing)
    assert set(count.values()) <= {1}, firing
    return sorted(level for _, level in count) == sorted(levels)


async def test_killed_after_arming_it_reports_what_fired_meanwhile(
    agent: AgentProcess, guest: ThinGuest, topic: AlertsTopic
) -> None:
    for number, level_bytes in enumerate(LEVEL_BYTES[:3]):
        await agent.start()
        await wait_until_armed(guest, level_bytes)
        await until(lambda n=number: have_fired_once(topic, LEVELS[:n]))  # type: ignore[misc]
        await agent.kill()
        await cross(guest, level_bytes)
        await guest.command("stop")
        assert await guest.slot() == 0
    await agent.start()
    await wait_until_armed(guest, LEVEL_BYTES[3])
    await until(lambda: have_fired_once(topic, LEVELS[:3]))
    assert {alert["detected_by"] for alert in await topic.firing()} == {"missed"}
    assert (await agent.stop()).status == 0
    assert await have_fired_once(topic, LEVELS[:3])


async def test_killed_at_the_event_it_reports_it_once(
    agent: AgentProcess, guest: ThinGuest, topic: AlertsTopic
) -> None:
    for level_bytes in LEVEL_BYTES[:3]:
        await agent.start()
        await wait_until_armed(guest, level_bytes)
        await cross(guest, level_bytes)
        await agent.kill()
        await guest.command("stop")
    await agent.start()
    await wait_until_armed(guest, LEVEL_BYTES[3])
    assert (await agent.stop()).status == 0
    assert await have_fired_once(topic, LEVELS[:3])
    assert {alert["detected_by"] for alert in await topic.firing()} <= {"event", "missed"}


async def test_killed_after_delivery_it_repeats_no_level(
    agent: AgentProcess, guest: ThinGuest, topic: AlertsTopic
) -> None:
    for number, level_bytes in enumerate(LEVEL_BYTES[:3], 1):
        await agent.start()
        await wait_until_armed(guest, level_bytes)
        await cross(guest, level_bytes)
        await guest.command("stop")
        await until(lambda n=number: have_fired_once(topic, LEVELS[:n]))  # type: ignore[misc]
        await agent.kill()
    await agent.start()
    await wait_until_armed(guest, LEVEL_BYTES[3])
    assert (await agent.stop()).status == 0
    assert await have_fired_once(topic, LEVELS[:3])
    assert {alert["detected_by"] for alert in await topic.firing()} == {"event"}


async def has_read(agent: AgentProcess, point: Path) -> bool:
    """Return whether the agent has read a pool."""
    return (await agent.metrics()).value("qemu_pool_free_bytes", pool=str(point)) is not None


@needs_root
async def test_the_alerts_of_a_pool_are_emitted_once_although_the_agent_is_killed(
    agent: AgentProcess, topic: AlertsTopic, folder: Path
) -> None:
    async def changes() -> list[tuple[str, str]]:
        alerts = [alert for alert in await topic.alerts() if alert["alert"] == "pool_filling"]
        return [(alert["level"], alert["state"]) for alert in alerts if alert["level"].endswith("%")]

    async def are(*expected: tuple[str, str]) -> bool:
        found = await changes()
        assert len(found) == len(set(found)), found
        return found == [*expected]

    async with small_file_system(folder) as point:
        storage = await pool_image(point, "a")
        async with thin_guest(folder, storage=storage, disk_mib=1024, extra=["-S"]):
            await agent.start()
            await until(lambda: has_read(agent, point))
            await run("fallocate", "-l", str(int(POOL_SIZE * 0.88)), f"{point}/first")
            await until(lambda: are(("85%", "firing")))
            await agent.kill()
            await agent.start()
            await until(lambda: has_read(agent, point))
            await run("fallocate", "-l", str(int(POOL_SIZE * 0.08)), f"{point}/second")
            await until(lambda: are(("85%", "firing"), ("95%", "firing")))
            await agent.kill()
            (point / "first").unlink()
            (point / "second").unlink()
            await agent.start()
            resolved = ("85%", "resolved"), ("95%", "resolved")
            await until(lambda: are(("85%", "firing"), ("95%", "firing"), *resolved))
