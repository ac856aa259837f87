"""Sessions with guest agents: when they query, what they report, and that a hostile guest costs only itself."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.guest import channels
from agent.guest.channels import SocketChannelOpener
from agent.guest.shared_types import GuestCommandOutcome, GuestReachability
from agent.model.metrics.guest import (
    GUEST_AGENT_SESSION,
    GUEST_CPU,
    GUEST_FILESYSTEM,
    GUEST_INTERFACE,
    GUEST_LOAD,
    GUEST_OS,
)
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.guest_agent_probe import GuestAgentProbe
from tests.lab.recording_guest_observer import (
    VM,
    RecordingGuestObserver,
    guest_config,
    managed,
    report_channel,
    report_migration,
    report_pid,
    report_run_state,
)
from tests.unit.guest.conftest import attach

INTERVALS = {"filesystems": 60, "freeze": 30}


async def test_a_guest_agent_is_queried_for_everything_once(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS) and guest.count("guest-get-time"))
    assert observer.states() == ["connecting", "up"]
    assert observer.last(GUEST_AGENT_SESSION)[()]["version"].startswith("7.2")
    assert observer.last(GUEST_AGENT_SESSION)[()]["missing_commands"] == ["guest-get-load"]
    assert observer.last(GUEST_FILESYSTEM).keys() == {("/", "vda", "ext4")}
    assert observer.last(GUEST_OS)[()]["hostname"] == "guest1"
    assert observer.last(GUEST_CPU)[()]["cpus"] == 2
    assert observer.last(GUEST_INTERFACE).keys() == {("eth0",)}
    assert observer.count(GUEST_LOAD) == 0
    names = [request["execute"] for request in guest.requests]
    assert len(names) == len(set(names)), "each command once"
    assert names[:3] == ["guest-sync-delimited", "guest-info", "guest-fsfreeze-status"]


@pytest.mark.parametrize("config", [guest_config(enabled=False), guest_config(vms=["db-*"])])
async def test_a_guest_agent_that_the_config_does_not_select_is_left_alone(guest: FakeGuestAgent, config: Any) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, config) as manager:
        attach(manager, guest)
        assert len(manager) == 0
        await asyncio.sleep(0)
    assert guest.clients == 0


@pytest.mark.parametrize("pattern", ["web-*", VM.uuid])
async def test_a_vm_is_selected_by_its_name_or_uuid(guest: FakeGuestAgent, pattern: str) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(vms=[pattern])) as manager:
        attach(manager, guest)
        await observer.wait_for_state("up")


async def test_no_guest_is_queried_while_it_does_not_run_or_migrates(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals=INTERVALS)) as manager:
        report_pid(manager, os.getpid())
        report_channel(manager, guest.path)
        await observer.wait_for_state("suspended")
        assert guest.clients == 0
        report_run_state(manager, running=True)
        await observer.wait_for_state("up")
        report_migration(manager, "active")
        await observer.wait_for_state("suspended")
        asked = len(guest.requests)
        report_migration(manager, "active")
        report_run_state(manager, running=True)
        await asyncio.sleep(0)
        assert len(guest.requests) == asked
        report_migration(manager, "completed")
        await observer.wait_for_state("up")
    assert observer.lost == [], "the last values stay"


async def test_a_vm_whose_qemu_hangs_is_not_queried(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_for_state("up")
        manager.on_qemu_responsiveness_changed(VM, responsive=False)
        await observer.wait_for_state("suspended")
        manager.on_qemu_responsiveness_changed(VM, responsive=True)
        await observer.wait_for_state("up")


async def test_a_reboot_loses_the_values_and_queries_everything_again(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        report_channel(manager, guest.path, connected=False)
        await observer.wait_for_state("absent")
        assert observer.lost == [VM]
        report_channel(manager, guest.path)
        await observer.wait_until(lambda: observer.count(GUEST_OS) == 2)


async def test_a_guest_agent_that_does_not_answer_is_unresponsive_until_it_does(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals=INTERVALS)) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_FILESYSTEM))
        guest.silent = True
        await observer.wait_for_state("unresponsive")
        assert observer.lost == [VM]
        guest.silent = False
        await observer.wait_for_state("up")
    assert observer.states()[-2:] == ["unresponsive", "up"], "no connecting between two attempts"


async def test_attempts_to_reach_a_silent_guest_agent_become_rare(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    guest.silent = True
    async with managed(observer, guest_config(max_retry_delay=3600)) as manager:
        attach(manager, guest)
        await guest.wait_for("guest-sync-delimited", 4)
    times = observer.commands["guest-info", GuestCommandOutcome.TIMEOUT]
    assert times == 3
    assert set(guest.requests[0]) == {"execute", "arguments"}


async def test_one_command_that_hangs_costs_only_its_collector(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    guest.raw["guest-get-fsinfo"] = b""
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
    assert guest.count("guest-get-fsinfo") == 1
    assert observer.count(GUEST_FILESYSTEM) == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"junk\n",
        b'{"return": 5}\n',
        b'{"return": [[[]]]}\n',
        b'{"return": "' + b"x" * (300 << 10) + b'"}\n',
        b"[" * 2000 + b"\n",
        b'{"return": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        b'{"return": [NaN]}\n',
        b'{"return": [1e999]}\n',
        b'{"return": [' + b"9" * 400 + b"]}\n",
        b'{"return": ["\xc3\x28"]}\n',
        b'{"return": ["\\ud800"]}\n',
        b'{"return": [], "return": "x"}\n',
        b'{"error": {"class": "GenericError"}}\n',
        b'{"return": []} {"return": []}\n',
    ],
)
async def test_a_reply_that_cannot_be_read_costs_only_its_collector(guest: FakeGuestAgent, raw: bytes) -> None:
    observer = RecordingGuestObserver()
    guest.raw["guest-network-get-interfaces"] = raw
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: guest.count("guest-get-time"))
    assert observer.states() == ["connecting", "up"]
    assert observer.last(GUEST_INTERFACE) == {}
    assert observer.count(GUEST_FILESYSTEM) == 1


async def test_a_channel_that_closes_during_a_command_is_no_failure_of_its_collector(
    guest: FakeGuestAgent, caplog: pytest.LogCaptureFixture
) -> None:
    observer = RecordingGuestObserver()
    guest.raw["guest-get-fsinfo"] = b""
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await guest.wait_for("guest-get-fsinfo")
        del guest.raw["guest-get-fsinfo"]
        guest.drop()
        await observer.wait_until(lambda: observer.count(GUEST_FILESYSTEM))
    assert "internal error" not in caplog.text


async def test_a_channel_of_another_client_is_busy(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    guest.silent = True
    async with managed(observer, guest_config()) as manager:
        report_pid(manager, os.getpid())
        report_run_state(manager, running=True)
        report_channel(manager, guest.path, client=True)
        await observer.wait_for_state("busy")


async def test_the_sessions_own_connection_is_no_other_client(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals=INTERVALS)) as manager:
        attach(manager, guest)
        await observer.wait_for_state("up")
        report_channel(manager, guest.path, client=True)
        guest.silent = True
        await observer.wait_for_state("unresponsive")
        await guest.wait_for("guest-sync-delimited", 4)
        assert "busy" not in observer.states()


@pytest.mark.parametrize(
    ("cause", "state", "reason"),
    [
        (PermissionError(13, "Permission denied"), "denied", "permission denied for user"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "busy", "other clients occupy the channel"),
        (ConnectionRefusedError(111, "Connection refused"), "unresponsive", "Connection refused"),
    ],
)
async def test_a_channel_that_cannot_be_opened_is_tried_again(
    guest: FakeGuestAgent, monkeypatch: pytest.MonkeyPatch, cause: OSError, state: str, reason: str
) -> None:
    async def refuse(_factory: Any) -> Any:
        raise cause

    observer = RecordingGuestObserver()
    monkeypatch.setattr(channels, "unix_connector", lambda _path: refuse)
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_for_state(state)
        assert reason in observer.last(GUEST_AGENT_SESSION)[()]["reason"]
        monkeypatch.undo()
        await observer.wait_for_state("up")


async def test_a_link_to_the_socket_of_another_process_gets_no_byte(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    link = guest.path.with_name("link.qga")
    link.symlink_to(guest.path)
    async with managed(observer, guest_config()) as manager:
        report_pid(manager, os.getpid() + 1)
        report_run_state(manager, running=True)
        report_channel(manager, link)
        await observer.wait_for_state("denied")
    assert guest.requests == []


async def test_two_guests_at_one_socket_are_queried_one_after_the_other(guest: FakeGuestAgent) -> None:
    """The config can name one socket for two VMs by mistake. The second one waits and does not mix its replies with the first."""
    other = replace(VM, uuid="5f0c2c9e-2222-4222-8222-222222222222", name="db-1")
    observer = RecordingGuestObserver()
    channel = {"socket": str(guest.path)}
    async with managed(observer, guest_config(channels=[channel])) as manager:
        for vm in (VM, other):
            attach(manager, guest, vm=vm)
        await observer.wait_until(lambda: guest.count("guest-get-time"))
        await observer.wait_until(lambda: {"up", "unresponsive"} <= {*observer.states(), *observer.states(other)})
    assert guest.clients == 1


async def test_a_socket_of_another_process_gets_no_byte(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        report_pid(manager, os.getpid() + 1)
        report_run_state(manager, running=True)
        report_channel(manager, guest.path)
        await observer.wait_for_state("denied")
    assert guest.requests == []


async def test_without_a_known_process_only_a_qemu_is_talked_to(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        report_run_state(manager, running=True)
        report_channel(manager, guest.path)
        await observer.wait_for_state("denied")
    assert guest.requests == []


async def test_the_config_can_name_the_socket(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    channels = [{"vm": "other", "socket": "/none"}, {"socket": f"{guest.path.parent}/{{monitor}}.qga"}]
    vm = replace(VM, monitor="/run/qemu/vm1.qmp")
    async with managed(observer, guest_config(channels=channels)) as manager:
        report_run_state(manager, vm, running=True)
        report_channel(manager, "", vm)
        await observer.wait_for_state("up", vm)


async def test_a_shared_channel_is_held_only_during_queries(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    channels = [{"socket": str(guest.path), "shared": True}]
    async with managed(observer, guest_config(channels=channels, intervals={"freeze": 30})) as manager:
        report_run_state(manager, running=True)
        report_channel(manager, guest.path)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        for _ in range(3):
            asked = guest.count("guest-fsfreeze-status")
            async with GuestAgentProbe(guest.path) as other:  # waits until the agent has disconnected
                await other.execute("guest-fsfreeze-status")
            await guest.wait_for("guest-fsfreeze-status", asked + 2)
    assert observer.states() == ["connecting", "up"], "not connecting at each visit"
    assert guest.count("guest-info") == 1
    assert guest.count("guest-sync-delimited") >= 4, "each visit synchronizes"


@pytest.mark.parametrize(
    ("entry", "reported", "shared"),
    [
        (None, "/var/run/qemu-server/100.qga", True),
        (None, "/run/qemu-server/100.qga", True),
        (None, "/run/qemu/vm1.qga", False),
        ({"socket": "/run/qemu-server/{monitor}.qga"}, "", True),
        ({"socket": "/run/qemu-server/{monitor}.qga", "shared": False}, "", False),
        ({"socket": "/run/qemu/{monitor}.qga", "shared": True}, "", True),
    ],
)
def test_proxmox_channels_are_shared_by_default(entry: dict[str, Any] | None, reported: str, shared: bool) -> None:  # noqa: FBT001 - a parameter
    source = SocketChannelOpener(VM, guest_config(channels=[entry] if entry is not None else []))
    assert source.is_shared(GuestReachability(socket=reported)) is shared


@pytest.mark.parametrize("name", ["../../etc", ".hidden", "a/b", ""])
async def test_a_vms_name_cannot_lead_to_another_directory(folder: Path, name: str) -> None:
    observer = RecordingGuestObserver()
    vm = replace(VM, name=name)
    async with managed(observer, guest_config(channels=[{"socket": f"{folder}/{{name}}.qga"}])) as manager:
        report_run_state(manager, vm, running=True)
        report_channel(manager, "", vm)
        await observer.wait_for_state("denied", vm)


async def test_the_session_ends_with_its_vm(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_for_state("up")
        manager.on_vm_detached(VM)
        assert len(manager) == 0
        attach(manager, guest)
        await observer.wait_until(lambda: guest.clients == 2)


async def test_a_new_config_starts_the_sessions_again(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(enabled=False)) as manager:
        attach(manager, guest)
        manager.apply_config(guest_config())
        attach(manager, guest)
        await observer.wait_for_state("up")
        manager.apply_config(guest_config(timeout=50))
        assert (observer.lost, observer.disabled) == ([VM], [])
        attach(manager, guest)
        await observer.wait_until(lambda: guest.clients == 2)
        manager.apply_config(guest_config(vms=["db-*"]))
        attach(manager, guest)
        assert len(manager) == 0
    assert (observer.lost, observer.disabled) == ([VM, VM], [VM]), "no stale values and no alert without an end"


async def test_a_bug_that_a_guest_triggers_does_not_end_the_other_sessions(
    folder: Path, guest: FakeGuestAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(VM, uuid="5f0c2c9e-2222-4222-8222-222222222222", name="db-1")
    observer = RecordingGuestObserver()
    on_samples = observer.on_guest_samples

    def explode(vm: Any, *arguments: Any) -> None:
        if vm == VM:
            raise ZeroDivisionError
        on_samples(vm, *arguments)

    monkeypatch.setattr(observer, "on_guest_samples", explode)
    async with FakeGuestAgent(folder / "vm2.qga") as second, managed(observer, guest_config()) as manager:
        attach(manager, guest)
        attach(manager, second, vm=other)
        await observer.wait_for_state("up", other)
    assert "internal error" in caplog.text
