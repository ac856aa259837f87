"""The end of a VM's process: its cgroup is read once more, because the kernel may have killed the process for lack of memory."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.collectors import PollIntervals
from agent.model.metrics.vm_process_and_interfaces import CGROUP
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.unit.host.test_qemu_process_identification import write_process_files

THREAD = 71
NAME = "machine.slice/vm1"
EVENTS = "low 0\nhigh 0\nmax 5\noom {kills}\noom_kill {kills}\noom_group_kill 0\n"
HOUR = PollIntervals(poll=3600.0, resync=7200.0)
"""Intervals with which a session polls once, at its start."""


class CgroupOfVm:
    """The files of a VM's process, which is this process, and of its cgroup."""

    def __init__(self, root: Path, fake: FakeQemu) -> None:
        write_process_files(root, os.getpid(), THREAD)
        (root / f"proc/{os.getpid()}/cgroup").write_text(f"0::/{NAME}\n")
        self.directory = root / "sys/fs/cgroup" / NAME
        self.directory.mkdir(parents=True)
        (self.directory / "memory.current").write_text("8388608\n")
        self.write_kills(0)
        fake.replies["query-cpus-fast"] = [{"cpu-index": 0, "thread-id": THREAD, "qom-path": "/machine/unattached"}]
        fake.replies["query-iothreads"] = []
        self.context = session_context(root=root, intervals=HOUR)

    def write_kills(self, kills: int) -> None:
        (self.directory / "memory.events").write_text(EVENTS.format(kills=kills))


def reported(observer: RecordingObserver) -> list[dict[str, Any] | None]:
    """Return the values of each report of the cgroup; None for a report without a sample."""
    reports = [samples for _, families, samples, _ in observer.calls_of("on_samples") if CGROUP in families]
    return [next((dict(each.values) for each in samples if each.family is CGROUP), None) for samples in reports]


async def watch(fake: FakeQemu, cgroup: CgroupOfVm, change: Callable[[], None]) -> RecordingObserver:
    """Attach the VM, wait for its first poll, change something on the host, and end QEMU."""
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=cgroup.context):
        await observer.wait_until(lambda: reported(observer))
        change()
        await fake.stop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
    return observer


async def test_the_kill_that_ended_qemu_is_reported_before_its_end(fake: FakeQemu, tmp_path: Path) -> None:
    cgroup = CgroupOfVm(tmp_path, fake)
    observer = await watch(fake, cgroup, lambda: cgroup.write_kills(1))
    kills = [values and values["oom_kills_total"] for values in reported(observer)]
    assert kills == [0, 1], "once at the attach and once at the end"
    last = max(at for at, (name, call) in enumerate(observer.calls) if name == "on_samples" and CGROUP in call[1])
    gone = next(at for at, (name, call) in enumerate(observer.calls) if name == "on_record" and "gone" in call.type)
    assert last < gone


async def test_a_cgroup_that_was_removed_with_the_process_is_reported_as_absent(fake: FakeQemu, tmp_path: Path) -> None:
    cgroup = CgroupOfVm(tmp_path, fake)

    def remove() -> None:
        for file in cgroup.directory.iterdir():
            file.write_text("")  # a file of a removed cgroup that is open cannot be read; here it is empty
            file.unlink()

    observer = await watch(fake, cgroup, remove)
    first, *later = reported(observer)
    assert first is not None
    assert first["oom_kills_total"] == 0
    assert not [values for values in later if values and "oom_kills_total" in values]


async def test_nothing_is_read_when_the_agent_stops_watching(fake: FakeQemu, tmp_path: Path) -> None:
    cgroup, observer = CgroupOfVm(tmp_path, fake), RecordingObserver()
    async with supervised(observer, fake.path, context=cgroup.context):
        await observer.wait_until(lambda: reported(observer))
        await asyncio.sleep(0)
    assert len(reported(observer)) == 1


async def test_a_vm_without_a_cgroup_ends_without_a_report(fake: FakeQemu, tmp_path: Path) -> None:
    cgroup = CgroupOfVm(tmp_path, fake)
    (tmp_path / f"proc/{os.getpid()}/cgroup").write_text("0::/\n")
    observer = await watch(fake, cgroup, lambda: None)
    assert reported(observer) == [None]
