"""Threshold commands: executed one by one between polls, with their outcomes reported to the controller."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agent.collectors import PollIntervals
from agent.model.record import Vm
from agent.qmp.commands import Command, OptInQemuChange
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.transcript import UUID

SLOW = PollIntervals(poll=30)


def threshold(node: str, value: int = 5) -> Command:
    return Command("block-set-write-threshold", {"node-name": node, "write-threshold": value})


class RecordingController:
    """A ThresholdController that returns each of its commands once, by disk, and records the outcomes."""

    def __init__(self, **commands: Command) -> None:
        self.commands = dict(commands)
        self.collectors_to_poll: set[str] = set()
        self.outcomes: list[tuple[str, bool]] = []
        self.outcome_added = asyncio.Event()

    def pop_collectors_to_poll(self, vm: Vm) -> set[str]:
        assert vm.uuid == UUID
        collectors_to_poll, self.collectors_to_poll = self.collectors_to_poll, set()
        return collectors_to_poll

    def has_pending_commands(self, vm: Vm) -> bool:
        assert vm.uuid == UUID
        return bool(self.commands)

    async def pop_pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        assert vm.uuid == UUID
        commands, self.commands = list(self.commands.items()), {}
        return commands

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        assert vm.uuid == UUID
        self.outcomes.append((disk, done))
        self.outcome_added.set()


def nodes_of_commands(fake: FakeQemu) -> list[Any]:
    """Return the nodes whose threshold was set, in order."""
    return [request["arguments"]["node-name"] for request in fake.requests if "threshold" in request.get("execute", "")]


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


async def test_threshold_commands_run_one_by_one_and_their_outcomes_are_reported(
    fake: FakeQemu, observer: RecordingObserver
) -> None:
    fake.replies["block-set-write-threshold"] = lambda a: FakeError() if a["node-name"] == "bad" else {}
    controller = RecordingController(a=threshold("n1"), b=threshold("bad"), c=threshold("n2"))
    context = session_context(OptInQemuChange.WRITE_THRESHOLD, thresholds=controller, intervals=SLOW)
    async with supervised(observer, fake.path, context=context), asyncio.timeout(TIMEOUT_SECONDS):
        while len(controller.outcomes) < 3:
            controller.outcome_added.clear()
            await controller.outcome_added.wait()
    assert nodes_of_commands(fake) == ["n1", "bad", "n2"]
    assert controller.outcomes == [("a", True), ("b", False), ("c", True)]
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_refreshes_due_after_the_commands_are_polled_at_once(fake: FakeQemu, observer: RecordingObserver) -> None:
    controller = RecordingController()
    controller.collectors_to_poll = {"nodes"}
    async with supervised(observer, fake.path, context=session_context(thresholds=controller, intervals=SLOW)):
        await observer.wait_for_polls(2, "nodes")  # at attach, and because the refresh was due
    assert observer.outcomes("balloon") == []


async def test_refreshes_due_after_an_event_are_polled_at_once(fake: FakeQemu, observer: RecordingObserver) -> None:
    controller = RecordingController()
    async with supervised(observer, fake.path, context=session_context(thresholds=controller, intervals=SLOW)):
        await observer.wait_for_polls(1, "nodes")
        controller.collectors_to_poll = {"nodes"}
        fake.emit("BLOCK_WRITE_THRESHOLD", {"node-name": "n1", "write-threshold": 5, "amount-exceeded": 1})
        await observer.wait_for_polls(1, "nodes")
    assert fake.count("query-named-block-nodes") == 2


async def test_a_command_that_stalls_is_reported_when_qemu_answers(fake: FakeQemu, observer: RecordingObserver) -> None:
    fake.hang("block-set-write-threshold")
    controller = RecordingController(a=threshold("n1"))
    async with supervised(
        observer,
        fake.path,
        context=session_context(OptInQemuChange.WRITE_THRESHOLD, thresholds=controller),
    ):
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        assert controller.outcomes == []
        fake.release("block-set-write-threshold")
        await observer.wait_until(lambda: observer.records("vm.recovered"))
        await observer.wait_for_polls(2)
    assert [disk for disk, _ in controller.outcomes] == ["a"]


async def test_a_command_on_a_lost_connection_is_reported_as_not_done(
    fake: FakeQemu, observer: RecordingObserver
) -> None:
    fake.hang("block-set-write-threshold")
    controller = RecordingController(a=threshold("n1"))
    context = session_context(OptInQemuChange.WRITE_THRESHOLD, thresholds=controller)
    async with supervised(observer, fake.path, context=context):
        await fake.wait_for("block-set-write-threshold")
        fake.drop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
    assert controller.outcomes == [("a", False)]


async def test_a_snapshot_without_an_event_polls_the_layers_again(fake: FakeQemu, observer: RecordingObserver) -> None:
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
        assert fake.count("query-named-block-nodes") == 1
        disk = {"qdev": "disk0", "node-name": "overlay", "stats": {}, "parent": {"node-name": "overlay-file"}}
        fake.replies["query-blockstats"] = [disk]
        await observer.wait_for_polls(1, "nodes")
        await observer.wait_for_polls(3)
    assert fake.count("query-named-block-nodes") == 2
