"""Polls of a quiet VM run without the session's task; all other work is left to the task."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agent.collectors import PollIntervals
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import Vm
from agent.qmp.client import CommandResult, QmpClient
from agent.qmp.commands import Command
from agent.session.shared_types import MonitorState, PollOutcome
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

EVENTS_ENABLED = [{"capability": "events", "state": True}]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Command]]:
    """The commands that tasks execute."""
    batches: list[Sequence[Command]] = []
    execute = QmpClient.execute

    async def recording_execute(
        self: QmpClient, commands: Sequence[Command], *, deadline: float
    ) -> list[CommandResult]:
        batches.append(commands)
        return await execute(self, commands, deadline=deadline)

    monkeypatch.setattr(QmpClient, "execute", recording_execute)
    return batches


@pytest.fixture
def quiet_fake(fake: FakeQemu) -> FakeQemu:
    """A QEMU with migration events, so that its steady poll is one command."""
    fake.replies["query-migrate-capabilities"] = EVENTS_ENABLED
    return fake


async def test_a_quiet_poll_needs_no_task(quiet_fake: FakeQemu, executed: list[Sequence[Command]]) -> None:
    observer = RecordingObserver()
    async with supervised(observer, quiet_fake.path, context=session_context()):
        await observer.wait_for_polls(3)
        executed.clear()
        await observer.wait_for_polls(5)
        tasks = len(asyncio.all_tasks())
        await observer.wait_for_polls(1)
        assert len(asyncio.all_tasks()) == tasks
    assert executed == []


async def test_a_poll_that_waits_for_storage_is_left_to_the_task(
    quiet_fake: FakeQemu, executed: list[Sequence[Command]]
) -> None:
    observer, context = RecordingObserver(), session_context(intervals=PollIntervals())
    async with supervised(observer, quiet_fake.path, context=context):
        await observer.wait_until(lambda: observer.outcomes("kvm"))
        executed.clear()
        (vm,) = context.schedule_by_vm
        context.schedule_vm_collectors_now(vm, ("drives",))
        await observer.wait_for_polls(1, "drives")
    assert [*map(list, executed)] == [[Command("query-block")]]


async def test_an_overdue_quiet_poll_is_a_stall_and_everything_is_polled_after_it(quiet_fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, quiet_fake.path, context=session_context()):
        await observer.wait_for_polls(3)
        quiet_fake.hang("query-blockstats")
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        assert observer.outcomes("block")[-1] is PollOutcome.TIMEOUT
        quiet_fake.requests.clear()
        quiet_fake.release("query-blockstats")
        await observer.wait_until(lambda: observer.records("vm.recovered"))
        await observer.wait_for_polls(1, "nodes")
    reason = observer.records("vm.stalled")[0].data["reason"]
    assert reason == "no reply to query-blockstats within 5 s"
    assert observer.states().count(MonitorState.STALLED) >= 1


async def test_a_lost_connection_during_a_quiet_poll_ends_the_session(quiet_fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, quiet_fake.path, context=session_context()):
        await observer.wait_for_polls(3)
        quiet_fake.hang("query-blockstats")
        await quiet_fake.wait_for("query-blockstats", quiet_fake.count("query-blockstats") + 1)
        quiet_fake.drop()
        await observer.wait_until(lambda: observer.records("vm.gone"))


async def test_a_bug_in_a_quiet_poll_ends_only_its_session_which_begins_again(
    quiet_fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    observer, on_samples, broken = RecordingObserver(), RecordingObserver.on_samples, [False]

    def failing_on_samples(
        self: RecordingObserver, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int
    ) -> None:
        if broken[0] and BLOCK in families:
            broken[0] = False
            raise ZeroDivisionError("a bug")
        on_samples(self, vm, families, samples, time_ns)

    monkeypatch.setattr(RecordingObserver, "on_samples", failing_on_samples)
    async with supervised(observer, quiet_fake.path):
        await observer.wait_for_polls(3)
        broken[0] = True
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        await observer.wait_for_polls(3)
    assert "internal error; the agent will connect again" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


async def test_events_in_one_chunk_lead_to_one_write(quiet_fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, quiet_fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls(1, "kvm")
        quiet_fake.requests.clear()
        events: list[tuple[str, dict[str, Any]]] = [("STOP", {}), ("BALLOON_CHANGE", {"actual": 1})]
        for name, data in events:
            quiet_fake.emit(name, data)
        await observer.wait_for_polls(1, "runstate")
    assert quiet_fake.count("query-status") == 1
