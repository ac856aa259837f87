"""Watches for guest I/O that hangs while QEMU answers its monitor.

An ordinary poll costs one comparison for each disk. Only a disk that has completed no request for `IDLE_SECONDS` causes a check: the
agent reads the states of QEMU's threads, and queries virtio queues if `allow.virtio_queues` is on. The first check runs at once, later
checks at growing intervals. While requests may be in flight, a check runs at each poll.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from agent.app.io_stall_detector import COMPLETED, IDLE_SECONDS, MERGED, IoStallDetector, ThreadWaitingForStorage
from agent.exposition.snapshot import Snapshot, VmView
from agent.host.process import ROOT, Process
from agent.host.threads_blocked_on_storage import ThreadBlockedOnStorage, find_threads_blocked_on_storage
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.block_stall import VIRTIO_QUEUE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import IOTHREAD, PROCESS, VCPU
from agent.model.record import Vm

CHECK_INTERVAL_SECONDS: Final = 300.0
"""Average time between two checks of a VM that find nothing. A check takes a third of the time of a poll."""
MAX_CHECK_TOKENS: Final = 2.0
"""Maximum number of unused checks that a VM accumulates. With an unused check, a disk is checked as soon as the disk is idle."""
MAX_CHECK_INTERVAL_SECONDS: Final = 600.0
"""Maximum time between two checks of a VM with an idle disk."""

VIRTIO_QUEUE_COLLECTOR: Final = "virtio_queues"

ScheduleCollectors = Callable[[Vm, Sequence[str]], None]
ReadThreads = Callable[[int, Collection[str]], list[ThreadBlockedOnStorage]]
"""Returns the threads of a process that wait for storage, except the threads with the given ids."""


def read_threads_waiting_for_storage(
    pid: int, skip: Collection[str], root: Path = ROOT
) -> list[ThreadBlockedOnStorage]:
    """Return the threads of a process that wait for storage, except the threads with an id in `skip`.

    Return an empty list if the process cannot be read.
    """
    try:
        process = Process(pid, root)
    except OSError:
        return []
    try:
        return find_threads_blocked_on_storage(process, skip)
    finally:
        process.close()


class _WatchedVm:
    """The idle disks of one VM, and the times of its checks for stalls.

    Attributes:
        detector: the idle disks, and which of them stall.
        check_at: time of the next check on the monotonic clock, in seconds.
        wait: seconds to wait after the next check if that check finds nothing.
        tokens: number of checks that may run now (a token bucket).
        counted_at: time of the last update of `tokens` on the monotonic clock, in seconds.
    """

    __slots__ = ("check_at", "counted_at", "detector", "tokens", "wait")

    def __init__(self, now: float) -> None:
        self.detector = IoStallDetector()
        self.check_at = self.counted_at = now
        self.wait = CHECK_INTERVAL_SECONDS
        self.tokens = MAX_CHECK_TOKENS

    def is_check_due(self, now: float, *, has_new: bool) -> bool:
        """Return whether to look for requests in flight now. `has_new` is whether a disk has become idle at this poll."""
        self.tokens = min(MAX_CHECK_TOKENS, self.tokens + (now - self.counted_at) / CHECK_INTERVAL_SECONDS)
        self.counted_at = now
        if has_new:
            self.check_at, self.wait = now, CHECK_INTERVAL_SECONDS
        return now >= self.check_at and self.tokens >= 1

    def postpone_next_check(self, now: float) -> None:
        """Postpone the next check after a check that found nothing."""
        self.tokens -= 1
        self.check_at = now + self.wait
        self.wait = min(2 * self.wait, MAX_CHECK_INTERVAL_SECONDS)


class IoStallWatcher:
    """Watches the disks of all VMs for I/O that hangs.

    Attributes:
        schedule_collectors: schedules the given collectors of a VM now. The agent sets the function after the creation of the watcher.
        on_change: called when a VM is no longer suspect.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        read: ReadThreads = read_threads_waiting_for_storage,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a watcher without VMs.

        Args:
            snapshot: has the latest samples of each VM.
            read: reads the threads of a process.
            now: returns the time on the monotonic clock, in seconds.
        """
        self.schedule_collectors: ScheduleCollectors = lambda _vm, _names: None
        self.on_change: Callable[[], None] = lambda: None
        self._snapshot = snapshot
        self._read = read
        self._now = now
        self._vms: dict[Vm, _WatchedVm] = {}

    def is_suspect(self, vm: Vm) -> bool:
        """Return whether a VM may have I/O that hangs. The storage gate then defers commands that wait for storage inside QEMU."""
        watched = self._vms.get(vm)
        return watched is not None and watched.detector.is_suspect

    def on_samples(
        self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int
    ) -> Sequence[Sample] | None:
        """Update the disks of a VM after a poll.

        Returns:
            A sample of each disk that stalls or has stopped stalling. An empty list if only the previous poll of disks had samples. None if
            neither poll has samples, or if this poll is not of disks.
        """
        if VIRTIO_QUEUE in families:
            self._on_queues(vm, samples, time_ns)
            return None
        if BLOCK not in families:
            return None
        watched = self._vms.get(vm)
        is_known = watched is not None and (watched.detector.idle_or_stalled_disks or watched.detector.has_samples)
        if not is_known and not any(map(_is_idle, samples)):
            return None  # a fast path, because most VMs have no idle disk
        view = self._snapshot.view_of(vm)
        if view is None:
            return None
        if watched is None:
            watched = self._vms[vm] = _WatchedVm(self._now())
        was_suspect = watched.detector.is_suspect
        reported = self._evaluate_disks(vm, view, watched, samples, time_ns)
        if was_suspect:
            self._notify_if_cleared(watched, was_suspect=was_suspect)
        return reported

    def _notify_if_cleared(self, watched: _WatchedVm, *, was_suspect: bool) -> None:
        if was_suspect and not watched.detector.is_suspect:
            self.on_change()

    def on_detached(self, vm: Vm) -> None:
        """Remove the state of a VM that the agent has detached from."""
        self._vms.pop(vm, None)

    def _evaluate_disks(
        self, vm: Vm, view: VmView, watched: _WatchedVm, samples: Sequence[Sample], time_ns: int
    ) -> Sequence[Sample] | None:
        detector = watched.detector
        had_samples = detector.has_samples
        if _vm_value(view, RUNSTATE, "running") is not True:  # a stopped guest does not wait for I/O
            watched.detector = IoStallDetector()
            return [] if had_samples else None
        disks = [sample for sample in samples if sample.family is BLOCK]
        has_new = detector.on_disks(disks, _merged_without_completion(view, disks, detector), time_ns)
        if detector.idle_or_stalled_disks:
            self._check_for_requests(vm, view, watched, time_ns, has_new=has_new)
        reported = detector.stalled_samples(lambda: _throttled_disks(view), time_ns)
        return reported if reported or had_samples else None

    def _check_for_requests(self, vm: Vm, view: VmView, watched: _WatchedVm, time_ns: int, *, has_new: bool) -> None:
        """Look for requests in flight if a check is due, or if earlier polls showed signs of such requests."""
        now, detector = self._now(), watched.detector
        has_signs = detector.is_suspect or _waits_in_kernel(view)
        if not has_signs and not has_new and now < watched.check_at:
            return  # a fast path, because most disks are idle most of the time
        if not watched.is_check_due(now, has_new=has_new) and not has_signs:
            return
        pid = _vm_value(view, PROCESS, "pid")
        if isinstance(pid, str | int) and str(pid).isdecimal():
            waiting = self._read(int(pid), _thread_ids(view, VCPU))
            detector.on_waiting_threads(_threads_of_disks(view, waiting), time_ns)
        self.schedule_collectors(vm, (VIRTIO_QUEUE_COLLECTOR,))
        if not detector.is_suspect:
            watched.postpone_next_check(now)

    def _on_queues(self, vm: Vm, samples: Sequence[Sample], time_ns: int) -> None:
        watched = self._vms.get(vm)
        if watched is None:
            return
        requests: dict[str, int] = {}
        for sample in samples:
            count = sample.values.get("requests_in_flight") if sample.family is VIRTIO_QUEUE else None
            if type(count) is int and count >= 0:
                requests[sample.subject] = requests.get(sample.subject, 0) + count
        was_suspect = watched.detector.is_suspect
        watched.detector.on_virtio_queues(requests, time_ns)
        self._notify_if_cleared(watched, was_suspect=was_suspect)


def _is_idle(sample: Sample) -> bool:
    return sample.family is BLOCK and sample.values.get("idle_seconds", IDLE_SECONDS) >= IDLE_SECONDS


def _vm_value(view: VmView, family: Family, name: str) -> object:
    """Return a value of a family that describes the VM as a whole; None if the value is unknown."""
    polls = view.polls.get(family.name)
    return polls.current.get((), {}).get(name) if polls is not None else None


def _waits_in_kernel(view: VmView) -> bool:
    """Return whether the main loop or an iothread was in state D (uninterruptible sleep) at the last poll of QEMU's threads."""
    if _vm_value(view, PROCESS, "state") == "disk-sleep":
        return True
    iothreads = view.polls.get(IOTHREAD.name)
    return iothreads is not None and any(values.get("state") == "disk-sleep" for values in iothreads.current.values())


def _thread_ids(view: VmView, family: Family) -> frozenset[str]:
    polls = view.polls.get(family.name)
    return (
        frozenset(str(values.get("thread")) for values in polls.current.values()) if polls is not None else frozenset()
    )


def _throttled_disks(view: VmView) -> frozenset[str]:
    """Return the disks with a throttle limit."""
    polls = view.polls.get(BLOCK_DEVICE.name)
    return frozenset(
        device
        for (device,), values in (polls.current.items() if polls is not None else ())
        if any(
            name.startswith("throttle_") and name.endswith("_per_second") and value for name, value in values.items()
        )
    )


def _merged_without_completion(view: VmView, disks: Sequence[Sample], detector: IoStallDetector) -> list[str]:
    """Return the disks that became idle at this poll, and that merged but did not complete requests since the previous poll."""
    polls = view.polls.get(BLOCK.name)
    found: list[str] = []
    for sample in disks:
        if polls is None or sample.labels[0] in detector.idle_or_stalled_disks or not _is_idle(sample):
            continue
        rates = polls.rates_for_labels(sample.labels, (*COMPLETED, *MERGED))
        if any(rates.get(name) for name in MERGED) and not any(rates.get(name) for name in COMPLETED):
            found.append(sample.subject)
    return found


def _threads_of_disks(view: VmView, threads: Iterable[ThreadBlockedOnStorage]) -> list[ThreadWaitingForStorage]:
    """Return the threads that may wait for a disk. Leave out threads that wait for another file, such as a log file."""
    polls = view.polls.get(BLOCK_LAYER.name)
    paths = (
        {(labels[0], values["path"]) for labels, values in polls.current.items() if "path" in values}
        if polls is not None
        else set()
    )
    found = []
    for thread in threads:
        same = {device for device, path in paths if path == thread.path}
        same = same or {device for device, path in paths if Path(path).name == Path(thread.path).name}
        if not thread.path or thread.path.startswith("/dev/") or not paths or same:
            device = next(iter(same)) if len(same) == 1 else ""
            found.append(ThreadWaitingForStorage(thread.id, thread.timeslices, device))
    return found
