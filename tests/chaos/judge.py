"""Reads all that Kafka has, and judges by the issuer's log what should be there.

An event counts as accepted when it was written to an agent's socket more than a window before that agent was killed, or hung up because
it was asked to end: between reading an event and having it in the journal lie milliseconds, in which a crash takes it along. The judge
measures how long before its agent's end the oldest event was written that went so: the least window that would have done.
"""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer

from agent.delivery.drops import DropReason
from tests.chaos import numbered
from tests.chaos.numbered import Connection, Issued
from tests.chaos.participants import WINDOW_SECONDS, How, Life, World

_READ_SECONDS: Final = 120.0
_EXAMPLES: Final = 5
_EXAMPLE_CHARACTERS: Final = 600


@dataclass(slots=True)
class Ends:
    """What went with agents that ended in one way.

    Attributes:
        lost: events that were written to them and are nowhere.
        window_seconds: how long before its agent's end the oldest of these was written.
    """

    lost: int = 0
    window_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.lost += 1
        self.window_seconds = max(self.window_seconds, seconds)


@dataclass(slots=True)
class Verdict:
    """What was found. All of `wrong` has to be none, and no more may be missing than was told."""

    issued: int = 0
    accepted: int = 0
    delivered: int = 0
    duplicates: int = 0
    missing: int = 0
    told: Counter[str] = field(default_factory=Counter)
    ends: dict[How, Ends] = field(default_factory=lambda: {how: Ends() for how in How})
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def find(self, what: str, example: object) -> None:
        """Count something that must not be."""
        self.wrong[what] += 1
        if self.wrong[what] <= _EXAMPLES:
            self.examples.append(f"{what}: {str(example)[:_EXAMPLE_CHARACTERS]}")

    def problems(self) -> list[str]:
        """Return what breaks the promise."""
        problems = [f"{count} {what}" for what, count in self.wrong.items() if count]
        if self.missing > self.told.total():
            problems.append(f"{self.missing} accepted events are missing, {self.told.total()} told of")
        return problems + self.examples if problems else []


WRONG: Final = (
    "out of order",
    "wrong payload",
    "never issued",
    "again under another id",
    "in another partition",
    "hung up",
    "lost without a cause",
    "missing without a cause",
)


async def judge(world: World) -> Verdict:
    """Judge a run that has ended."""
    verdict = Verdict(wrong=Counter(dict.fromkeys(WRONG, 0)))
    issued = await asyncio.to_thread(Issued.read, world.issuer.log, world.issuer.vms)
    delivered = _Delivered(issued, world.excuses, verdict)
    await read(world, (world.topics.events, world.topics.single), delivered.take)
    for vm, of_vm in enumerate(issued):
        _look_for_the_missing(vm, of_vm, delivered.seen[vm], world, verdict)
    verdict.issued = sum(map(len, issued))
    return verdict


async def read(world: World, topics: Sequence[str], take: Callable[[str, int, bytes, bytes], None]) -> None:
    """Hand on topic, partition, key and value of all messages of some topics, those of each partition in its order."""
    async with (
        asyncio.timeout(_READ_SECONDS),
        AIOKafkaConsumer(*topics, auto_offset_reset="earliest", **world.cluster.client) as consumer,
    ):
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for place, messages in (await consumer.getmany(timeout_ms=1000)).items():
                for message in messages:
                    take(place.topic, place.partition, message.key, message.value)


class _Delivered:
    """Takes every message there is, and says what is wrong with it."""

    def __init__(
        self, issued: Sequence[Issued], excuses: Sequence[tuple[DropReason, float, float]], verdict: Verdict
    ) -> None:
        self.seen = [bytearray(len(of_vm)) for of_vm in issued]
        self._issued = issued
        self._excuses = excuses
        self._verdict = verdict
        self._ids: set[str] = set()
        self._last: dict[tuple[int, str], int] = {}
        self._partitions: dict[tuple[str, str], int] = {}
        self._vms = {numbered.uuid_of(vm): vm for vm in range(len(issued))}

    def take(self, topic: str, partition: int, key: bytes, value: bytes) -> None:
        """Take the next message of a partition."""
        event = orjson.loads(value)
        if event["id"] in self._ids:
            self._verdict.duplicates += event["type"].startswith("qemu.event.")
            return
        self._ids.add(event["id"])
        if self._partitions.setdefault((topic, key.decode()), partition) != partition:
            self._verdict.find("in another partition", event)
        if event["type"] == "qemu.agent.records_dropped" and event["data"]["queue"] == "events":
            self._lost(event["data"])
        if event["type"].startswith("qemu.event."):
            self._event(topic, key, event)

    def _lost(self, told: Mapping[str, Any]) -> None:
        self._verdict.told[told["reason"]] += told["records"]
        for end in ("first_timestamp_seconds", "last_timestamp_seconds"):
            at = told.get(end, 0.0)
            if not any(told["reason"] == reason and begin <= at <= until for reason, begin, until in self._excuses):
                self._verdict.find("lost without a cause", told)

    def _event(self, topic: str, key: bytes, event: Mapping[str, Any]) -> None:
        vm, n = self._vms.get(event.get("vmuuid", "")), event["data"]["qemu"].get("n")
        if vm is None or not isinstance(n, int) or not 0 <= n < len(self._issued[vm]):
            self._verdict.find("never issued", event)
            return
        self._verdict.delivered += 1
        if self.seen[vm][n]:
            self._verdict.find("again under another id", event)
        self.seen[vm][n] = 1
        if n <= self._last.get((vm, topic), -1):
            self._verdict.find("out of order", event)
        self._last[vm, topic] = n
        if not _right(vm, n, self._issued[vm].wall_us[n], key, event):
            self._verdict.find("wrong payload", event)


def _right(vm: int, n: int, wall_us: int, key: bytes, event: Mapping[str, Any]) -> bool:
    """Say whether a delivered event says what the issued one did."""
    kind, data = numbered.kind_of(n), numbered.payload(vm, n)
    moment = datetime.fromisoformat(event["time"])
    return (
        event["type"] == f"qemu.event.{kind.lower()}"
        and event["data"] == {"event": kind, "category": "job", "qemu": data}
        and round(moment.timestamp() * 1e6) == wall_us
        and key.decode() == event["partitionkey"] == numbered.uuid_of(vm)
        and (event["host"], event["vmname"]) == (numbered.HOST, numbered.name_of(vm))
        and event["subject"] == data["device"]
    )


def _look_for_the_missing(vm: int, issued: Issued, seen: bytearray, world: World, verdict: Verdict) -> None:
    ends = [_end(connection, world.lives) for connection in issued.connections]

    def excused(n: int, *reasons: DropReason) -> bool:
        at = issued.wall_us[n] / 1e6
        return any(reason in reasons and begin <= at <= until for reason, begin, until in world.excuses)

    for number, (connection, (end_ns, _)) in enumerate(zip(issued.connections, ends, strict=True)):
        if connection.ended_ns is not None and connection.ended_ns < end_ns:
            verdict.find("hung up", f"{numbered.name_of(vm)}, connection {number}")
    for n, (written_ns, number) in enumerate(zip(issued.written_ns, issued.connection, strict=True)):
        end_ns, how = ends[number]
        accepted = 0 < written_ns < end_ns - WINDOW_SECONDS * 1e9
        verdict.accepted += accepted
        if seen[n]:
            continue
        if not accepted:  # where the disk was full, it may have been lost, and told of, before that end
            if not excused(n, DropReason.JOURNAL_UNAVAILABLE):
                verdict.ends[how].add((end_ns - written_ns) / 1e9 if written_ns else 0.0)
            continue
        verdict.missing += 1
        if not excused(n, *DropReason):
            early = (end_ns - written_ns) / 1e9
            verdict.find("missing without a cause", f"{numbered.name_of(vm)} n={n}, {early:.1f} s before it was {how}")


def _end(connection: Connection, lives: Sequence[Life]) -> tuple[int, How]:
    """Return when the agent's process that had a connection ended, as far as it matters for what it took, and how."""
    life = lives[bisect_right(lives, connection.connected_ns, key=lambda life: life.started_ns) - 1]
    assert life.how is not None
    if life.how is How.TERMINATED and connection.ended_ns is not None:
        return max(life.ended_ns, connection.ended_ns), life.how
    return life.ended_ns, life.how
