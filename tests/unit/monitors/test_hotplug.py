"""A monitor of the agent's own, added over one that somebody else needs back; and what is done where it cannot be had."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.monitors import HotplugDiscoverer
from agent.qmp.commands import Change
from agent.session.api import MonitorState
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.recording_observer import RecordingObserver, quick_settings, supervised

EXISTS = FakeError("GenericError", "it is there already")
FAILS = FakeError("GenericError", "it cannot be made")


def can(fake: FakeQemu, *, socket: Any = None, monitor: Any = None) -> None:
    """Have a scripted monitor be that of a QEMU which adds monitors, and answers so when it is asked to."""

    def objects(arguments: dict[str, Any]) -> Any:
        if arguments["path"] == "/objects":
            return [{"name": "type", "type": "string"}, {"name": "compat_monitor0", "type": "child<monitor-qmp>"}]
        return fake.transcript.answer("qom-list", arguments)["return"]

    fake.replies |= {"qom-list": objects, "chardev-add": socket or {}, "object-add": monitor or {}}
    fake.replies |= {"object-del": {}, "chardev-remove": {}}


def own(folder: Path) -> Path:
    """Return where the monitor of a scripted QEMU is added: it is this process that listens."""
    return folder / f"{os.getpid()}.qmp"


async def watched(
    fake: FakeQemu, folder: Path, until: Callable[[RecordingObserver], object] = lambda _: True
) -> RecordingObserver:
    """Watch until two polls have been made and it is so."""
    observer = RecordingObserver()
    (monitor,) = HotplugDiscoverer(str(fake.path), folder, 0.2).scan().values()
    async with supervised(observer, settings=quick_settings(Change.OWN_MONITOR)) as fleet:
        fleet.on_monitor_added(monitor)
        await observer.wait_for_polls(2)
        await observer.wait_until(lambda: until(observer))
    return observer


@pytest.mark.parametrize("socket", [None, EXISTS])
async def test_the_vm_is_watched_over_the_monitor_that_was_added(fake: FakeQemu, folder: Path, socket: Any) -> None:
    can(fake, socket=socket, monitor=socket)
    async with FakeQemu(own(folder)) as added:
        observer = await watched(fake, folder)
        assert added.count("query-blockstats") >= 2
    assert fake.count("query-blockstats") == 0
    (attached, _) = observer.records("vm")
    assert "events_available" not in attached.data
    assert observer.states() == [MonitorState.CONNECTING, MonitorState.NEGOTIATING, MonitorState.UP, MonitorState.GONE]


async def test_a_qemu_that_has_no_such_thing_is_visited_and_nothing_is_tried(fake: FakeQemu, folder: Path) -> None:
    observer = await watched(fake, folder)
    assert fake.count("chardev-add") == fake.count("object-add") == 0
    assert observer.records("vm.attached")[0].data["events_available"] is False


@pytest.mark.parametrize(("socket", "monitor", "undone"), [(None, FAILS, 1), (None, None, 1), (FAILS, FAILS, 0)])
async def test_where_it_cannot_be_had_what_was_made_is_taken_back_and_the_vm_is_visited(
    fake: FakeQemu, folder: Path, socket: Any, monitor: Any, undone: int, caplog: pytest.LogCaptureFixture
) -> None:
    can(fake, socket=socket, monitor=monitor)
    observer = await watched(fake, folder)
    assert observer.records("vm.attached")[0].data["events_available"] is False
    assert (fake.count("object-del"), fake.count("chardev-remove")) == (undone, undone)
    assert caplog.text.count("is visited: no monitor of the agent's own can be had") == 1
    if socket or monitor:
        assert FAILS.text in caplog.text


async def test_one_that_somebody_else_holds_is_left_to_them(fake: FakeQemu, folder: Path) -> None:
    can(fake, socket=EXISTS, monitor=EXISTS)
    async with FakeQemu(own(folder)) as added:
        added.busy()
        observer = await watched(fake, folder)
    assert observer.records("vm.attached")[0].data["events_available"] is False
    assert fake.count("object-del") == 0
