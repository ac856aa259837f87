"""What systemd is told, and what it makes of our files."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.app import agent
from agent.app.agent import Agent
from agent.cli.demo.guest import until
from agent.config.model import Config
from agent.runtime.systemd import SystemdNotifier
from agent.session.session import Session
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.machine import require

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy/systemd"
UNIT: Final = FOLDER / "qmp-agent.service"

SECURITY: Final = 1.7
"""The exposure that systemd-analyze may find: 0 is none, 10 all. It is 1.6 with systemd 252."""


class Systemd:
    """What a service manager hears."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, watchdog_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self.heard: list[dict[str, str]] = []
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(watchdog_seconds * 1e6)))

    def hear(self) -> list[dict[str, str]]:
        """Return all that was told so far."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def feeds(self) -> int:
        return sum("WATCHDOG" in one for one in self.hear())

    def status(self) -> str:
        return next((one["STATUS"] for one in reversed(self.hear()) if "STATUS" in one), "")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Systemd]:
    made = Systemd(folder / "notify", monkeypatch, watchdog_seconds=0.6)
    yield made
    made.close()


def config(folder: Path) -> dict[str, Any]:
    return {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "200ms"},
        "timeouts": {"response": "500ms"},
    }


async def test_systemd_is_told_that_the_agent_is_ready_gets_on_and_stops(
    systemd: Systemd, start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest()
    async with AgentProcess(folder, config(folder)) as agent:
        await agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert systemd.hear()[0] == {"READY": "1"}
        await until(lambda: systemd.status() == "monitors: 1 up", 10)
        before = systemd.feeds()
        await until(lambda: systemd.feeds() >= before + 3, 10)
        await agent.stop()
    assert systemd.hear()[-1] == {"STOPPING": "1"}


async def test_a_vm_that_stalls_keeps_nothing_from_the_watchdog(
    systemd: Systemd, start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest()
    async with AgentProcess(folder, config(folder)) as agent:
        await agent.wait_for_record("vm.attached", vm=guest.uuid)
        guest.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: systemd.status().startswith("monitors: 1 stalled"), 10)
            before = systemd.feeds()
            await until(lambda: systemd.feeds() >= before + 3, 10)
        finally:
            guest.send_signal(signal.SIGCONT)


async def test_an_agent_whose_loop_turns_but_that_asks_no_vm_any_more_does_not_feed_the_watchdog(
    systemd: Systemd, start_guest: StartGuest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_guest()
    monkeypatch.setattr(agent, "PATIENCE_SECONDS", 0.5)
    made = Agent(Config.model_validate(config(folder) | {"web": {"listen_address": "127.0.0.1:0"}}))
    async with made.running():
        watching = asyncio.create_task(SystemdNotifier().watch(made.hang_reason, made.summary))
        await until(lambda: systemd.status() == "monitors: 1 up", 10)

        async def hang(*_: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Session, "_poll", hang)
        await until(lambda: systemd.status().startswith("1 VMs are up, and none has been asked anything"), 20)
        fed = systemd.feeds()
        told = len(systemd.hear())
        await until(lambda: len(systemd.hear()) >= told + 3, 10)
        assert systemd.feeds() == fed
        watching.cancel()


def test_nobody_is_told_where_no_service_manager_listens(folder: Path) -> None:
    SystemdNotifier({}).tell(READY="1")
    SystemdNotifier({"NOTIFY_SOCKET": str(folder / "nobody")}).tell(READY="1")


def test_a_watchdog_that_is_another_process_is_not_fed() -> None:
    assert SystemdNotifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}).watchdog_seconds == 0
    assert SystemdNotifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 5


def said(*command: str | Path) -> str:
    """Run a command to its end, which has to be a good one, and return all that it said."""
    require(str(command[0]), "systemd")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={"LC_ALL": "C.UTF-8"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_systemd_finds_nothing_wrong_with_the_unit(folder: Path) -> None:
    here = folder / UNIT.name  # what is installed elsewhere is not here
    commands = re.findall(r"^Exec\w+=(\S+)", UNIT.read_text(), re.MULTILINE)
    assert set(commands) == {"/usr/bin/qmp-agent", "/bin/sh"}  # all else may not be on a host: kill is a package's
    here.write_text(UNIT.read_text().replace("/usr/bin/qmp-agent", "/bin/true"))
    assert said("systemd-analyze", "verify", "--man=no", here).strip() == ""


def test_the_unit_leaves_little_exposed(folder: Path) -> None:
    text = said("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for qmp-agent.service: ([\d.]+)", text)
    assert found is not None
    assert float(found[1]) <= SECURITY


@pytest.mark.skipif(os.geteuid() != 0, reason="it makes users and folders of theirs, in a root folder of its own")
def test_the_user_and_its_folders_are_made_as_the_unit_needs_them(folder: Path) -> None:
    (folder / "etc").mkdir()
    said("systemd-sysusers", f"--root={folder}", FOLDER / "qmp-agent.sysusers")
    users = (folder / "etc/passwd").read_text()
    groups = dict(line.split(":", 1) for line in (folder / "etc/group").read_text().splitlines())
    assert re.search(r"^qmp-agent:", users, re.MULTILINE)
    assert groups["kvm"].endswith(":qmp-agent")
    said("systemd-tmpfiles", f"--root={folder}", "--create", FOLDER / "qmp-agent.tmpfiles")
    for path, mode, group in (("etc/qmp-agent", 0o750, "qmp-agent"), ("run/qemu", 0o2770, "kvm")):
        found = (folder / path).stat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert found.st_gid == int(groups[group].split(":")[1])
