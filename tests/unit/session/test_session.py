"""Commands that a session sends to an attached VM, and when."""

import asyncio
import time
from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from typing import Any

import pytest

from agent.collectors import ALL_COLLECTORS, Collector, PollIntervals
from agent.collectors.base import Replies
from agent.model.family import Sample
from agent.model.metrics.runstate import RUNSTATE
from agent.qmp.client import QmpClient
from agent.qmp.commands import Command, OptInQemuChange
from agent.qmp.errors import UnexpectedReplyTypeError
from agent.session.scheduler import SLACK_SECONDS, SPACING_SECONDS, Pacer, Schedule
from agent.session.shared_types import CollectorsByNameAndEvent, PollOutcome
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.qmp_bytes import line
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

EVENTS_ENABLED = [{"capability": "xbzrle", "state": False}, {"capability": "events", "state": True}]
BALLOON_LISTING = [{"name": "type", "type": "string"}, {"name": "balloon0", "type": "child<virtio-balloon-pci>"}]
STATS_INTERVAL = "guest-stats-polling-interval"


def give_balloon(fake: FakeQemu, *, interval: int, stats: Any = None) -> None:
    """Give a fake QEMU a balloon with this polling interval."""
    memory = {"last-update": 5, "stats": {"stat-free-memory": 7}} if stats is None else stats
    fake.replies["qom-list"] = lambda asked: BALLOON_LISTING if asked["path"] == "/machine/peripheral" else []
    fake.replies["qom-get"] = lambda asked: {STATS_INTERVAL: interval, "guest-stats": memory, "type": "none-machine"}[
        asked["property"]
    ]
    fake.replies["qom-set"] = {}
    fake.replies["query-balloon"] = {"actual": 1 << 30}


def record_plans(monkeypatch: pytest.MonkeyPatch, name: str) -> list[float]:
    """Return the list to which the planned times of a collector's polls are added."""
    planned: list[float] = []
    schedule_by = Schedule.schedule_by

    def recording_schedule(self: Schedule, scheduled_name: str, at: float) -> None:
        schedule_by(self, scheduled_name, at)
        if scheduled_name == name:
            planned.append(at)

    monkeypatch.setattr(Schedule, "schedule_by", recording_schedule)
    return planned


def executed(fake: FakeQemu) -> list[str]:
    return [request.get("execute", "") for request in fake.requests]


# --- Minimal polling ---


async def test_a_quiet_vm_is_polled_for_block_statistics_only(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate-capabilities"] = EVENTS_ENABLED
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: observer.outcomes("kvm"))
        fake.requests.clear()
        await observer.wait_for_polls(6)
    assert {tuple(request.items()) for request in fake.requests} == {(("execute", "query-blockstats"),)}


async def test_everything_is_polled_once_at_attach(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate-capabilities"] = EVENTS_ENABLED
    give_balloon(fake, interval=7)
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_until(lambda: observer.outcomes("kvm"))
    assert executed(fake) == [
        *[
            "qmp_capabilities",
            "query-uuid",
            "query-name",
            "query-status",
            "query-migrate-capabilities",
            "qom-list",
            "qom-list",
            "query-commands",
            "qom-get",
        ],
        *["query-cpus-fast", "query-iothreads", "query-kvm", "qom-get"],
        *["query-status", "query-blockstats", "query-named-block-nodes", "query-blockstats"],
        *["query-block", "query-block-jobs", "query-jobs", "query-migrate"],
        *["query-balloon", "qom-get", "query-memory-size-summary", "query-memory-devices"],
        *["query-dirty-rate", "query-vcpu-dirty-limit", "query-dump"],
        *["query-pci", "query-chardev", "query-memdev", "query-tpm", "query-vnc-servers", "query-spice"],
        *["query-stats", "query-stats", "query-cpus-fast"],
    ]
    asked = {
        c.name: []
        if c.reads_only_host_files or c.name in ("guest_agent", "hv_balloon", "virtio_queues")
        else [PollOutcome.OK]
        for c in ALL_COLLECTORS
    }
    assert {c.name: observer.outcomes(c.name) for c in ALL_COLLECTORS} == asked


async def test_migration_is_polled_until_the_first_migration_event(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3, "migration")
        fake.emit("MIGRATION", {"status": "completed"})
        await observer.wait_for_polls(1, "migration")
        fake.requests.clear()
        await observer.wait_for_polls(4)
    assert fake.count("query-migrate") == 0


async def test_an_event_polls_at_once_what_it_invalidates(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls()
        fake.replies["query-status"] = {"status": "paused", "running": False}
        fake.emit("STOP")
        await observer.wait_for_polls(1, "runstate")
    samples = [
        samples for _, _, samples, _ in observer.calls_of("on_samples") if samples and samples[0].family is RUNSTATE
    ]
    assert samples[-1][0].values | {"since_timestamp_seconds": 0} == {
        "status": "paused",
        "running": False,
        "since_timestamp_seconds": 0,
    }
    assert executed(fake)[-2:] == ["query-status", "query-dump"]


async def test_a_burst_of_events_polls_no_more_often_than_the_spacing(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls()
        asked = fake.count("query-status")
        for _ in range(100):
            fake.send_raw(line({"event": "STOP"}) * 50)
            await asyncio.sleep(0.01)
        polls = fake.count("query-status") - asked
    assert 1 / SPACING_SECONDS <= polls <= ceil(1 / (SPACING_SECONDS - SLACK_SECONDS))
    assert len(observer.records("event.stop")) == 5000


async def test_the_balloon_size_comes_from_its_event_without_a_command(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    give_balloon(fake, interval=0)
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls(1, "balloon")
        fake.emit("BALLOON_CHANGE", {"actual": 5}, at=9)
        await observer.wait_until(lambda: observer.records("event.balloon_change"))
        fake.emit("BALLOON_CHANGE", {"actual": "x"})
        await observer.wait_until(lambda: len(observer.records("event.balloon_change")) == 2)
    balloons = [
        (samples, at) for _, (family, *_), samples, at in observer.calls_of("on_samples") if family.name == "balloon"
    ]
    assert [samples[0].values for samples, _ in balloons if samples] == [{"actual_bytes": 1 << 30}, {"actual_bytes": 5}]
    assert balloons[1][1] == 9 * 10**9
    assert fake.count("query-balloon") == 1


# --- Missing commands and invalid answers ---


async def test_an_unknown_command_is_not_sent_again_on_this_connection(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate"] = FakeError("CommandNotFound", "no")
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(4)
        fake.emit("MIGRATION", {"status": "active"})
        await observer.wait_for_polls(3)
        assert fake.count("query-migrate") == 1
        assert observer.outcomes("migration") == [PollOutcome.UNSUPPORTED]
        fake.drop()
        await observer.wait_for_polls(3)
    assert fake.count("query-migrate") == 2  # another connection may lead to another QEMU


async def test_the_commands_of_a_build_are_listed_once_and_missing_ones_never_sent(
    fake: FakeQemu,
) -> None:
    observer = RecordingObserver()
    fake.replies["query-commands"] = [
        {"name": name} for name in ("query-commands", "query-blockstats", "query-block-jobs", "query-status")
    ]
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(2)
        fake.drop()
        await observer.wait_for_polls(2)
    assert fake.count("query-commands") == 1
    assert fake.count("query-block-jobs") == 2  # the collector works without query-jobs, which is newer
    assert not {"query-jobs", "query-migrate", "query-named-block-nodes"} & set(executed(fake))
    assert set(observer.outcomes("migration")) == set(observer.outcomes("nodes")) == {PollOutcome.UNSUPPORTED}
    assert len(observer.outcomes("migration")) == 2
    assert set(observer.outcomes("jobs")) == {PollOutcome.OK}


@pytest.mark.parametrize("answer", [FakeError(), [], [5, {"name": 5}], {"name": "x"}])
async def test_without_a_list_of_commands_all_of_them_are_tried(fake: FakeQemu, answer: Any) -> None:
    observer = RecordingObserver()
    fake.replies["query-commands"] = answer
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(1)
    assert {"query-jobs", "query-migrate"} <= set(executed(fake))


async def test_without_a_balloon_no_balloon_command_is_sent(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    assert not {"query-balloon", "qom-set"} & set(executed(fake))
    assert {request["arguments"]["path"] for request in fake.requests if request.get("execute") == "qom-get"} == {
        "/machine"
    }
    assert observer.outcomes("balloon") == observer.outcomes("guest_memory") == []


async def test_an_invalid_answer_fails_only_its_collector(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-blockstats"] = {"no": "list"}
    fake.replies["query-status"] = FakeError()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    assert set(observer.outcomes("block")) == set(observer.outcomes("runstate")) == {PollOutcome.ERROR}
    assert set(observer.outcomes("migration")) == {PollOutcome.OK}
    assert not [
        families for _, families, _, _ in observer.calls_of("on_samples") if families[0].name in ("block", "runstate")
    ]
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


@pytest.mark.parametrize("failure", [ZeroDivisionError("a bug"), UnexpectedReplyTypeError("no sense")])
async def test_a_collector_that_raises_affects_no_other_collector_or_vm(
    fake: FakeQemu, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(answers: Replies) -> Iterable[Sample]:
        yield Sample(RUNSTATE, (), answers[0])
        raise type(failure)(*failure.args)  # a new exception each time, because a raised one keeps its traceback

    bomb = Collector("bomb", (), lambda _: (Command("query-name"),), explode, next_poll_delay=lambda *_: 0.02)
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as second:
        context = session_context(collectors=CollectorsByNameAndEvent((bomb, *ALL_COLLECTORS)))
        async with supervised(observer, fake.path, second.path, context=context):
            await observer.wait_for_polls(6)
    assert set(observer.outcomes("bomb")) == {PollOutcome.ERROR}
    assert set(observer.outcomes("block")) == {PollOutcome.OK}
    assert observer.types("vm") == ["vm.attached"] * 2 + ["vm.detached"] * 2
    assert caplog.records
    # A bug of the agent has a traceback in the log, a bad answer of QEMU has none.
    assert any(record.exc_info for record in caplog.records) is isinstance(failure, ZeroDivisionError)


# --- Changes ---


async def test_nothing_is_changed_unless_the_operator_allows_it(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    give_balloon(fake, interval=0)
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    assert not {"qom-set", "migrate-set-capabilities"} & set(executed(fake))
    assert observer.outcomes("guest_memory") == []


async def test_guest_statistics_are_enabled_if_allowed_and_off(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    give_balloon(fake, interval=0)
    async with supervised(
        observer, fake.path, context=session_context(OptInQemuChange.GUEST_STATS_INTERVAL, guest_stats_seconds=15)
    ):
        await observer.wait_for_polls(1, "guest_memory")
    (change,) = [request["arguments"] for request in fake.requests if request.get("execute") == "qom-set"]
    assert change == {"path": "/machine/peripheral/balloon0", "property": STATS_INTERVAL, "value": 15}
    assert "migrate-set-capabilities" not in executed(fake)


async def test_an_interval_that_another_client_set_is_kept(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    give_balloon(fake, interval=3)
    async with supervised(
        observer, fake.path, context=session_context(OptInQemuChange.GUEST_STATS_INTERVAL, guest_stats_seconds=15)
    ):
        await observer.wait_for_polls(1, "guest_memory")
    assert "qom-set" not in executed(fake)


async def test_guest_statistics_that_cannot_be_enabled_are_not_polled(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    give_balloon(fake, interval=0)
    fake.replies["qom-set"] = FakeError()
    async with supervised(observer, fake.path, context=session_context(OptInQemuChange.GUEST_STATS_INTERVAL)):
        await observer.wait_for_polls(3)
    assert observer.outcomes("guest_memory") == []
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_migration_events_are_enabled_if_allowed_and_off(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["migrate-set-capabilities"] = {}
    async with supervised(observer, fake.path, context=session_context(OptInQemuChange.MIGRATION_EVENTS)):
        await observer.wait_for_polls(4)
    (change,) = [
        request["arguments"] for request in fake.requests if request.get("execute") == "migrate-set-capabilities"
    ]
    assert change == {"capabilities": [{"capability": "events", "state": True}]}
    assert fake.count("query-migrate") == 1  # events report migrations from now on


async def test_migration_is_polled_if_its_events_cannot_be_enabled(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["migrate-set-capabilities"] = FakeError("GenericError", "There's a migration process in progress")
    async with supervised(observer, fake.path, context=session_context(OptInQemuChange.MIGRATION_EVENTS)):
        await observer.wait_for_polls(3, "migration")
        fake.replies["query-migrate-capabilities"] = EVENTS_ENABLED
        fake.drop()
        await observer.wait_for_polls(3)
    assert fake.count("migrate-set-capabilities") == 1


async def test_each_resync_discovers_the_features_again(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    context = session_context(intervals=PollIntervals(poll=10, guest_memory=10, resync=20))
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(2)
        give_balloon(fake, interval=5)
        await observer.wait_for_polls(2, "balloon")
        assert observer.outcomes("guest_memory")
        give_balloon(fake, interval=0)
        await observer.wait_for_polls(3, "balloon")
        before = len(observer.outcomes("guest_memory"))
        await observer.wait_for_polls(2, "balloon")
    assert len(observer.outcomes("guest_memory")) == before


async def test_polls_are_planned_in_shared_slots(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = record_plans(monkeypatch, "block")
    observer, context = RecordingObserver(), session_context(intervals=PollIntervals(poll=10))
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(4)
        assert context.attached_vms == 1
    assert context.attached_vms == 0
    _at_once, *later = planned
    assert len(later) >= 3
    assert later == pytest.approx([round(at / 10) * 10 for at in later], abs=1e-6)


@pytest.mark.parametrize("interval", [10, 20, 12])
async def test_a_collector_with_a_longer_interval_is_polled_at_that_interval(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    asked = record_plans(monkeypatch, "slow")
    slow = Collector("slow", (), lambda _: (Command("query-name"),), lambda _: (), next_poll_delay=lambda *_: interval)
    observer = RecordingObserver()
    async with supervised(
        observer,
        fake.path,
        context=session_context(
            collectors=CollectorsByNameAndEvent([*ALL_COLLECTORS, slow]), intervals=PollIntervals(poll=10)
        ),
    ):
        await observer.wait_until(lambda: len(observer.outcomes("slow")) >= 4)
    gaps = [later - before for before, later in pairwise(asked[2:])]
    assert gaps == pytest.approx([interval] * len(gaps), abs=SLACK_SECONDS)


async def test_a_vm_without_events_is_not_polled_twice_in_a_row_at_attach(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QmpClient, "receives_events", False)
    observer, began = RecordingObserver(), time.monotonic()
    async with supervised(
        observer, fake.path, context=session_context(intervals=PollIntervals(poll=10), random=lambda: 0.0)
    ):
        await observer.wait_for_polls(2)
    assert time.monotonic() - began >= 0.1 * 0.9 * 10


async def test_an_event_that_invalidates_an_answer_advances_the_first_poll(fake: FakeQemu) -> None:
    pacer = Pacer(60, 60)
    pacer.reserve_time(time.monotonic())
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(first_polls=pacer)):
        await observer.wait_until(lambda: observer.records("vm.attached"))
        fake.emit("RTC_CHANGE", {"offset": 1})  # invalidates nothing
        fake.emit("DEVICE_DELETED", {"path": "/machine"})
        await observer.wait_for_polls()
    asked = executed(fake)
    assert asked.index("query-commands") < asked.index("query-cpus-fast")
