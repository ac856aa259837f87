"""Migration state: when a VM migrates, its processes start and end but the VM does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.session.migration_state import MigrationPhase, MigrationState
from agent.session.shared_types import MonitorState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised

SENT = {"status": "completed", "ram_transferred_bytes_total": 5, "elapsed_seconds": 1.0}
RECEIVED = {"status": "completed"}

Step = str | dict[str, Any]
"""A run state; in capitals the status of a MIGRATION event; a dict is the values of a migration sample."""

steps: st.SearchStrategy[Step] = st.sampled_from(
    [
        *["running", "paused", "inmigrate", "finish-migrate", "postmigrate", "shutdown", "new-in-12.0"],
        *["SETUP", "ACTIVE", "COMPLETED", "FAILED", "CANCELLED"],
        *[SENT, RECEIVED, {"status": "none"}, {"status": "active"}, {"status": "failed"}],
    ]
)


def apply_step(state: MigrationState, step: Step) -> bool | None:
    if isinstance(step, str) and step.isupper():
        state.on_event(step.lower())
        return None
    if isinstance(step, str):
        return state.on_sample(Sample(RUNSTATE, (), {"status": step}))
    return state.on_sample(Sample(MIGRATION, (), step))


def state_after(*steps_taken: Step) -> tuple[MigrationState, list[bool]]:
    """Return the state of a process that was attached in the first run state, and what it reported of migrations in."""
    state = MigrationState()
    state.on_run_state_at_attach(str(steps_taken[0]))
    return state, [observed for step in steps_taken if (observed := apply_step(state, step)) is not None]


@pytest.mark.parametrize(
    ("steps_taken", "reported"),
    [
        (["running"], []),
        (["inmigrate"], []),
        (["inmigrate", "running", "running"], [True]),
        (["inmigrate", "SETUP", "ACTIVE", "running", "COMPLETED", RECEIVED], [True]),
        (["inmigrate", "paused", "running"], [True]),
        (["inmigrate", RECEIVED, "running"], [True]),
        (["running", RECEIVED, RECEIVED], [False]),
        (["running", {"status": "none"}, RECEIVED], []),
        (["running", SENT], []),
    ],
)
def test_a_vm_has_migrated_in_when_its_process_leaves_inmigrate(steps_taken: list[Step], reported: list[bool]) -> None:
    assert state_after(*steps_taken)[1] == reported


@pytest.mark.parametrize(
    ("steps_taken", "away"),
    [
        (["running"], False),
        (["running", "SETUP", "ACTIVE"], False),
        (["running", "SETUP", "ACTIVE", "COMPLETED"], True),
        (["running", "finish-migrate", "COMPLETED"], True),
        (["running", "postmigrate"], True),
        (["running", "finish-migrate", SENT], True),
        (["running", SENT], False),  # it was sent earlier and was resumed here: a migration's figures stay
        (["running", "COMPLETED", "shutdown"], True),
        (["running", "postmigrate", "running"], False),  # resumed on the source
        (["running", "SETUP", "FAILED", "running"], False),
        (["inmigrate", "SETUP", "running", "COMPLETED"], False),
        (["inmigrate", "running", "COMPLETED", "SETUP", "COMPLETED"], True),
        (["inmigrate", "running", "postmigrate"], True),
    ],
)
def test_a_vm_has_migrated_away_when_its_process_has_sent_it(steps_taken: list[Step], away: bool) -> None:  # noqa: FBT001 - the expected result
    assert state_after(*steps_taken)[0].migrated_away(shut_down=False) is away


def test_a_process_that_is_shut_down_during_the_handover_has_migrated_away() -> None:
    assert state_after("running", "finish-migrate")[0].migrated_away(shut_down=True)
    assert not state_after("running", "finish-migrate")[0].migrated_away(shut_down=False)
    assert not state_after("running")[0].migrated_away(shut_down=True)


@pytest.mark.parametrize(
    ("steps_taken", "role"),
    [
        (["running", "SETUP", "ACTIVE", "FAILED"], "source"),
        (["running", {"status": "none"}, {"status": "failed"}], "source"),  # a running process cannot start to receive
        (["running", "finish-migrate", SENT, "postmigrate"], "source"),
        (["inmigrate", "SETUP", "ACTIVE", "running", "COMPLETED", RECEIVED], "destination"),
        (["inmigrate", {"status": "failed"}], "destination"),
        (["running", RECEIVED], "destination"),  # it migrated in before the attach
        (["running", {"status": "postcopy-active"}, RECEIVED], "destination"),  # attached in the middle of it
        (["inmigrate", "running", RECEIVED, "SETUP", "FAILED"], "source"),
        (["inmigrate", "running", RECEIVED, {"status": "failed"}], "source"),  # without events
        (["inmigrate", "running", RECEIVED, {"status": "setup"}], "source"),
        (["", "FAILED"], None),
        (["", "SETUP", "FAILED"], None),  # a destination emits `setup` too
    ],
)
def test_the_role_in_a_migration_comes_from_what_was_observed(steps_taken: list[Step], role: str | None) -> None:
    assert state_after(*steps_taken)[0].role == role


@pytest.mark.parametrize(("run_state", "role"), [("running", "source"), ("inmigrate", "destination")])
async def test_a_failed_migration_is_reported_with_the_role_of_its_process(
    fake: FakeQemu, run_state: str, role: str
) -> None:
    fake.replies["query-status"] = {"status": run_state, "running": run_state == "running"}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(1, "migration")
        fake.replies["query-migrate"] = {"status": "failed", "error-desc": "connection refused"}
        for status in ("setup", "active", "failed"):
            fake.emit("MIGRATION", {"status": status})
        await observer.wait_until(lambda: observer.records("migration.ended"))
    (ended,) = observer.records("migration.ended")
    assert ended.data == {"outcome": "failed", "role": role, "error": "connection refused"}


@given(st.lists(steps, max_size=20))
def test_invariants_hold_on_every_walk_through_the_states(steps_taken: list[Step]) -> None:
    state, last_run_state = MigrationState(), ""
    for step in steps_taken:
        before = state.phase
        reported = apply_step(state, step)
        if isinstance(step, str) and step.islower():
            last_run_state = step
        assert state.is_incoming is (last_run_state == "inmigrate")
        if last_run_state == "finish-migrate":
            assert state.phase in (MigrationPhase.HANDING_OVER, MigrationPhase.MIGRATED_AWAY)
        if last_run_state == "postmigrate":
            assert state.phase is MigrationPhase.MIGRATED_AWAY
        if last_run_state in ("running", "paused") and step == last_run_state:
            assert not state.migrated_away(shut_down=True)
        if reported is True:
            assert before is MigrationPhase.INCOMING
            assert state.phase is not MigrationPhase.INCOMING
        if reported is False:
            assert step == RECEIVED
            assert state.role == "destination"
        if step in ("ACTIVE", "FAILED", "CANCELLED"):
            assert state.phase is before


@given(st.lists(steps, max_size=20))
def test_a_migration_sample_reports_at_most_one_migration_in(steps_taken: list[Step]) -> None:
    state = MigrationState()
    reports = [apply_step(state, step) for step in steps_taken]
    assert reports.count(False) <= 1


@pytest.mark.parametrize("status", [None, 5, [], {}, "x", "SETUP"])
def test_an_unknown_event_status_changes_nothing(status: Any) -> None:
    for phase in MigrationPhase:
        state = MigrationState()
        state.phase = phase
        state.on_event(status)
        assert state.phase is phase


async def test_an_incoming_vm_that_never_runs_is_reported_as_incoming_and_gone(fake: FakeQemu) -> None:
    fake.replies["query-status"] = {"status": "inmigrate", "running": False}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.drop()
        await observer.wait_until(lambda: MonitorState.GONE in observer.states())
    attached, gone = observer.records("vm")[:2]
    assert attached.data["incoming"] is gone.data["incoming"] is True
    assert gone.type == "qemu.vm.gone"


async def test_a_vm_that_migrated_in_before_the_attach_is_reported_once(fake: FakeQemu) -> None:
    fake.replies["query-migrate"] = {"status": "completed"}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3, "migration")
    assert [record.data for record in observer.records("vm.migrated_in")] == [{"observed": False}]
