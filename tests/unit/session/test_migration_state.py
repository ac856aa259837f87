"""A VM that moves: neither its leaving is a death nor its arriving a birth."""

from typing import Any

import pytest

from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.session.api import MonitorState
from agent.session.migration_state import MigrationState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised

SENT = {"status": "completed", "ram_transferred_bytes_total": 5, "elapsed_seconds": 1.0}
RECEIVED = {"status": "completed"}


def status(word: str) -> Sample:
    return Sample(RUNSTATE, (), {"status": word})


def passed(*seen: str | dict[str, Any]) -> tuple[MigrationState, list[bool]]:
    """Return what became of a process that was met in the first state, and what it told of arrivals.

    A word is a run state; one in capitals is a MIGRATION event's; a dict is a look at the migration.
    """
    passage, told = MigrationState(), []
    first, *others = seen
    passage.begins(str(first))
    for one in (first, *others):
        if isinstance(one, str) and one.isupper():
            passage.migrates(one.lower())
        else:
            sample = status(one) if isinstance(one, str) else Sample(MIGRATION, (), one)
            told += [observed] if (observed := passage.look(sample)) is not None else []
    return passage, told


@pytest.mark.parametrize(
    ("seen", "told"),
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
def test_a_vm_has_arrived_when_its_process_waits_for_it_no_more(
    seen: list[str | dict[str, Any]], told: list[bool]
) -> None:
    assert passed(*seen)[1] == told


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        (["running"], False),
        (["running", "SETUP", "ACTIVE"], False),
        (["running", "SETUP", "ACTIVE", "COMPLETED"], True),
        (["running", "finish-migrate", "COMPLETED"], True),
        (["running", "postmigrate"], True),
        (["running", "finish-migrate", SENT], True),
        (["running", SENT], False),  # it was sent once, and goes on here: a migration's figures stay
        (["running", "COMPLETED", "shutdown"], True),
        (["running", "postmigrate", "running"], False),  # somebody had it go on after all
        (["running", "SETUP", "FAILED", "running"], False),
        (["inmigrate", "SETUP", "running", "COMPLETED"], False),
        (["inmigrate", "running", "COMPLETED", "SETUP", "COMPLETED"], True),
        (["inmigrate", "running", "postmigrate"], True),
    ],
)
def test_a_vm_has_left_when_its_process_has_sent_it(seen: list[str | dict[str, Any]], left: bool) -> None:  # noqa: FBT001 - what is expected
    assert passed(*seen)[0].departed(shut_down=False) is left


def test_a_process_that_was_told_to_end_as_it_handed_its_vm_over_had_done_so() -> None:
    assert passed("running", "finish-migrate")[0].departed(shut_down=True)
    assert not passed("running", "finish-migrate")[0].departed(shut_down=False)
    assert not passed("running")[0].departed(shut_down=True)


async def test_a_vm_that_was_to_arrive_and_did_not_is_told_so(fake: FakeQemu) -> None:
    fake.replies["query-status"] = {"status": "inmigrate", "running": False}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.drop()
        await observer.wait_until(lambda: MonitorState.GONE in observer.states())
    attached, gone = observer.records("vm")[:2]
    assert attached.data["incoming"] is gone.data["incoming"] is True
    assert gone.type == "qemu.vm.gone"


async def test_what_was_met_after_it_arrived_is_told_once(fake: FakeQemu) -> None:
    fake.replies["query-migrate"] = {"status": "completed"}
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3, "migration")
    assert [record.data for record in observer.records("vm.migrated_in")] == [{"observed": False}]
