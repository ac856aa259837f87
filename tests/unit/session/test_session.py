"""What an attached VM is asked, and when."""

import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from agent.collectors import ALL, Collector, Intervals
from agent.collectors.base import Replies
from agent.model.family import Sample
from agent.model.metrics.runstate import RUNSTATE
from agent.qmp.client import Client
from agent.qmp.commands import Change, Command
from agent.qmp.errors import UnexpectedReplyError
from agent.session.api import CollectorIndex, PollOutcome
from agent.session.scheduler import SLACK_SECONDS, SPACING_SECONDS, Pacer, Schedule
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.qmp_bytes import line
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised

ON = [{"capability": "xbzrle", "state": False}, {"capability": "events", "state": True}]
BALLOON = [{"name": "type", "type": "string"}, {"name": "balloon0", "type": "child<virtio-balloon-pci>"}]
POLLING = "guest-stats-polling-interval"


def has_balloon(fake: FakeQemu, *, interval: int, stats: Any = None) -> None:
    """Give a fake a balloon whose guest is asked this often."""
    memory = {"last-update": 5, "stats": {"stat-free-memory": 7}} if stats is None else stats
    fake.replies["qom-list"] = lambda asked: BALLOON if asked["path"] == "/machine/peripheral" else []
    fake.replies["qom-get"] = lambda asked: {POLLING: interval, "guest-stats": memory, "type": "none-machine"}[
        asked["property"]
    ]
    fake.replies["qom-set"] = {}
    fake.replies["query-balloon"] = {"actual": 1 << 30}


def plans(monkeypatch: pytest.MonkeyPatch, name: str) -> list[float]:
    """Return when a collector is planned to be asked, as far as it is by now."""
    planned: list[float] = []
    plan = Schedule.plan

    def noting(self: Schedule, whose: str, at: float) -> None:
        plan(self, whose, at)
        if whose == name:
            planned.append(at)

    monkeypatch.setattr(Schedule, "plan", noting)
    return planned


def executed(fake: FakeQemu) -> list[str]:
    return [request.get("execute", "") for request in fake.requests]


# --- Only what is needed ---


async def test_a_quiet_vm_is_asked_nothing_but_its_block_statistics(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate-capabilities"] = ON
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: observer.outcomes("kvm"))
        fake.requests.clear()
        await observer.wait_for_polls(6)
    assert {tuple(request.items()) for request in fake.requests} == {(("execute", "query-blockstats"),)}


async def test_at_attach_everything_is_asked_once(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate-capabilities"] = ON
    has_balloon(fake, interval=7)
    async with supervised(observer, fake.path, context=quick_context(intervals=Intervals())):
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
    asked = {c.name: [] if c.host_only or c.name == "hv_balloon" else [PollOutcome.OK] for c in ALL}
    assert {c.name: observer.outcomes(c.name) for c in ALL} == asked


async def test_migration_is_polled_where_its_events_are_off_until_the_first_of_them(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3, "migration")
        fake.emit("MIGRATION", {"status": "completed"})
        await observer.wait_for_polls(1, "migration")
        fake.requests.clear()
        await observer.wait_for_polls(4)
    assert fake.count("query-migrate") == 0


async def test_an_event_has_what_it_made_untrue_asked_at_once(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=quick_context(intervals=Intervals())):
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


async def test_a_storm_of_events_asks_no_more_often_than_the_spacing(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=quick_context(intervals=Intervals())):
        await observer.wait_for_polls()
        asked, start = fake.count("query-status"), time.monotonic()
        while fake.count("query-status") < asked + 3:
            fake.send_raw(line({"event": "STOP"}) * 50)
            before = len(observer.records("event.stop"))
            await observer.wait_until(lambda: len(observer.records("event.stop")) > before)  # noqa: B023 - awaited here
        seconds = time.monotonic() - start
    assert seconds >= 2 * (SPACING_SECONDS - SLACK_SECONDS)
    assert len(observer.records("event.stop")) >= 1000


async def test_the_balloons_size_is_read_out_of_its_event_with_no_question(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_balloon(fake, interval=0)
    async with supervised(observer, fake.path, context=quick_context(intervals=Intervals())):
        await observer.wait_for_polls(1, "balloon")
        fake.emit("BALLOON_CHANGE", {"actual": 5}, at=9)
        await observer.wait_until(lambda: observer.records("event.balloon_change"))
        fake.emit("BALLOON_CHANGE", {"actual": "x"})
        await observer.wait_until(lambda: len(observer.records("event.balloon_change")) == 2)
    told = [
        (samples, at) for _, (family, *_), samples, at in observer.calls_of("on_samples") if family.name == "balloon"
    ]
    assert [samples[0].values for samples, _ in told if samples] == [{"actual_bytes": 1 << 30}, {"actual_bytes": 5}]
    assert told[1][1] == 9 * 10**9
    assert fake.count("query-balloon") == 1


# --- What a QEMU does not have ---


async def test_a_command_that_is_not_there_is_not_asked_again_on_this_connection(fake: FakeQemu) -> None:
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
    assert fake.count("query-migrate") == 2  # another connection may be another QEMU


async def test_what_a_qemu_understands_is_asked_once_for_its_build_and_what_it_lacks_is_never_asked(
    fake: FakeQemu,
) -> None:
    observer = RecordingObserver()
    fake.replies["query-commands"] = [
        {"name": name} for name in ("query-blockstats", "query-block-jobs", "query-status")
    ]
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(2)
        fake.drop()
        await observer.wait_for_polls(2)
    assert fake.count("query-commands") == 1
    assert fake.count("query-block-jobs") == 2  # it does without query-jobs, which came later
    assert not {"query-jobs", "query-migrate", "query-named-block-nodes"} & set(executed(fake))
    assert set(observer.outcomes("migration")) == set(observer.outcomes("nodes")) == {PollOutcome.UNSUPPORTED}
    assert len(observer.outcomes("migration")) == 2
    assert set(observer.outcomes("jobs")) == {PollOutcome.OK}


@pytest.mark.parametrize("answer", [FakeError(), [], [5, {"name": 5}], {"name": "x"}])
async def test_a_qemu_that_does_not_say_what_it_understands_is_tried(fake: FakeQemu, answer: Any) -> None:
    observer = RecordingObserver()
    fake.replies["query-commands"] = answer
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(1)
    assert {"query-jobs", "query-migrate"} <= set(executed(fake))


async def test_without_a_balloon_nothing_of_it_is_asked(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    assert not {"query-balloon", "qom-set"} & set(executed(fake))
    assert {request["arguments"]["path"] for request in fake.requests if request.get("execute") == "qom-get"} == {
        "/machine"
    }
    assert observer.outcomes("balloon") == observer.outcomes("guest_memory") == []


async def test_an_answer_that_makes_no_sense_fails_its_collector_and_no_other(fake: FakeQemu) -> None:
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


@pytest.mark.parametrize("failure", [ZeroDivisionError("a bug"), UnexpectedReplyError("no sense")])
async def test_a_collector_that_explodes_harms_no_other_and_no_other_vm(
    fake: FakeQemu, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(answers: Replies) -> Iterable[Sample]:
        yield Sample(RUNSTATE, (), answers[0])
        raise type(failure)(
            *failure.args
        )  # a new one each time: one that is raised keeps hold of where, for as long as it is there

    bomb = Collector("bomb", (), lambda _: (Command("query-name"),), explode, next_poll_delay=lambda *_: 0.02)
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as second:
        context = quick_context(collectors=CollectorIndex((bomb, *ALL)))
        async with supervised(observer, fake.path, second.path, context=context):
            await observer.wait_for_polls(6)
    assert set(observer.outcomes("bomb")) == {PollOutcome.ERROR}
    assert set(observer.outcomes("block")) == {PollOutcome.OK}
    assert observer.types("vm") == ["vm.attached"] * 2 + ["vm.detached"] * 2
    assert bool(caplog.records) is isinstance(failure, ZeroDivisionError)  # our bugs are told, QEMU's answers are not


# --- Changes ---


async def test_nothing_is_changed_unless_the_operator_allowed_it(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_balloon(fake, interval=0)
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    assert not {"qom-set", "migrate-set-capabilities"} & set(executed(fake))
    assert observer.outcomes("guest_memory") == []


async def test_guest_statistics_are_turned_on_where_allowed_and_nobody_has(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_balloon(fake, interval=0)
    async with supervised(
        observer, fake.path, context=quick_context(Change.GUEST_STATS_INTERVAL, guest_stats_seconds=15)
    ):
        await observer.wait_for_polls(1, "guest_memory")
    (change,) = [request["arguments"] for request in fake.requests if request.get("execute") == "qom-set"]
    assert change == {"path": "/machine/peripheral/balloon0", "property": POLLING, "value": 15}
    assert "migrate-set-capabilities" not in executed(fake)


async def test_guest_statistics_that_somebody_else_turned_on_are_left_as_they_are(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_balloon(fake, interval=3)
    async with supervised(
        observer, fake.path, context=quick_context(Change.GUEST_STATS_INTERVAL, guest_stats_seconds=15)
    ):
        await observer.wait_for_polls(1, "guest_memory")
    assert "qom-set" not in executed(fake)


async def test_where_guest_statistics_cannot_be_turned_on_they_are_not_asked_for(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_balloon(fake, interval=0)
    fake.replies["qom-set"] = FakeError()
    async with supervised(observer, fake.path, context=quick_context(Change.GUEST_STATS_INTERVAL)):
        await observer.wait_for_polls(3)
    assert observer.outcomes("guest_memory") == []
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_migration_events_are_turned_on_where_allowed_and_off(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["migrate-set-capabilities"] = {}
    async with supervised(observer, fake.path, context=quick_context(Change.MIGRATION_EVENTS)):
        await observer.wait_for_polls(4)
    (change,) = [
        request["arguments"] for request in fake.requests if request.get("execute") == "migrate-set-capabilities"
    ]
    assert change == {"capabilities": [{"capability": "events", "state": True}]}
    assert fake.count("query-migrate") == 1  # from now on events tell


async def test_migration_events_that_are_on_are_left_and_those_that_cannot_be_are_polled_for(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.replies["migrate-set-capabilities"] = FakeError("GenericError", "There's a migration process in progress")
    async with supervised(observer, fake.path, context=quick_context(Change.MIGRATION_EVENTS)):
        await observer.wait_for_polls(3, "migration")
        fake.replies["query-migrate-capabilities"] = ON
        fake.drop()
        await observer.wait_for_polls(3)
    assert fake.count("migrate-set-capabilities") == 1


async def test_at_each_resync_what_the_vm_has_is_learned_anew(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    context = quick_context(intervals=Intervals(poll=0.05, guest_memory=0.05, resync=0.1))
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(2)
        has_balloon(fake, interval=5)
        await observer.wait_for_polls(2, "balloon")
        assert observer.outcomes("guest_memory")
        has_balloon(fake, interval=0)
        await observer.wait_for_polls(3, "balloon")
        before = len(observer.outcomes("guest_memory"))
        await observer.wait_for_polls(2, "balloon")
    assert len(observer.outcomes("guest_memory")) == before


async def test_polls_are_planned_for_the_moments_that_a_vm_shares_with_others(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plans(monkeypatch, "block")
    observer, context = RecordingObserver(), quick_context(intervals=Intervals(poll=0.25))
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(4)
        assert context.attached_vms == 1
    assert context.attached_vms == 0
    _at_once, *later = planned
    assert len(later) >= 3
    assert later == pytest.approx([round(at / 0.25) * 0.25 for at in later], abs=1e-6)


@pytest.mark.parametrize("interval", [0.25, 0.5, 0.3])
async def test_what_is_asked_more_seldom_than_polls_are_is_asked_as_often_as_it_says(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    asked = plans(monkeypatch, "slow")
    slow = Collector("slow", (), lambda _: (Command("query-name"),), lambda _: (), next_poll_delay=lambda *_: interval)
    observer = RecordingObserver()
    async with supervised(
        observer,
        fake.path,
        context=quick_context(collectors=CollectorIndex([*ALL, slow]), intervals=Intervals(poll=0.25)),
    ):
        await observer.wait_until(lambda: len(observer.outcomes("slow")) >= 4)
    gaps = [later - before for before, later in pairwise(asked[2:])]
    assert gaps == pytest.approx([interval] * len(gaps), abs=SLACK_SECONDS)


async def test_one_whose_events_are_not_heard_is_not_polled_twice_at_once_when_it_is_met(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "receives_events", False)
    observer, began = RecordingObserver(), time.monotonic()
    async with supervised(
        observer, fake.path, context=quick_context(intervals=Intervals(poll=3.0), random=lambda: 0.0)
    ):
        await observer.wait_for_polls(2)
    assert time.monotonic() - began > 0.1 * 0.9 * 3.0


async def test_an_event_that_asks_for_something_brings_the_first_look_forward(fake: FakeQemu) -> None:
    turns = Pacer(60, 60)
    turns.take(time.monotonic())
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=quick_context(first_polls=turns)):
        await observer.wait_until(lambda: observer.records("vm.attached"))
        fake.emit("RTC_CHANGE", {"offset": 1})  # asks for nothing
        fake.emit("DEVICE_DELETED", {"path": "/machine"})
        await observer.wait_for_polls()
    asked = executed(fake)
    assert asked.index("query-commands") < asked.index("query-cpus-fast")
