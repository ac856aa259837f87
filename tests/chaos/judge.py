"""Reads all topics, and compares them with the issuer's log of events.

The agent needs some milliseconds between reading an event and journaling it. A crash in this time loses the event. So an event counts as
accepted only if it was written to the agent's socket before `AgentRun.accepted_ns`: the agent has shown since that it journaled what it had
read. The judge also measures the window of a crash: the time between the oldest lost event and the end of its agent.
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
from tests.chaos import numbered_events
from tests.chaos.environment import AgentRun, Environment, ExitKind
from tests.chaos.numbered_events import Connection, IssuedEvents

_READ_SECONDS: Final = 400.0
_EXAMPLES: Final = 5
_EXAMPLE_CHARACTERS: Final = 600


@dataclass(slots=True)
class LostAtExit:
    """Events that were lost because agents exited in one way, by SIGKILL or by SIGTERM.

    Attributes:
        lost: number of events that were written to such an agent's socket and not delivered.
        window_seconds: the longest time between the write of such an event and the exit of its agent.
    """

    lost: int = 0
    window_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add an event that was written `seconds` before the exit of its agent."""
        self.lost += 1
        self.window_seconds = max(self.window_seconds, seconds)


@dataclass(slots=True)
class Verdict:
    """The findings of a run.

    Each count in `wrong` must be 0. At most as many events may be missing as the agent reports as dropped.
    """

    issued: int = 0
    accepted: int = 0
    delivered: int = 0
    duplicates: int = 0
    missing: int = 0
    reported: Counter[str] = field(default_factory=Counter)
    exits: dict[ExitKind, LostAtExit] = field(default_factory=lambda: {kind: LostAtExit() for kind in ExitKind})
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_problem(self, what: str, example: object) -> None:
        """Count a broken guarantee."""
        self.wrong[what] += 1
        if self.wrong[what] <= _EXAMPLES:
            self.examples.append(f"{what}: {str(example)[:_EXAMPLE_CHARACTERS]}")

    def problems(self) -> list[str]:
        """Return the broken guarantees, with examples; empty if none is broken."""
        problems = [f"{count} {what}" for what, count in self.wrong.items() if count]
        if self.missing > self.reported.total():
            problems.append(
                f"{self.missing} accepted events are missing, {self.reported.total()} are reported as dropped"
            )
        return problems + self.examples if problems else []


PROBLEM_KINDS: Final = (
    "out of order",
    "wrong payload",
    "never issued",
    "duplicate under another id",
    "in another partition",
    "unexpected disconnect",
    "dropped without a cause",
    "missing without a cause",
)


async def judge(env: Environment) -> Verdict:
    """Judge a finished run."""
    verdict = Verdict(wrong=Counter(dict.fromkeys(PROBLEM_KINDS, 0)))
    issued = await asyncio.to_thread(IssuedEvents.read, env.issuer.log, env.issuer.vms)
    delivered = _MessageChecker(issued, env.expected_drops, verdict)
    await read_topics(env, (env.topics.events, env.topics.single), delivered.add)
    for vm, vm_events in enumerate(issued):
        _count_missing_events(vm, vm_events, delivered.seen[vm], env, verdict)
    verdict.issued = sum(map(len, issued))
    return verdict


async def read_topics(
    env: Environment, topics: Sequence[str], on_message: Callable[[str, int, bytes, bytes], None]
) -> None:
    """Call `on_message` with the topic, partition, key and value of each message. Messages of one partition come in order."""
    async with (
        asyncio.timeout(_READ_SECONDS),
        AIOKafkaConsumer(*topics, auto_offset_reset="earliest", **env.cluster.client) as consumer,
    ):
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for place, messages in (await consumer.getmany(timeout_ms=1000)).items():
                for message in messages:
                    on_message(place.topic, place.partition, message.key, message.value)


class _MessageChecker:
    """Checks each delivered message against the issued events."""

    def __init__(
        self,
        issued: Sequence[IssuedEvents],
        expected_drops: Sequence[tuple[DropReason, float, float]],
        verdict: Verdict,
    ) -> None:
        self.seen = [bytearray(len(vm_events)) for vm_events in issued]
        self._issued = issued
        self._expected_drops = expected_drops
        self._verdict = verdict
        self._ids: set[str] = set()
        self._last: dict[tuple[int, str], int] = {}
        self._partitions: dict[tuple[str, str], int] = {}
        self._vms = {numbered_events.uuid_of(vm): vm for vm in range(len(issued))}

    def add(self, topic: str, partition: int, key: bytes, value: bytes) -> None:
        """Check the next message of a partition."""
        event = orjson.loads(value)
        if event["id"] in self._ids:
            self._verdict.duplicates += event["type"].startswith("qemu.event.")
            return
        self._ids.add(event["id"])
        if self._partitions.setdefault((topic, key.decode()), partition) != partition:
            self._verdict.add_problem("in another partition", event)
        if event["type"] == "qemu.agent.records_dropped" and event["data"]["queue"] == "events":
            self._add_drops(event["data"])
        if event["type"].startswith("qemu.event."):
            self._add_event(topic, key, event)

    def _add_drops(self, report: Mapping[str, Any]) -> None:
        self._verdict.reported[report["reason"]] += report["records"]
        for end in ("first_timestamp_seconds", "last_timestamp_seconds"):
            at = report.get(end, 0.0)
            if not any(
                report["reason"] == reason and begin <= at <= until for reason, begin, until in self._expected_drops
            ):
                self._verdict.add_problem("dropped without a cause", report)

    def _add_event(self, topic: str, key: bytes, event: Mapping[str, Any]) -> None:
        vm, n = self._vms.get(event.get("vmuuid", "")), event["data"]["qemu"].get("n")
        if vm is None or not isinstance(n, int) or not 0 <= n < len(self._issued[vm]):
            self._verdict.add_problem("never issued", event)
            return
        self._verdict.delivered += 1
        if self.seen[vm][n]:
            self._verdict.add_problem("duplicate under another id", event)
        self.seen[vm][n] = 1
        if n <= self._last.get((vm, topic), -1):
            self._verdict.add_problem("out of order", event)
        self._last[vm, topic] = n
        if not _matches_issued_event(vm, n, self._issued[vm].wall_us[n], key, event):
            self._verdict.add_problem("wrong payload", event)


def _matches_issued_event(vm: int, n: int, wall_us: int, key: bytes, event: Mapping[str, Any]) -> bool:
    """Return whether a delivered event has the content of the issued one."""
    kind, data = numbered_events.event_name(n), numbered_events.payload(vm, n)
    moment = datetime.fromisoformat(event["time"])
    return (
        event["type"] == f"qemu.event.{kind.lower()}"
        and event["data"] == {"event": kind, "category": "job", "qemu": data}
        and round(moment.timestamp() * 1e6) == wall_us
        and key.decode() == event["partitionkey"] == numbered_events.uuid_of(vm)
        and (event["host"], event["vmname"]) == (numbered_events.HOST, numbered_events.name_of(vm))
        and event["subject"] == data["device"]
    )


def _count_missing_events(vm: int, issued: IssuedEvents, seen: bytearray, env: Environment, verdict: Verdict) -> None:
    ends = [_end_of_connection(connection, env.processes) for connection in issued.connections]

    def is_expected(n: int, *reasons: DropReason) -> bool:
        at = issued.wall_us[n] / 1e6
        return any(reason in reasons and begin <= at <= until for reason, begin, until in env.expected_drops)

    for number, (connection, (end_ns, _, _)) in enumerate(zip(issued.connections, ends, strict=True)):
        if connection.ended_ns is not None and connection.ended_ns < end_ns:
            verdict.add_problem("unexpected disconnect", f"{numbered_events.name_of(vm)}, connection {number}")
    for n, (written_ns, number) in enumerate(zip(issued.written_ns, issued.connection, strict=True)):
        end_ns, accepted_ns, kind = ends[number]
        accepted = 0 < written_ns < accepted_ns
        verdict.accepted += accepted
        if seen[n]:
            continue
        if not accepted:  # on a full disk, the agent may have dropped and reported the event before it exited
            if not is_expected(n, DropReason.JOURNAL_UNAVAILABLE):
                verdict.exits[kind].add((end_ns - written_ns) / 1e9 if written_ns else 0.0)
            continue
        verdict.missing += 1
        if not is_expected(n, *DropReason):
            early = (end_ns - written_ns) / 1e9
            verdict.add_problem(
                "missing without a cause",
                f"{numbered_events.name_of(vm)} n={n}, {early:.1f} s before the agent was {kind}",
            )


def _end_of_connection(connection: Connection, processes: Sequence[AgentRun]) -> tuple[int, int, ExitKind]:
    """Return until when the agent with a connection could accept events, until when it has accepted all of them, and how it exited.

    Both times are by the monotonic clock in nanoseconds.
    """
    process = processes[bisect_right(processes, connection.connected_ns, key=lambda run: run.started_ns) - 1]
    assert process.exit is not None
    if process.exit is ExitKind.TERMINATED and connection.ended_ns is not None:
        return max(process.ended_ns, connection.ended_ns), process.accepted_ns, process.exit
    return process.ended_ns, process.accepted_ns, process.exit
