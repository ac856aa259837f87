"""Dedicated monitors that the agent adds to QEMU over a shared monitor, and the fallback to the shared monitor."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.monitors import OwnMonitorAddingDiscoverer
from agent.qmp.commands import OptInQemuChange
from agent.session.shared_types import MonitorState
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

EXISTS = FakeError("GenericError", "it exists already")
FAILS = FakeError("GenericError", "it cannot be created")


def support_hotplug(fake: FakeQemu, *, socket: Any = None, monitor: Any = None) -> None:
    """Make a scripted QEMU list its monitors as objects.

    `socket` and `monitor` are the replies when the agent adds a socket and a monitor; None means success.
    """

    def objects(arguments: dict[str, Any]) -> Any:
        if arguments["path"] == "/objects":
            return [{"name": "type", "type": "string"}, {"name": "compat_monitor0", "type": "child<monitor-qmp>"}]
        return fake.transcript.answer("qom-list", arguments)["return"]

    fake.replies |= {"qom-list": objects, "chardev-add": socket or {}, "object-add": monitor or {}}
    fake.replies |= {"object-del": {}, "chardev-remove": {}}


def added_socket_path(folder: Path) -> Path:
    """Return the path of the added monitor's socket. Its name has this process's ID, because this process is the fake QEMU."""
    return folder / f"{os.getpid()}.qmp"


async def supervise(fake: FakeQemu, folder: Path, **options: Any) -> RecordingObserver:
    """Supervise the fake QEMU's monitor until two polls are done; `options` are settings of the session."""
    observer = RecordingObserver()
    (monitor,) = OwnMonitorAddingDiscoverer(str(fake.path), folder, 0.2).scan().values()
    async with supervised(observer, context=session_context(OptInQemuChange.OWN_MONITOR, **options)) as fleet:
        fleet.on_monitor_added(monitor)
        await observer.wait_for_polls(2)
    return observer


@pytest.mark.parametrize("socket", [None, EXISTS])
async def test_a_vm_is_polled_over_the_added_monitor(fake: FakeQemu, folder: Path, socket: Any) -> None:
    support_hotplug(fake, socket=socket, monitor=socket)
    async with FakeQemu(added_socket_path(folder)) as added:
        observer = await supervise(fake, folder)
        assert added.count("query-blockstats") >= 2
    assert fake.count("query-blockstats") == 0
    (attached, _) = observer.records("vm")
    assert "events_available" not in attached.data
    assert observer.states() == [MonitorState.CONNECTING, MonitorState.NEGOTIATING, MonitorState.UP, MonitorState.GONE]


async def test_a_qemu_without_hotplug_is_polled_over_the_shared_monitor(fake: FakeQemu, folder: Path) -> None:
    observer = await supervise(fake, folder)
    assert fake.count("chardev-add") == fake.count("object-add") == 0
    assert observer.records("vm.attached")[0].data["events_available"] is False


@pytest.mark.parametrize(("socket", "monitor", "undone"), [(None, FAILS, 1), (None, None, 1), (FAILS, FAILS, 0)])
async def test_a_failed_hotplug_is_undone_and_the_shared_monitor_is_polled(
    fake: FakeQemu, folder: Path, socket: Any, monitor: Any, undone: int, caplog: pytest.LogCaptureFixture
) -> None:
    support_hotplug(fake, socket=socket, monitor=monitor)
    observer = await supervise(fake, folder)
    assert observer.records("vm.attached")[0].data["events_available"] is False
    assert (fake.count("object-del"), fake.count("chardev-remove")) == (undone, undone)
    assert caplog.text.count("; the agent connects to the shared monitor for each poll") == 1
    if socket or monitor:
        assert FAILS.text in caplog.text


async def test_an_added_monitor_held_by_another_client_is_left_alone(fake: FakeQemu, folder: Path) -> None:
    support_hotplug(fake, socket=EXISTS, monitor=EXISTS)
    async with FakeQemu(added_socket_path(folder)) as added:
        added.busy()
        observer = await supervise(fake, folder, greeting_seconds=0.3)
    assert observer.records("vm.attached")[0].data["events_available"] is False
    assert fake.count("object-del") == 0
