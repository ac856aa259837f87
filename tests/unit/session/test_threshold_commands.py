"""Thresholds that are ordered: made one by one between polls, and whoever ordered them learns what came of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agent.collectors import Intervals
from agent.model.record import Vm
from agent.qmp.commands import Change, Command
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.transcript import UUID

SLOW = Intervals(poll=30)


def threshold(node: str, value: int = 5) -> Command:
    return Command("block-set-write-threshold", {"node-name": node, "write-threshold": value})


class Orders:
    """A Commander that orders what it is told to, once, and keeps what it learns."""

    def __init__(self, **orders: Command) -> None:
        self.open = dict(orders)
        self.wanted: set[str] = set()
        self.detected_by: list[tuple[str, bool]] = []
        self.news = asyncio.Event()

    def refreshes_due(self, vm: Vm) -> set[str]:
        assert vm.uuid == UUID
        wanted, self.wanted = self.wanted, set()
        return wanted

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        assert vm.uuid == UUID
        orders, self.open = list(self.open.items()), {}
        return orders

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        assert vm.uuid == UUID
        self.detected_by.append((disk, done))
        self.news.set()


def sent(fake: FakeQemu) -> list[Any]:
    """Return the thresholds that were set, in order."""
    return [request["arguments"]["node-name"] for request in fake.requests if "threshold" in request.get("execute", "")]


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


async def test_orders_are_made_one_by_one_and_their_outcome_is_told(
    fake: FakeQemu, observer: RecordingObserver
) -> None:
    fake.replies["block-set-write-threshold"] = lambda a: FakeError() if a["node-name"] == "bad" else {}
    orders = Orders(a=threshold("n1"), b=threshold("bad"), c=threshold("n2"))
    context = quick_context(Change.WRITE_THRESHOLD, thresholds=orders, intervals=SLOW)
    async with supervised(observer, fake.path, context=context), asyncio.timeout(TIMEOUT_SECONDS):
        while len(orders.detected_by) < 3:
            orders.news.clear()
            await orders.news.wait()
    assert sent(fake) == ["n1", "bad", "n2"]
    assert orders.detected_by == [("a", True), ("b", False), ("c", True)]
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_what_is_wanted_after_orders_is_asked_at_once(fake: FakeQemu, observer: RecordingObserver) -> None:
    orders = Orders()
    orders.wanted = {"nodes"}
    async with supervised(observer, fake.path, context=quick_context(thresholds=orders, intervals=SLOW)):
        await observer.wait_for_polls(2, "nodes")  # at attach, and because it was wanted
    assert observer.outcomes("balloon") == []


async def test_what_an_event_makes_wanted_is_asked_at_once(fake: FakeQemu, observer: RecordingObserver) -> None:
    orders = Orders()
    async with supervised(observer, fake.path, context=quick_context(thresholds=orders, intervals=SLOW)):
        await observer.wait_for_polls(1, "nodes")
        orders.wanted = {"nodes"}
        fake.emit("BLOCK_WRITE_THRESHOLD", {"node-name": "n1", "write-threshold": 5, "amount-exceeded": 1})
        await observer.wait_for_polls(1, "nodes")
    assert fake.count("query-named-block-nodes") == 2


async def test_an_order_whose_reply_is_late_is_told_of_when_qemu_answers_again(
    fake: FakeQemu, observer: RecordingObserver
) -> None:
    fake.hang("block-set-write-threshold")
    orders = Orders(a=threshold("n1"))
    async with supervised(observer, fake.path, context=quick_context(Change.WRITE_THRESHOLD, thresholds=orders)):
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        assert orders.detected_by == []
        fake.release("block-set-write-threshold")
        await observer.wait_until(lambda: observer.records("vm.recovered"))
        await observer.wait_for_polls(2)
    assert [disk for disk, _ in orders.detected_by] == ["a"]


async def test_an_order_that_was_cut_off_is_told_of_too(fake: FakeQemu, observer: RecordingObserver) -> None:
    fake.hang("block-set-write-threshold")
    orders = Orders(a=threshold("n1"))
    context = quick_context(Change.WRITE_THRESHOLD, thresholds=orders, response_seconds=5)
    async with supervised(observer, fake.path, context=context):
        await fake.wait_for("block-set-write-threshold")
        fake.drop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
    assert orders.detected_by == [("a", False)]


async def test_a_snapshot_that_no_event_tells_of_has_the_layers_asked_again(
    fake: FakeQemu, observer: RecordingObserver
) -> None:
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
        assert fake.count("query-named-block-nodes") == 1
        disk = {"qdev": "disk0", "node-name": "overlay", "stats": {}, "parent": {"node-name": "overlay-file"}}
        fake.replies["query-blockstats"] = [disk]
        await observer.wait_for_polls(1, "nodes")
        await observer.wait_for_polls(3)
    assert fake.count("query-named-block-nodes") == 2
