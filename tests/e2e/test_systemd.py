"""Notifications to systemd, and the files that are installed for systemd."""

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

from agent.app.agent import Agent
from agent.app.health import HealthLimits
from agent.config.model import Config
from agent.runtime.systemd import SystemdNotifier
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.machine import require
from tests.lab.waiting import until

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy/systemd"
UNIT: Final = FOLDER / "qmp-agent.service"
STORAGE: Final = ROOT / "deploy/storage"

SECURITY: Final = 1.7
"""The highest exposure that systemd-analyze may report, from 0 (none) to 10 (all). It is 1.6 with systemd 252."""

STORAGE_SECURITY: Final = 2.2
"""The same for the report of thin pools, which needs CAP_SYS_ADMIN and the block devices."""


class FakeSystemd:
    """Receives the notifications of an agent at systemd's socket."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, watchdog_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self.received: list[dict[str, str]] = []
        # The kernel keeps only ten notifications for a reader, and the agent does not wait for space.
        asyncio.get_running_loop().add_reader(self._socket, self.notifications)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(watchdog_seconds * 1e6)))

    def notifications(self) -> list[dict[str, str]]:
        """Return all notifications so far."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.received
            self.received.append(dict(line.split("=", 1) for line in text.splitlines()))

    def pings(self) -> int:
        return sum("WATCHDOG" in fields for fields in self.notifications())

    def status(self) -> str:
        return next((fields["STATUS"] for fields in reversed(self.notifications()) if "STATUS" in fields), "")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


@pytest.fixture
async def systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSystemd]:
    fake = FakeSystemd(folder / "notify", monkeypatch, watchdog_seconds=0.6)
    yield fake
    fake.close()


def config(folder: Path) -> dict[str, Any]:
    return {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "200ms"},
        "timeouts": {"response": "500ms"},
    }


async def test_the_agent_notifies_ready_watchdog_and_stopping(
    systemd: FakeSystemd, start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest()
    async with AgentProcess(folder, config(folder)) as agent:
        await agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert systemd.notifications()[0] == {"READY": "1"}
        await until(lambda: systemd.status() == "monitors: 1 up")
        before = systemd.pings()
        await until(lambda: systemd.pings() >= before + 3)
        assert (await agent.stop()).status == 0
    assert systemd.notifications()[-1] == {"STOPPING": "1"}


async def test_a_stalled_vm_does_not_stop_the_watchdog_pings(
    systemd: FakeSystemd, start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest()
    async with AgentProcess(folder, config(folder)) as agent:
        await agent.wait_for_record("vm.attached", vm=guest.uuid)
        guest.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: systemd.status().startswith("monitors: 1 stalled"))
            before = systemd.pings()
            await until(lambda: systemd.pings() >= before + 3)
        finally:
            guest.send_signal(signal.SIGCONT)


async def test_an_agent_that_polls_no_vm_withholds_the_watchdog_ping(
    systemd: FakeSystemd, start_guest: StartGuest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_guest()
    quick = Config.model_validate(config(folder) | {"web": {"listen_address": "127.0.0.1:0"}})
    agent = Agent(quick, limits=HealthLimits(hang_seconds=0.5))
    async with agent.run_in_background():
        watching = asyncio.create_task(
            SystemdNotifier().keep_notifying(agent.health.hang_reason, agent.health.one_line_summary)
        )
        await until(lambda: systemd.status() == "monitors: 1 up")

        async def hang(*_: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(agent.thresholds, "has_pending_commands", lambda _: True)
        monkeypatch.setattr(agent.thresholds, "pop_pending_commands", hang)
        await until(lambda: systemd.status().startswith("1 VMs are up, and none was polled"))
        pings, before = systemd.pings(), len(systemd.notifications())
        await until(lambda: len(systemd.notifications()) >= before + 3)
        assert systemd.pings() == pings
        watching.cancel()


def test_notifying_without_a_service_manager_does_nothing(folder: Path) -> None:
    SystemdNotifier({}).notify(READY="1")
    SystemdNotifier({"NOTIFY_SOCKET": str(folder / "nobody")}).notify(READY="1")


def test_a_watchdog_of_another_process_is_ignored() -> None:
    assert SystemdNotifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}).watchdog_seconds == 0
    assert SystemdNotifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 5


def output(*command: str | Path) -> str:
    """Run a command and return its output. The command must succeed."""
    require(str(command[0]), "systemd")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_accepts_the_unit(folder: Path) -> None:
    copy = folder / UNIT.name  # with a command that exists on this machine
    commands = re.findall(r"^Exec\w+=(\S+)", UNIT.read_text(), re.MULTILINE)
    assert set(commands) == {
        "/usr/bin/qmp-agent",
        "/bin/sh",
    }  # other commands may be missing on a host: kill is in a package
    copy.write_text(UNIT.read_text().replace("/usr/bin/qmp-agent", "/bin/true"))
    assert output("systemd-analyze", "verify", "--man=no", copy).strip() == ""


def test_the_unit_has_a_low_exposure_level(folder: Path) -> None:
    text = output("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    level = re.search(r"Overall exposure level for qmp-agent.service: ([\d.]+)", text)
    assert level is not None
    assert float(level[1]) <= SECURITY


def test_systemd_accepts_the_units_of_the_storage_report(folder: Path) -> None:
    text = (STORAGE / "qmp-agent-storage.service").read_text()
    assert re.findall(r"^Exec\w+=(.*)", text, re.MULTILINE) == ["/usr/libexec/qmp-agent/storage-report"]
    service, timer = (folder / f"qmp-agent-storage.{kind}" for kind in ("service", "timer"))
    service.write_text(text.replace("/usr/libexec/qmp-agent/storage-report", "/bin/true"))
    timer.write_text((STORAGE / timer.name).read_text())
    assert output("systemd-analyze", "verify", "--man=no", service, timer).strip() == ""
    security = output("systemd-analyze", "security", "--offline=true", "--no-pager", service)
    level = re.search(r"Overall exposure level for qmp-agent-storage.service: ([\d.]+)", security)
    assert level is not None
    assert float(level[1]) <= STORAGE_SECURITY


@pytest.mark.skipif(os.geteuid() != 0, reason="creates users and their directories in another root directory")
def test_the_user_and_its_directories_match_the_unit(folder: Path) -> None:
    (folder / "etc").mkdir()
    output("systemd-sysusers", f"--root={folder}", FOLDER / "qmp-agent.sysusers")
    users = (folder / "etc/passwd").read_text()
    groups = dict(line.split(":", 1) for line in (folder / "etc/group").read_text().splitlines())
    assert re.search(r"^qmp-agent:", users, re.MULTILINE)
    assert groups["kvm"].endswith(":qmp-agent")
    output("systemd-tmpfiles", f"--root={folder}", "--create", FOLDER / "qmp-agent.tmpfiles")
    for path, mode, group in (("etc/qmp-agent", 0o750, "qmp-agent"), ("run/qemu", 0o2770, "kvm")):
        status = (folder / path).stat()
        assert stat.S_IMODE(status.st_mode) == mode
        assert status.st_gid == int(groups[group].split(":")[1])
