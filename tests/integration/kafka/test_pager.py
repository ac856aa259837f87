"""The example service of deploy/consumer as a process, against a real Kafka and a receiver of pages that fails at times."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from agent.model.record import Record, RecordEncoder, Severity, Vm
from tests.lab.kafka import KafkaCluster
from tests.lab.machine import free_port
from tests.lab.scripted_sink import DEADLINE_SECONDS, START_NS
from tests.lab.waiting import until

PAGER: Final = Path(__file__).parents[3] / "deploy" / "consumer" / "pager.py"
VM: Final = Vm("hv7", "00000000-0000-4000-8000-000000000001", "db-1")


@dataclass
class Receiver:
    """A server that accepts pages.

    Attributes:
        url: The URL that accepts pages.
        pages: The pages that were accepted.
        status: The status of the next responses.
    """

    url: str
    pages: list[dict[str, Any]] = field(default_factory=list)
    status: int = 202

    async def respond(self, request: web.Request) -> web.Response:
        if self.status == 202:
            self.pages.append(await request.json())
        return web.Response(status=self.status)

    def actions(self) -> list[tuple[str, str]]:
        """Return what the pages ask for, and the key by which the receiver recognises repetitions."""
        return [(page["event_action"], page["dedup_key"]) for page in self.pages]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    port = free_port()
    receiver = Receiver(f"http://127.0.0.1:{port}/v2/enqueue")
    app = web.Application()
    app.router.add_post("/v2/enqueue", receiver.respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield receiver
    await runner.cleanup()


async def start_pager(kafka: KafkaCluster, topics: Sequence[str], url: str) -> asyncio.subprocess.Process:
    options = ("--kafka", kafka.bootstrap[0], "--topics", *topics, "--url", url, "--key", "secret")
    environment = {**os.environ, "PYTHONPATH": str(PAGER.parents[2])}
    command = ("setpriv", "--pdeathsig", "KILL", sys.executable, str(PAGER), *options)
    return await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)


class AlertSource:
    """Sends alerts of a VM to a topic."""

    def __init__(self, kafka: KafkaCluster, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._encode = RecordEncoder(START_NS)

    async def send(
        self, name: str, state: str, severity: Severity = Severity.CRITICAL, *, lost: bool = False, kind: str = "alert."
    ) -> None:
        """Send an alert, or only count it as sent."""
        data = {"alert": name, "state": state, "fingerprint": f"fingerprint of {name}"}
        encoded = self._encode(Record(f"qemu.{kind}{name}", VM, data, START_NS, "disk0", severity))
        if not lost:
            async with AIOKafkaProducer(**self._kafka.client) as producer:
                await producer.send_and_wait(self._topic, encoded.body, key=encoded.key.encode())


async def test_each_alert_is_paged_although_the_pager_is_killed_and_its_receiver_fails(
    kafka: KafkaCluster, topic: str, receiver: Receiver
) -> None:
    states = f"{topic}-state"
    await kafka.create_topic(states, config={"cleanup.policy": "compact"})
    alerts = AlertSource(kafka, topic)
    await alerts.send("before_the_first_start", "firing")
    await AlertSource(kafka, states).send("", "firing", kind="state.alert")
    pager = await start_pager(kafka, (topic, states), receiver.url)
    await until(lambda: receiver.pages, DEADLINE_SECONDS)
    await alerts.send("disk_full", "firing")
    await alerts.send("watchdog", "firing", Severity.WARNING)
    await until(lambda: len(receiver.pages) > 1, DEADLINE_SECONDS)
    assert receiver.pages[1]["payload"]["summary"] == "disk_full: db-1 disk0 on hv7"
    pager.kill()
    await pager.wait()

    receiver.status = 503
    await alerts.send("disk_full", "resolved", Severity.INFO)
    await alerts.send("io_error_stop", "firing", lost=True)
    await alerts.send("guest_panicked", "firing")
    pager = await start_pager(kafka, (topic, states), receiver.url)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await pager.wait() != 0

    receiver.status = 202
    pager = await start_pager(kafka, (topic, states), receiver.url)
    await until(lambda: ("trigger", "fingerprint of guest_panicked") in receiver.actions(), DEADLINE_SECONDS)
    pager.kill()
    await pager.wait()
    assert list(dict.fromkeys(receiver.actions())) == [
        ("trigger", "fingerprint of "),
        ("trigger", "fingerprint of disk_full"),
        ("resolve", "fingerprint of disk_full"),
        ("trigger", f"lost {VM.source}"),
        ("trigger", "fingerprint of guest_panicked"),
    ]
