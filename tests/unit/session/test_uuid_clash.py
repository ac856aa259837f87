"""VMs that run with the same UUID: the agent watches all of them, and reports the clash."""

import asyncio
from pathlib import Path

import pytest

from agent.monitors import MonitorPriority
from agent.session.api import MonitorState
from agent.session.ownership import OwnershipClaim
from agent.session.uuid_clash import UuidClashDetector
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, monitor_at, quick_context, supervised


def clash_at(observer: RecordingObserver, path: Path) -> tuple[str, ...]:
    """Return the clash in the last status of a monitor."""
    statuses = [status for status in observer.calls_of("on_status") if status.monitor.name == str(path)]
    clash: tuple[str, ...] = statuses[-1].clash if statuses else ()
    return clash


async def test_a_clash_is_reported_after_the_grace_time_and_its_end_at_once() -> None:
    reported: list[tuple[str, tuple[str, ...]]] = []

    def claim(name: str) -> OwnershipClaim:
        return OwnershipClaim(
            "u",
            None,
            MonitorPriority.DEDICATED,
            name,
            lambda: None,
            on_clash=lambda names: reported.append((name, names)),
        )

    first, second = claim("a"), claim("b")
    detector = UuidClashDetector(5.0)
    detector.update({"u": [first, second]}, 10.0)
    detector.update({"u": [first, second]}, 14.9)
    assert reported == []
    detector.update({"u": [first, second]}, 15.0)
    assert reported == [("a", ("a", "b")), ("b", ("a", "b"))]
    reported.clear()
    detector.update({}, 15.1)
    assert reported == [("a", ()), ("b", ())]
    assert not detector.active
    detector.update({"u": [first, second]}, 16.0)
    detector.update({"u": [first, second]}, 20.9)
    assert len(reported) == 2


async def test_two_vms_with_one_uuid_are_watched_and_their_statuses_have_the_clash(
    fake: FakeQemu, caplog: pytest.LogCaptureFixture
) -> None:
    observer = RecordingObserver()
    context = quick_context(uuid_clash_seconds=0.1)
    async with (
        FakeQemu(fake.path.with_name("vm2.qmp")) as clone,
        supervised(observer, fake.path, clone.path, context=context) as group,
    ):
        names = (str(fake.path), str(clone.path))
        await observer.wait_until(lambda: clash_at(observer, fake.path) == clash_at(observer, clone.path) == names)
        assert f"UUID clash: {fake.path}, {clone.path}" in caplog.text
        assert caplog.text.count("UUID clash:") == 1
        assert len({record.vm.monitor for record in observer.records("vm.attached")}) == 2
        group.on_monitor_removed(monitor_at(clone.path))
        clone.drop()
        await observer.wait_until(lambda: clash_at(observer, fake.path) == ())
        await observer.wait_for_polls()
    assert MonitorState.STANDBY not in observer.states()


async def test_a_migration_within_the_host_is_no_clash(fake: FakeQemu, caplog: pytest.LogCaptureFixture) -> None:
    fake.replies["query-status"] = {"status": "inmigrate", "running": False}
    observer = RecordingObserver()
    context = quick_context(uuid_clash_seconds=0.02)
    async with (
        FakeQemu(fake.path.with_name("vm2.qmp")) as source,
        supervised(observer, fake.path, source.path, context=context),
    ):
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        await observer.wait_for_polls(4)
        await asyncio.sleep(0.1)
        assert clash_at(observer, fake.path) == clash_at(observer, source.path) == ()
    assert "UUID clash" not in caplog.text
