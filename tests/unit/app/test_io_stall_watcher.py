"""When the agent looks for stalled I/O, and what it concludes from a VM's samples."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from agent.app.io_stall_watcher import CHECK_INTERVAL_SECONDS, MAX_CHECK_INTERVAL_SECONDS, IoStallWatcher
from agent.exposition.snapshot import Snapshot
from agent.host.threads_blocked_on_storage import ThreadBlockedOnStorage
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.block_stall import VIRTIO_QUEUE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import IOTHREAD, PROCESS, VCPU
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.alert_scenario import SECOND
from tests.lab.recording_observer import monitor_at
from tests.lab.thin_disks import VM

START: Final = 1_000_000
DAY: Final = 86_400


class WatchedVm:
    """A running VM, its polls at an interval of 10 s, and the threads of its process.

    Attributes:
        watch: The watch.
        now: The time in seconds since the epoch.
        threads: The threads that wait for storage.
        skipped: For each read of the threads, the thread ids that were left out.
        scheduled: The names of the collectors that were made due.
        changes: Number of calls of `on_change`.
        last: Result of the last poll of the disks.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.watch = IoStallWatcher(self.snapshot, self._read, lambda: float(self.now))
        self.watch.schedule_collectors = lambda _vm, names: self.scheduled.extend(names)
        self.watch.on_change = self._on_change
        self.now = START
        self.threads: list[ThreadBlockedOnStorage] = []
        self.skipped: list[Collection[str]] = []
        self.scheduled: list[str] = []
        self.changes = 0
        self.last: Sequence[Sample] | None = None
        self.snapshot.update_monitor_status(MonitorStatus(monitor_at(Path("/m")), MonitorState.UP, "", VM, None, 0))
        self.put(RUNSTATE, ((), {"running": True, "status": "running"}))
        self.put(PROCESS, ((), {"pid": 77, "state": "sleeping"}))

    def _read(self, pid: int, skip: Collection[str]) -> list[ThreadBlockedOnStorage]:
        assert pid == 77
        self.skipped.append(skip)
        return self.threads

    def _on_change(self) -> None:
        self.changes += 1

    def put(self, family: Family, *subjects: tuple[tuple[str, ...], dict[str, Any]]) -> Sequence[Sample] | None:
        samples = [Sample(family, labels, values) for labels, values in subjects]
        self.snapshot.replace_samples(VM, (family,), samples, self.now * SECOND)
        return self.watch.on_samples(VM, (family,), samples, self.now * SECOND)

    def poll(self, idle: float | None, writes: int = 100, **values: Any) -> dict[str, Any] | None:
        """Poll a disk 10 s after the last poll. Return the values of its sample; None if the poll has none."""
        self.now += 10
        disk = {"writes_total": writes, **({} if idle is None else {"idle_seconds": idle}), **values}
        samples = self.last = self.put(BLOCK, (("disk0",), disk))
        return samples[0].values if samples else None


@pytest.fixture
def vm() -> WatchedVm:
    return WatchedVm()


STUCK: Final = ThreadBlockedOnStorage(5, 9)


def test_the_threads_of_a_vm_whose_disks_move_are_never_read(vm: WatchedVm) -> None:
    for writes in range(1000):
        assert vm.poll(idle=3.0, writes=writes) is None
    assert (vm.skipped, vm.scheduled) == ([], [])


def test_a_disk_is_checked_at_the_first_poll_at_which_it_is_idle(vm: WatchedVm) -> None:
    vm.put(VCPU, (("0",), {"thread": 78}))
    for writes in range(100):
        vm.poll(idle=1.0, writes=writes)
    vm.threads = [STUCK]
    assert vm.poll(idle=10.5) is None
    assert (vm.skipped, vm.scheduled) == ([frozenset({"78"})], ["virtio_queues"])
    assert vm.watch.is_suspect(VM)
    assert vm.poll(idle=20.5) == {
        "state": "stalled",
        "seconds": 10.0,
        "since_timestamp_seconds": vm.now - 10,
        "signs": "threads",
        "waiting_threads": 1,
    }


def test_an_idle_vm_is_checked_ever_more_rarely(vm: WatchedVm) -> None:
    for number in range(DAY // 10):
        vm.poll(idle=10.0 + 10 * number)
    assert len(vm.skipped) <= DAY / MAX_CHECK_INTERVAL_SECONDS + 3
    assert vm.changes == 0


def test_a_vm_that_writes_twice_a_minute_is_checked_no_more_than_it_may_cost(vm: WatchedVm) -> None:
    for number in range(DAY // 10):
        vm.poll(idle=10.0 * (number % 3) + 1, writes=number // 3)
    assert DAY / CHECK_INTERVAL_SECONDS / 2 < len(vm.skipped) <= DAY / CHECK_INTERVAL_SECONDS + 3


def test_a_main_loop_in_state_d_is_checked_at_each_poll(vm: WatchedVm) -> None:
    vm.put(IOTHREAD, (("io0",), {"state": "disk-sleep"}))
    for number in range(20):
        vm.poll(idle=10.0 + 10 * number)
    assert len(vm.skipped) == 20


def test_the_hold_back_of_commands_ends_when_the_disk_moves(vm: WatchedVm) -> None:
    vm.threads = [STUCK]
    vm.poll(idle=10.0)
    vm.poll(idle=20.0)
    assert (vm.watch.is_suspect(VM), vm.changes) == (True, 0)
    vm.threads = []
    assert vm.poll(idle=1.0, writes=101) == {"state": "moving", "seconds": 0.0}
    assert (vm.watch.is_suspect(VM), vm.changes) == (False, 1)
    vm.poll(idle=1.0, writes=102)
    assert vm.last == [], "the last sample is removed"
    vm.poll(idle=1.0, writes=103)
    assert vm.last is None


@pytest.mark.parametrize("status", ["paused", "inmigrate", "io-error"])
def test_a_guest_that_does_not_run_has_no_stalled_disk(vm: WatchedVm, status: str) -> None:
    vm.threads = [STUCK]
    vm.poll(idle=10.0)
    assert vm.poll(idle=20.0) is not None
    vm.put(RUNSTATE, ((), {"running": False, "status": status}))
    vm.poll(idle=30.0)
    assert vm.last == []
    assert not vm.watch.is_suspect(VM)
    read = len(vm.skipped)
    vm.poll(idle=40.0)
    assert len(vm.skipped) == read


def test_queues_are_counted_by_disk(vm: WatchedVm) -> None:
    queues = [(("disk0", "0"), {"requests_in_flight": 2}), (("disk0", "1"), {"requests_in_flight": 1})]
    vm.poll(idle=10.0)
    vm.put(VIRTIO_QUEUE, *queues)
    assert vm.poll(idle=20.0) is None
    vm.put(VIRTIO_QUEUE, *queues)
    stalled = vm.poll(idle=30.0)
    assert stalled is not None
    assert (stalled["requests_in_flight"], stalled["signs"], stalled["seconds"]) == (3, "queues", 20.0)


def test_the_hold_back_of_commands_ends_when_the_queues_are_empty(vm: WatchedVm) -> None:
    vm.poll(idle=10.0)
    vm.put(VIRTIO_QUEUE, (("disk0", "0"), {"requests_in_flight": 2}))
    assert (vm.watch.is_suspect(VM), vm.changes) == (True, 0)
    vm.put(VIRTIO_QUEUE, (("disk0", "0"), {"requests_in_flight": 0}))
    assert (vm.watch.is_suspect(VM), vm.changes) == (False, 1)


def test_a_merge_between_the_last_two_polls_is_a_sign(vm: WatchedVm) -> None:
    vm.poll(idle=1.0, writes_merged_total=5)
    stalled = vm.poll(idle=11.0, writes_merged_total=7)
    assert stalled is not None
    assert stalled["signs"] == "merged requests"


@pytest.mark.parametrize("name", ["throttle_bytes_per_second", "throttle_write_operations_per_second"])
def test_a_throttle_limit_explains_requests_in_flight(vm: WatchedVm, name: str) -> None:
    vm.put(BLOCK_DEVICE, (("disk0",), {name: 100, "throttle_group": "disk0"}))
    vm.poll(idle=1.0, writes_merged_total=5)
    assert vm.poll(idle=11.0, writes_merged_total=7) is None
    vm.put(BLOCK_DEVICE, (("disk0",), {name: 0, "throttle_group": "disk0"}))
    assert vm.poll(idle=21.0, writes_merged_total=7) is not None


@pytest.mark.parametrize(
    ("path", "layer", "is_concerned"),
    [
        ("/images/a.qcow2", "/images/a.qcow2", True),
        ("/mnt/nfs/a.qcow2", "/images/a.qcow2", True),
        ("/dev/dm-3", "/dev/vg/lv", True),
        ("", "/images/a.qcow2", True),
        ("/var/log/qemu.log", "/images/a.qcow2", False),
    ],
)
def test_a_thread_that_waits_for_a_file_of_no_disk_is_left_out(
    vm: WatchedVm,
    path: str,
    layer: str,
    is_concerned: bool,  # noqa: FBT001 - a parameter of the case
) -> None:
    vm.put(BLOCK_LAYER, (("disk0", "format"), {"path": layer}), (("disk1", "format"), {"path": "/images/b.qcow2"}))
    vm.threads = [ThreadBlockedOnStorage(5, 9, path)]
    vm.poll(idle=10.0)
    assert (vm.poll(idle=20.0) is not None) is is_concerned


def test_a_vm_that_is_gone_is_forgotten(vm: WatchedVm) -> None:
    vm.threads = [STUCK]
    vm.poll(idle=10.0)
    vm.watch.on_detached(VM)
    assert not vm.watch.is_suspect(VM)
    assert vm.watch._vms == {}
