"""Sessions with real guest agents on a plain socket: their figures equal those of this machine, and they can stop, hang and restart."""

import math
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo.images import MissingDependencyError
from agent.model.metrics.guest import (
    GUEST_AGENT_SESSION,
    GUEST_CLOCK,
    GUEST_CPU,
    GUEST_DISK,
    GUEST_FILESYSTEM,
    GUEST_FREEZE,
    GUEST_INTERFACE,
    GUEST_LOAD,
    GUEST_OS,
    GUEST_USERS,
)
from tests.lab.guest_agent import GuestAgentProcess, find_guest_agent
from tests.lab.qemus import OTHER_RELEASES
from tests.lab.recording_guest_observer import (
    RecordingGuestObserver,
    guest_config,
    managed,
    report_channel,
    report_run_state,
)

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(params=["", *OTHER_RELEASES], ids=lambda release: release or "own")
def release(request: pytest.FixtureRequest) -> str:
    """Each release of qemu-ga in turn. Tests of a release that was not fetched are skipped."""
    name: str = request.param
    try:
        find_guest_agent(name)
    except MissingDependencyError as missing:
        if not name:
            raise
        pytest.skip(str(missing))
    return name


def config(guest_agent: GuestAgentProcess, **keys: Any) -> Any:
    return guest_config(channels=[{"socket": str(guest_agent.socket)}], **{"timeout": 60, **keys})


def received_bytes() -> dict[str, int]:
    """Return the bytes that each network interface has received."""
    files = Path("/sys/class/net").glob("*/statistics/rx_bytes")
    return {path.parts[-3]: int(path.read_text()) for path in files}


def cpu_seconds() -> dict[str, float]:
    """Return the kernel's CPU time by state, summed over all CPUs."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    numbers = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return {f"{name}_seconds_total": int(number) / TICKS for name, number in zip(names, numbers, strict=False)}


async def test_the_figures_equal_those_of_the_machine(folder: Path, release: str) -> None:
    observer = RecordingGuestObserver()
    async with (
        GuestAgentProcess(folder, release=release) as guest_agent,
        managed(observer, config(guest_agent)) as manager,
    ):
        load_before, cpu_before, received_before = os.getloadavg(), cpu_seconds(), received_bytes()
        report_run_state(manager, running=True)
        report_channel(manager, guest_agent.socket)
        await observer.wait_until(lambda: observer.count(GUEST_CLOCK))
        root, load_after, cpu_after = os.statvfs("/"), os.getloadavg(), cpu_seconds()
    assert observer.states() == ["connecting", "up"]
    filesystems = {labels[0]: values for labels, values in observer.last(GUEST_FILESYSTEM).items()}
    used = (root.f_blocks - root.f_bfree) * root.f_frsize
    assert filesystems["/"]["used_bytes"] == pytest.approx(used, rel=0.02)
    assert filesystems["/"]["available_bytes"] == pytest.approx(root.f_bavail * root.f_frsize, rel=0.02)
    system = observer.last(GUEST_OS)[()]
    assert system["kernel"] == platform.release()
    assert system["hostname"] == platform.node()
    assert system["machine"] == platform.machine()
    assert system["utc_offset_seconds"] == -time.timezone
    for state, seconds in cpu_before.items():
        assert seconds - 1 <= observer.last(GUEST_CPU)[()][state] <= cpu_after[state] + 1, state
    assert observer.last(GUEST_CPU)[()]["cpus"] == os.cpu_count()
    received_after, interfaces = received_bytes(), observer.last(GUEST_INTERFACE)
    for (name,), traffic in interfaces.items():
        # Another test may have added or removed a tap meanwhile.
        assert received_before.get(name, 0) <= traffic["rx_bytes_total"] <= received_after.get(name, math.inf)
    assert {name for (name,) in interfaces} & received_before.keys()
    assert observer.last(GUEST_FREEZE) == {(): {"frozen": False}}
    assert observer.last(GUEST_USERS)[()]["logged_in"] >= 0
    clock = observer.last(GUEST_CLOCK)[()]
    assert abs(clock["offset_seconds"]) <= clock["uncertainty_seconds"] + 0.01
    assert observer.last(GUEST_DISK)
    if not observer.last(GUEST_AGENT_SESSION)[()]["missing_commands"]:
        low, high = sorted((load_before[2], load_after[2]))
        assert low - 0.1 <= observer.last(GUEST_LOAD)[()]["average_15m"] <= high + 0.1


async def test_a_guest_agent_that_hangs_restarts_and_is_killed_is_reported(folder: Path) -> None:
    observer = RecordingGuestObserver()
    async with GuestAgentProcess(folder) as guest_agent:
        quick = config(guest_agent, timeout=3, max_retry_delay=1, intervals={"freeze": 0.2})
        async with managed(observer, quick, first_retry_seconds=0.02) as manager:
            report_run_state(manager, running=True)
            report_channel(manager, guest_agent.socket)
            await observer.wait_until(lambda: observer.count(GUEST_OS))
            lost = len(observer.lost)  # on a busy machine, a reply may have been late before
            guest_agent.send_signal(signal.SIGSTOP)
            await observer.wait_for_state("unresponsive")
            await observer.wait_until(lambda: len(observer.lost) > lost)
            await guest_agent.stop()  # on a plain socket, qemu-ga ends anyway when it replies to a client that has left
            await guest_agent.start()
            await observer.wait_for_state("up")
            await guest_agent.stop()
            await observer.wait_for_state("unresponsive")
