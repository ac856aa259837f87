"""Failing collectors: a reply that cannot be read switches off its collector, and no other collector."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import ALL_COLLECTORS, PollIntervals
from agent.collectors.base import Collector
from agent.qmp.commands import Command
from agent.session.collector_failures import MAX_CAUSE, CollectorFailures
from agent.session.shared_types import CollectorsByNameAndEvent, MonitorState, MonitorStatus, PollOutcome
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.qmp_bytes import line
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.lab.transcript import UUID

TRAILING_COMMA = b'{"return":[{"device":"d","locked":false,}]}\r\n'
NOT_A_NUMBER = b'{"return":{"status":"active","mbps":nan}}\r\n'


def last_status(observer: RecordingObserver) -> MonitorStatus:
    status: MonitorStatus = observer.calls_of("on_status")[-1]
    return status


def failing_collectors(observer: RecordingObserver) -> list[str]:
    """Return the names of the collectors in the last reported status that fail."""
    return [name for name, _ in last_status(observer).degraded]


def raise_error(_replies: Any) -> Any:
    raise ZeroDivisionError("x")


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_the_time_off_doubles_with_each_failure_up_to_the_maximum(outcomes: list[bool]) -> None:
    failures, in_a_row = CollectorFailures(), 0
    for failed in outcomes:
        if failed:
            in_a_row += 1
            assert failures.add("block", "x", 100.0, 20.0, 600.0) == min(600.0, 20.0 * 2 ** (in_a_row - 1))
            assert failures.retry_at("block") > 100.0
        else:
            assert failures.clear("block") is (in_a_row > 0)
            in_a_row = 0
            assert failures.retry_at("block") < 0
        assert bool(failures.degraded) is ("block" in failures) is (in_a_row > 0)


def test_a_cause_is_sanitized_and_truncated() -> None:
    failures = CollectorFailures()
    failures.add("b", "a\nb" + "x" * 1000, 0, 1, 1)
    failures.add("a", "y", 0, 1, 1)
    (first, second) = failures.degraded
    assert first == ("a", "y")
    assert second == ("b", "a\ufffdb" + "x" * (MAX_CAUSE - 3))


@pytest.mark.parametrize(
    ("command", "reply", "collector"),
    [
        ("query-block", {"not": "a list"}, "drives"),
        ("query-migrate", ["not an object"], "migration"),
        ("query-status", 5, "runstate"),
        ("query-block", TRAILING_COMMA, "drives"),
        ("query-migrate", NOT_A_NUMBER, "migration"),
        ("query-block", b'{"return":[' + b"1" * (17 << 20) + b"]}\r\n", "drives"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:40],
)
async def test_an_unreadable_reply_degrades_the_vm_and_costs_its_collector_only(
    fake: FakeQemu, command: str, reply: Any, collector: str
) -> None:
    fake.replies[command] = reply
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(
            lambda: observer.calls_of("on_status") and failing_collectors(observer) == [collector]
        )
        await observer.wait_for_polls(3, "block")
        assert last_status(observer).state is MonitorState.UP
        fake.emit("GUEST_PANICKED", {"action": "pause"})
        await observer.wait_until(lambda: observer.records("event.guest_panicked"))
        assert failing_collectors(observer) == [collector]
        del fake.replies[command]
        await observer.wait_until(lambda: failing_collectors(observer) == [])
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


@pytest.mark.parametrize("noise", [b"5\r\n", b'{"return":1}{"return":2}\r\n'], ids=["no message", "two messages"])
async def test_of_a_batch_only_the_collector_at_fault_is_off(fake: FakeQemu, noise: bytes) -> None:
    """The answer to query-block is a message that may belong to any command of its batch."""
    fake.replies["query-block"] = noise
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer) == ["drives"])
        await observer.wait_for_polls(3, "block")
        assert {name for status in observer.calls_of("on_status") for name, _ in status.degraded} == {"drives"}
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_after_a_protocol_error_only_the_collector_at_fault_is_off(fake: FakeQemu) -> None:
    """QEMU answers query-block with two replies, the second of them without a command."""
    fake.replies["query-block"] = line({"return": []}) + line({"return": []}) * 8
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context()):
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer) == ["drives"])
        await observer.wait_for_polls(3, "block")
        assert {name for status in observer.calls_of("on_status") for name, _ in status.degraded} == {"drives"}


async def test_a_failing_collector_is_polled_less_and_less_often(fake: FakeQemu) -> None:
    fake.replies["query-blockstats"] = {"not": "a list"}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        start = time.monotonic()
        await observer.wait_until(lambda: len(observer.outcomes("block")) >= 4)
        seconds = time.monotonic() - start
    assert set(observer.outcomes("block")) == {PollOutcome.ERROR}
    assert seconds == pytest.approx(20 + 40 + 80)
    assert {cause for status in observer.calls_of("on_status") for _, cause in status.degraded} == {
        "expected list, got dict"
    }


async def test_an_error_of_qemu_after_an_unreadable_reply_is_not_polled_again_at_once(fake: FakeQemu) -> None:
    fake.replies["query-block"] = TRAILING_COMMA
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer) == ["drives"])
        fake.replies["query-block"] = FakeError()
        await observer.wait_until(lambda: failing_collectors(observer) == [])  # the error can be read
        polls = fake.count("query-block")
        await observer.wait_for_polls(5, "block")
        assert fake.count("query-block") - polls <= 10


async def test_events_and_resyncs_do_not_poll_a_collector_that_is_off(fake: FakeQemu) -> None:
    fake.replies["query-status"] = ["not an object"]
    observer = RecordingObserver()
    context = session_context(intervals=PollIntervals(poll=30), random=lambda: 0.0)  # a resync is at once
    async with supervised(observer, fake.path, context=context) as group:
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer))
        polls = fake.count("query-status")
        fake.emit("STOP")
        await observer.wait_until(lambda: observer.records("event.stop"))
        group.resync()
        await observer.wait_for_polls(1, "inventory")
        assert fake.count("query-status") == polls


async def test_connections_that_are_lost_soon_are_retried_less_and_less_often(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(max_retry_seconds=60)):
        for times in range(1, 4):
            await observer.wait_until(lambda: len(observer.records("vm.attached")) == times)  # noqa: B023 - awaited here
            fake.send_raw(line({"return": {}}))  # a reply to nothing
        start = time.monotonic()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 4)
        assert time.monotonic() - start >= 0.5 * 0.2 * 2**3
    assert observer.types("vm.gone") == []


async def test_a_bug_in_a_collector_degrades_the_vm_with_the_exception(fake: FakeQemu) -> None:
    bug = Collector("bug", (), lambda _: (Command("query-name"),), raise_error)
    observer = RecordingObserver()
    async with supervised(
        observer, fake.path, context=session_context(collectors=CollectorsByNameAndEvent([*ALL_COLLECTORS, bug]))
    ):
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer))
        assert last_status(observer).degraded == (("bug", "ZeroDivisionError: x"),)


async def test_a_failing_collector_without_anything_to_query_any_more_is_not_degraded(fake: FakeQemu) -> None:
    commands = [Command("query-name")]
    collector = Collector("gone", (), lambda _: tuple(commands), raise_error)
    observer = RecordingObserver()
    context = session_context(
        random=lambda: 0.0, collectors=CollectorsByNameAndEvent([*ALL_COLLECTORS, collector])
    )  # a resync is at once
    async with supervised(observer, fake.path, context=context) as group:
        await observer.wait_until(lambda: observer.calls_of("on_status") and failing_collectors(observer) == ["gone"])
        commands.clear()
        group.resync()
        await observer.wait_until(lambda: failing_collectors(observer) == [])


@pytest.mark.parametrize("command", ["query-migrate-capabilities", "qom-list", "query-commands", "query-cpus-fast"])
async def test_an_unreadable_reply_in_discovery_degrades_the_vm_until_the_next_resync(
    fake: FakeQemu, command: str
) -> None:
    fake.replies[command] = TRAILING_COMMA
    observer = RecordingObserver()
    context = session_context(random=lambda: 0.0)  # a resync is at once
    async with supervised(observer, fake.path, context=context) as group:
        await observer.wait_until(
            lambda: observer.calls_of("on_status") and "discovery" in failing_collectors(observer)
        )
        await observer.wait_for_polls(3)
        assert (context.build_commands == {}) is (command == "query-commands")
        del fake.replies[command]
        group.resync()
        await observer.wait_until(lambda: "discovery" not in failing_collectors(observer))
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


@pytest.mark.parametrize("reply", [TRAILING_COMMA, b"5\r\n"], ids=["its own reply", "any reply"])
async def test_a_vm_that_cannot_be_identified_is_not_gone(fake: FakeQemu, reply: bytes) -> None:
    fake.replies["query-uuid"] = reply
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(
            lambda: observer.calls_of("on_status") and "cannot be identified" in last_status(observer).reason
        )
        assert last_status(observer).state is MonitorState.CONNECTING
        assert MonitorState.GONE not in observer.states()
        del fake.replies["query-uuid"]
        await observer.wait_until(lambda: MonitorState.UP in observer.states())


LATE_REPLY = {"query-uuid": {}, "query-name": {"UUID": UUID}, "query-status": {"name": "vm1"}}
"""Replies that are one place late: QEMU first replied to the negotiation of a connection that has ended."""


@pytest.mark.parametrize("late", [LATE_REPLY, {"query-uuid": {}, "query-name": {}, "query-status": {"UUID": UUID}}])
async def test_a_late_reply_to_an_earlier_connection_gives_no_vm_another_identity(
    fake: FakeQemu, late: dict[str, Any]
) -> None:
    """A QEMU that starts slowly sent it: the agent had closed the connection because the negotiation took too long."""
    fake.replies |= late
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(
            lambda: observer.calls_of("on_status") and "an earlier connection" in last_status(observer).reason
        )
        assert last_status(observer).state is MonitorState.CONNECTING
        for command in late:
            del fake.replies[command]
        await observer.wait_until(lambda: MonitorState.UP in observer.states())
    (attached,) = observer.records("vm.attached")
    assert (attached.vm.uuid, attached.vm.name) == (UUID, "vm1")


@pytest.mark.parametrize("reply", [{}, [], [{"name": "type", "type": "string"}]])
async def test_commands_that_another_reply_lists_are_not_those_of_the_build(fake: FakeQemu, reply: Any) -> None:
    """All VMs of one build use the list, so a wrong list would stop the polls of all of them."""
    fake.replies["query-commands"] = reply
    observer, context = RecordingObserver(), session_context()
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(2, "block")
    assert context.build_commands == {}


@pytest.mark.parametrize(
    ("command", "reply"),
    [("query-name", TRAILING_COMMA), ("query-name", b"5\r\n"), ("query-status", TRAILING_COMMA)],
    ids=["name", "any reply", "run state"],
)
async def test_a_vm_with_a_uuid_is_watched_without_its_name_and_run_state(
    fake: FakeQemu, command: str, reply: bytes
) -> None:
    fake.replies[command] = reply
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: observer.records("vm.attached"))
        await observer.wait_for_polls(2, "block")
        (attached,) = observer.records("vm.attached")
        assert (attached.vm.name == attached.vm.uuid) is (command == "query-name")
