"""An agent that is killed and started again, as the consumers' library sees it: no gap is hidden, and none is invented."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import uuid4

from agent.app.stored_sequences import SEQUENCE_ENTRY_PREFIX
from agent.consumer.kafka_consumer import ConsumedItem, ConsumerSettings, RecordConsumer
from agent.consumer.record_orderer import Gap, OrderSettings
from agent.consumer.stream_record import StreamRecord
from agent.delivery.journal.database import connect_readonly
from agent.delivery.journal.journal import JOURNAL_FILE
from agent.delivery.journal.statements import read_persistent_entries
from tests.bench.monitors import Monitors
from tests.lab.agent_process import AgentProcess
from tests.lab.kafka import KafkaCluster
from tests.lab.scripted_sink import DEADLINE_SECONDS
from tests.lab.waiting import until

SETTINGS: Final = ConsumerSettings(OrderSettings(hold_seconds=0.5), poll_seconds=0.1)
EVENT: Final = "qemu.event.job_status_change"
EVENTS: Final = 50


def has_entries(journal: Path, topic: str, records: Iterable[StreamRecord]) -> bool:
    """Return whether the journal has stored that these records are in the topic."""
    with contextlib.closing(connect_readonly(journal / JOURNAL_FILE)) as database:
        entries = read_persistent_entries(database)
    return all(
        entries.get(f"{SEQUENCE_ENTRY_PREFIX}{topic}{record.source}", "") >= record.sequence for record in records
    )


async def test_a_consumer_of_a_killed_agent_knows_whether_records_were_lost(kafka: KafkaCluster, folder: Path) -> None:
    topics = {name: f"{name}-{uuid4()}" for name in ("events", "samples", "alerts", "state")}
    for topic in topics.values():
        await kafka.create_topic(topic)
    (folder / "vms").mkdir()
    received: list[ConsumedItem] = []

    async def read() -> None:
        async with RecordConsumer([topics["events"]], group="g", client=kafka.client, settings=SETTINGS) as consumer:
            async for items in consumer:
                received.extend(items)

    def records() -> list[StreamRecord]:
        return [item for item in received if isinstance(item, StreamRecord) and item.type == EVENT]

    def gaps() -> list[Gap]:
        return [item for item in received if isinstance(item, Gap)]

    async with Monitors(folder / "vms", 2) as vms:
        journal = folder / "agent.journal"
        kafka_config = {"bootstrap_servers": kafka.bootstrap, "topics": topics}
        config = {"monitors": [{"dial": f"{folder}/vms/*.qmp"}], "kafka": kafka_config}
        agent = AgentProcess(folder, config)
        reading = asyncio.create_task(read())

        async def emit_and_kill() -> list[StreamRecord]:
            """Run the agent while the VMs emit events, wait until they are delivered, and kill it. Return the events."""
            before = len(records())
            await agent.start()
            await until(lambda: len(vms.clients) == 2, DEADLINE_SECONDS)
            attached = vms.answered[b"query-blockstats"]
            await until(lambda: vms.answered[b"query-blockstats"] > attached + 1, DEADLINE_SECONDS)
            for number in range(EVENTS):
                vms.emit(number % 2, EVENT.rpartition(".")[2].upper(), {"id": f"job{number}"}, time.time_ns())
            await until(lambda: len(records()) >= before + EVENTS, DEADLINE_SECONDS)
            await until(lambda: has_entries(journal, topics["events"], records()), DEADLINE_SECONDS)
            await agent.kill()
            await until(lambda: not vms.clients, DEADLINE_SECONDS)
            return records()[before:]

        try:
            await emit_and_kill()
            await emit_and_kill()
            assert gaps() == [], "the journal has the end of the first run"
            shutil.rmtree(journal)
            third = await emit_and_kill()
            await until(gaps, DEADLINE_SECONDS)  # it is unknown how the second run ended
            assert not any(gap.is_certain for gap in gaps())
            assert {gap.source for gap in gaps()} >= {record.source for record in third}
        finally:
            reading.cancel()
            await agent.kill()
            await asyncio.wait({reading})
