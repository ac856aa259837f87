"""Samples and transitions derived from two polls: job rates, the start of a run state, the end of a migration."""

import json
from itertools import pairwise
from typing import Any

import pytest

from agent.collectors import PollIntervals, VmFacts
from agent.collectors.base import PollResult, TransitionBetweenPolls
from agent.model.family import Family
from agent.model.metrics.jobs import JOB
from agent.model.metrics.migration import MIGRATION_ENDED
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, RecordEncoder, Severity, Vm
from tests.lab.fixtures import StartGuest
from tests.lab.record_validation import schema_violations
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.unit.collectors.test_collectors import BY_NAME, collect

INTERVALS = PollIntervals(poll=10, migrations_and_jobs=1)


def polls(name: str, *rounds: tuple[float, Any]) -> list[PollResult]:
    """Return a collector's polls of replies at these seconds, each derived from the one before."""
    derived = [PollResult()]
    for at, *replies in rounds:
        now = PollResult(tuple(collect(name, *replies)), round(at * 1e9), at)
        derived.append(PollResult(tuple(BY_NAME[name].derive(derived[-1], now)), now.time_ns, at))
    return derived[1:]


def transitions(name: str, *replies: Any) -> list[TransitionBetweenPolls]:
    """Return a collector's transitions over these polls, one second apart."""
    derived = [PollResult(), *polls(name, *enumerate(replies))]
    return [transition for before, now in pairwise(derived) for transition in BY_NAME[name].transitions(before, now)]


# --- Jobs ---


def job(done: Any, goal: Any = 100, **fields: Any) -> Any:
    return [{"device": "j", "type": "mirror", "offset": done, "len": goal, "status": "running"} | fields]


def test_a_jobs_rate_and_remaining_time_are_derived_from_two_polls() -> None:
    first, second, third, fourth = polls("jobs", (0, job(10)), (2, job(50)), (4, job(50)), (6, job(20)))
    assert "progress_per_second" not in first.samples[0].values
    assert {"progress_per_second": 20, "remaining_seconds": 2.5, "progress_ratio": 0.5}.items() <= second.samples[
        0
    ].values.items()
    assert third.samples[0].values["progress_per_second"] == fourth.samples[0].values["progress_per_second"] == 0
    assert not {"remaining_seconds"} & (third.samples[0].values.keys() | fourth.samples[0].values.keys())


def test_another_job_of_the_same_name_gets_no_rate_from_the_first() -> None:
    _, second = polls("jobs", (0, job(90)), (1, job(95, type="backup")))
    assert "progress_per_second" not in second.samples[0].values


@pytest.mark.parametrize(
    ("jobs", "delay"),
    [
        ([], None),
        (job(1), 1),
        (job(1, status="aborting"), 1),
        (job(1, status="of a later QEMU"), 1),
        (job(1, status=None), 1),  # before QEMU 2.12
        (job(1, status="ready"), 10),
        ([*job(1, status="ready"), {"device": "k", "status": "running"}], 1),
        *((job(1, status=status), None) for status in ("paused", "standby", "pending", "concluded")),
    ],
)
def test_jobs_are_polled_only_while_one_makes_progress(jobs: Any, delay: float | None) -> None:
    assert BY_NAME["jobs"].next_poll_delay(collect("jobs", jobs), VmFacts(), INTERVALS) == delay


async def test_a_real_mirror_is_polled_while_it_runs_and_the_layers_after_its_end(
    start_guest: StartGuest,
) -> None:
    guest = await start_guest(kind="writer", span_mib=1)
    await guest.wait_until_booted()
    await guest.command("blockdev-add", driver="null-co", node_name="target", size=64 << 20)
    observer = RecordingObserver()
    context = quick_context(intervals=PollIntervals(migrations_and_jobs=0.05))
    async with supervised(observer, guest.monitor, context=context):
        await observer.wait_for_polls(1, "nodes")
        await guest.command(
            "blockdev-mirror", job_id="m", device="disk0-format", target="target", sync="full", speed=32 << 20
        )
        await observer.wait_until(lambda: any("remaining_seconds" in values for values in jobs_of(observer)))
        layer_polls = len(observer.outcomes("nodes"))
        await guest.command("block-job-set-speed", device="m", speed=0)
        await observer.wait_until(lambda: any(values.get("ready") for values in jobs_of(observer)))
        await guest.command("block-job-complete", device="m")
        await observer.wait_until(lambda: observer.records("event.block_job_completed"))
        await observer.wait_until(lambda: len(observer.outcomes("nodes")) > layer_polls)
        await observer.wait_until(lambda: not last(observer, JOB))
        job_polls = len(observer.outcomes("jobs"))
        await guest.command("stop")
        await observer.wait_until(
            lambda: any(sample.values.get("status") == "paused" for sample in last(observer, RUNSTATE))
        )
    assert len(observer.outcomes("jobs")) == job_polls
    running = [values for values in jobs_of(observer) if values["status"] == "running"]
    assert all(values["progress_target"] >= 64 << 20 for values in running)
    assert all(values["speed_limit_bytes_per_second"] in (0, 32 << 20) for values in running)


def jobs_of(observer: RecordingObserver) -> list[dict[str, Any]]:
    return [s.values for _, _, samples, _ in observer.calls_of("on_samples") for s in samples if s.family is JOB]


def last(observer: RecordingObserver, family: Family) -> Any:
    """Return the samples of a family's last poll."""
    return [samples for _, families, samples, _ in observer.calls_of("on_samples") if family in families][-1]


# --- Run state ---


def test_a_run_state_starts_at_the_first_poll_that_reports_it() -> None:
    running, paused = ({"status": status, "running": status == "running"} for status in ("running", "paused"))
    derived = polls("runstate", (5, running), (7, running), (8, paused), (9, running))
    assert [poll.samples[0].values["since_timestamp_seconds"] for poll in derived] == [5, 5, 8, 9]


# --- Poll delays ---


@pytest.mark.parametrize(
    ("name", "replies", "delay"),
    [
        ("dirty", [{"status": "measuring"}, []], 1),
        ("dirty", [{"status": "measured"}, []], None),
        ("dirty", [{"status": "unstarted"}, [{"cpu-index": 0, "limit-rate": 1, "current-rate": 1}]], 10),
        ("dump", [{"status": "active", "completed": 1, "total": 2}], 1),
        ("dump", [{"status": "completed", "completed": 2, "total": 2}], None),
        ("kvm", [[{"stats": [{"name": "pages_4k", "value": 1}]}], [], []], 300),
        ("kvm", [[], [], []], None),
    ],
)
def test_collectors_are_polled_again_while_something_is_in_progress(
    name: str, replies: Any, delay: float | None
) -> None:
    assert BY_NAME[name].next_poll_delay(collect(name, *replies), VmFacts(), INTERVALS) == delay


def test_dump_completed_and_hv_balloon_events_are_read_as_samples() -> None:
    ended = {"result": {"status": "failed", "completed": 1, "total": 2}, "error": "No space left on device"}
    (dump,) = BY_NAME["dump"].from_event["DUMP_COMPLETED"](ended)
    assert dump.values == {"status": "failed", "written_bytes": 1, "size_bytes": 2}
    (report,) = BY_NAME["hv_balloon"].from_event["HV_BALLOON_STATUS_REPORT"]({"committed": 1, "available": 2})
    assert report.values == {"committed_bytes": 1, "available_bytes": 2}
    assert list(BY_NAME["dump"].from_event["DUMP_COMPLETED"]({"result": 5})) == []


# --- Migrations ---

ACTIVE = {
    "status": "active",
    "total-time": 900,
    "setup-time": 5,
    "cpu-throttle-percentage": 20,
    "ram": {"transferred": 4000, "total": 9000, "dirty-sync-count": 2, "remaining": 100},
}
DONE = {
    "status": "completed",
    "total-time": 2000,
    "setup-time": 5,
    "downtime": 40,
    "ram": {"transferred": 10_000, "total": 9000, "dirty-sync-count": 4, "postcopy-requests": 3, "remaining": 0},
    "vfio": {"transferred": 500},
}


def test_a_migrations_end_is_reported_once_with_all_figures() -> None:
    (ended,) = transitions("migration", {}, ACTIVE, ACTIVE, DONE, DONE)
    assert ended.severity is Severity.INFO
    assert ended.values == {
        "outcome": "completed",
        "role": "source",
        "elapsed_seconds": 2,
        "downtime_seconds": 0.04,
        "setup_seconds": 0.005,
        "ram_bytes": 9000,
        "cpu_throttle_ratio": 0.2,
        "passes": 4,
        "postcopy_requests": 3,
        "transferred_bytes": 10_500,
        "throughput_bytes_per_second": 5250,
    }
    assert (
        schema_violations(RecordEncoder()(Record("qemu.migration.ended", Vm("h", "", "n", "m"), ended.values, 0)).body)
        == []
    )
    assert ended.family is MIGRATION_ENDED


def test_a_migration_with_huge_counters_is_still_reported() -> None:
    most = 2**63 - 1
    done = DONE | {
        "ram": {"transferred": most, "total": 1},
        "disk": {"transferred": most},
        "vfio": {"transferred": most},
    }
    (ended,) = transitions("migration", ACTIVE, done)
    record = Record("qemu.migration.ended", Vm("h", "", "n", "m"), ended.values, 0)
    assert json.loads(RecordEncoder()(record).body)["data"]["transferred_bytes"] == 3.0 * most


@pytest.mark.parametrize(("status", "severity"), [("failed", Severity.ERROR), ("cancelled", Severity.WARNING)])
def test_a_failed_migration_is_reported_with_its_last_known_figures(status: str, severity: Any) -> None:
    (ended,) = transitions("migration", ACTIVE, {"status": status, "error-desc": "no route"})
    assert ended.severity is severity
    assert {
        "outcome": status,
        "error": "no route",
        "transferred_bytes": 4000,
        "passes": 2,
    }.items() <= ended.values.items()


def test_a_migration_that_ended_before_the_attach_is_not_reported() -> None:
    assert transitions("migration", DONE, DONE, {"status": "none"}) == []
    (ended,) = transitions("migration", DONE, {"status": "failed", "error-desc": "x"})
    assert ended.values == {"outcome": "failed", "error": "x"}
    (ended,) = transitions("migration", {"status": "failed"}, DONE)
    assert ended.values["outcome"] == "completed"


def test_a_completed_migration_without_figures_is_polled_until_they_arrive() -> None:
    early = DONE | {"total-time": 0}
    assert (
        BY_NAME["migration"].next_poll_delay(collect("migration", early), VmFacts(migration_events=True), INTERVALS)
        == 1
    )
    (ended,) = transitions("migration", ACTIVE, early, DONE)
    assert ended.values["elapsed_seconds"] == 2


def test_a_destination_reports_its_outcome_only() -> None:
    (ended,) = transitions("migration", {"status": "active"}, {"status": "completed"})
    assert ended.values == {"outcome": "completed"}


@pytest.mark.parametrize(
    ("ram", "remaining"),
    [
        ({"remaining": 1000, "mbps": 0.008}, 1),
        ({"remaining": 4096, "mbps": 0.065536, "dirty-pages-rate": 1, "page-size": 4096}, 1),
        ({"remaining": 1000, "mbps": 0.008, "dirty-pages-rate": 1}, None),  # never, at this rate
        ({"remaining": 1000, "mbps": 0}, None),
        ({"mbps": 1}, None),
    ],
)
def test_a_migrations_remaining_time_includes_what_the_guest_dirties(ram: Any, remaining: Any) -> None:
    (sample,) = collect("migration", {"status": "active", "ram": ram})
    assert sample.values.get("remaining_seconds") == remaining
