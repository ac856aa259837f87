"""`previoussequence` continues in the next run where the journal is durable, and is absent where records may have been lost."""

import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.app.publisher import RecordPublisher
from agent.delivery.pipeline import DeliverySettings
from agent.delivery.sinks.kafka.config import KafkaTopicsConfig, TopicRouteConfig
from agent.model.family import Sample
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record
from tests.lab.scripted_sink import DEADLINE_SECONDS, SHORT_TIMINGS, START_NS, VMS, ScriptedSink, eventually

EVENT, ALERT, SAMPLE = "qemu.event.stop", "qemu.alert.disk_full", RUNSTATE.type
TOPICS = KafkaTopicsConfig()


class Run:
    """A run of the agent's publisher: a record of each kind of each VM, with its sink."""

    def __init__(self, folder: Path, topics: KafkaTopicsConfig) -> None:
        self.sink = ScriptedSink()
        settings = DeliverySettings(16 << 20, folder, 64 << 20, 64 << 20, 64 << 20, SHORT_TIMINGS)
        self.publisher = RecordPublisher("host1", self.sink, settings, topics.topic_for)

    def publish(self, kinds: tuple[str, ...] = (EVENT, ALERT, SAMPLE)) -> None:
        for vm in VMS:
            for record_type in kinds:
                if record_type == SAMPLE:
                    self.publisher.publish_samples(vm, [Sample(RUNSTATE, (), {})], START_NS)
                else:
                    self.publisher.publish(Record(record_type, vm, {}, START_NS))

    async def is_stored(self) -> None:
        """Wait until everything is delivered, and the journal has stored the newest sequences and deleted the records."""
        delivery, sequences = self.publisher.delivery, self.publisher._encode.sequences
        journal = delivery.journal
        assert journal is not None
        await self.sink.until(lambda: not any(map(len, delivery.queues)))
        await eventually(
            lambda: (
                not (
                    sequences._changed
                    or journal.pending_entries._fetched
                    or any(queue.backlog.stored_size.records for queue in delivery.queues)
                )
            )
        )

    def attributes(self, record_type: str) -> list[dict[str, Any]]:
        """Return the delivered records of a type, in the order of the VMs."""
        events = [json.loads(record.body) for record in self.sink.records]
        return sorted((e for e in events if e["type"] == record_type), key=lambda e: (e["source"], e["sequence"]))


@contextlib.asynccontextmanager
async def running(folder: Path, topics: KafkaTopicsConfig = TOPICS) -> AsyncIterator[Run]:
    """Run a publisher that is stopped on request at the end of the `with` block."""
    run = Run(folder, topics)
    async with run.publisher.delivery.run_in_background(DEADLINE_SECONDS):
        run.publisher.continue_after_last_run()
        yield run
        run.publisher.store_sample_sequences()


@contextlib.asynccontextmanager
async def killed(folder: Path, topics: KafkaTopicsConfig = TOPICS) -> AsyncIterator[Run]:
    """Run a publisher that is killed at the end of the `with` block: its journal stays as it is then."""
    working = folder.with_name(f"{folder.name}-working")
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(folder, working)
    async with running(working, topics) as run:
        yield run
        await run.is_stored()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(working, folder)
    shutil.rmtree(working)


def continues(before: Run, after: Run, record_type: str) -> list[bool]:
    """Return for each VM whether its first record of a type follows the last one of the run before; False if that is unknown."""
    newest = {event["source"]: event["sequence"] for event in before.attributes(record_type)}
    first = {event["source"]: event for event in reversed(after.attributes(record_type))}
    assert newest.keys() == first.keys()
    known = {source: event.get("previoussequence") for source, event in first.items()}
    assert all(previous in (None, newest[source]) for source, previous in known.items())
    return [previous is not None for previous in known.values()]


async def test_all_chains_continue_after_a_stop(folder: Path) -> None:
    async with running(folder / "journal") as before:
        before.publish()
        before.publish((EVENT, SAMPLE))
        await before.is_stored()
    async with running(folder / "journal") as after:
        after.publish()
        await after.is_stored()
    for record_type in (EVENT, ALERT, SAMPLE):
        assert continues(before, after, record_type) == [True] * 3


async def test_the_chains_of_journaled_records_continue_after_a_kill(folder: Path) -> None:
    async with running(folder / "journal") as stopped:  # what it stored about samples is out of date after the next run
        stopped.publish()
        await stopped.is_stored()
    async with killed(folder / "journal") as before:
        before.publish()
        await before.is_stored()
        before.publish((SAMPLE,))
    async with running(folder / "journal") as after:
        after.publish()
        await after.is_stored()
    assert continues(before, after, EVENT) == continues(before, after, ALERT) == [True] * 3
    assert continues(before, after, SAMPLE) == [False] * 3


async def test_a_new_journal_knows_no_earlier_record(folder: Path) -> None:
    async with running(folder / "journal") as before:
        before.publish()
        await before.is_stored()
    shutil.rmtree(folder / "journal")
    async with running(folder / "journal") as after:
        after.publish()
        await after.is_stored()
    for record_type in (EVENT, ALERT, SAMPLE):
        assert continues(before, after, record_type) == [False] * 3


@pytest.mark.parametrize("back", [True, False])
async def test_the_chain_of_a_topic_that_also_had_samples_is_unknown_after_a_kill(folder: Path, back: bool) -> None:  # noqa: FBT001 - a parameter
    mixed = KafkaTopicsConfig(routes=[TopicRouteConfig(type="qemu.sample.runstate", topic=TOPICS.events)])
    async with killed(folder / "journal") as first:
        first.publish((EVENT,))
        await first.is_stored()
    async with killed(folder / "journal", mixed) as before:
        before.publish((EVENT,))
        before.publish((SAMPLE,))
    async with running(folder / "journal", TOPICS if back else mixed) as after:
        after.publish((EVENT,))
        await after.is_stored()
    assert continues(first, before, EVENT) == [True] * 3
    assert continues(before, after, EVENT) == [False] * 3


async def test_a_journal_that_was_replaced_while_the_agent_ran_has_all_chains(folder: Path) -> None:
    async with killed(folder / "journal") as before:
        before.publish((EVENT,))
        await before.is_stored()
        for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
            (folder / "journal-working" / name).unlink(missing_ok=True)
        before.publisher.publish(Record(ALERT, VMS[0], {}, START_NS))  # the next transaction finds the file missing
        journal = before.publisher.delivery.journal
        assert journal is not None
        await eventually(lambda: journal.error is None and journal.path.exists())
        before.publisher.publish(Record(ALERT, VMS[0], {}, START_NS))
    async with running(folder / "journal") as after:
        after.publish((EVENT,))
        await after.is_stored()
    assert continues(before, after, EVENT) == [True] * 3
