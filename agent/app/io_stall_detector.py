"""Finds the disks of one VM that complete no request although requests are in flight. Pure.

`io_stall_watcher` passes the polls and the threads to this module, and skips a VM that does not run.

A disk is idle if it has completed no request for `IDLE_SECONDS`. QEMU reports only completed requests. So a disk without requests has the
same counters as a disk that hangs. An idle disk stalls if it has a sign of a request in flight:

- a thread of QEMU that waits in the kernel for storage and has not run between two reads;
- a merged request without a completed request: QEMU counts a merge when it submits the requests;
- two polls that show a request that QEMU has taken from a virtio queue and not completed.

The requests of a disk with a throttle limit may wait in QEMU itself. So only the first sign counts for a throttled disk.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent.model.family import FieldValues, Sample
from agent.model.metrics.block_stall import BLOCK_STALL

IDLE_SECONDS: Final = 10.0
"""Time without a completed request after which a disk counts as idle, in seconds. Most idle disks do not stall."""

SAME_ACCESS_NS: Final = 1_000_000_000
"""Maximum error of the time of a disk's last access, in nanoseconds. The agent computes the access time from the idle time at a poll."""

MAX_DISKS: Final = 256
"""Maximum number of disks of a VM, because a malicious QEMU may report any number of names."""

_KINDS: Final = ("reads", "writes", "flushes", "unmaps", "zone_appends")
COMPLETED: Final = tuple(f"{outcome}{kind}_total" for outcome in ("", "failed_", "invalid_") for kind in _KINDS)
"""Counters of completed requests."""
MERGED: Final = ("reads_merged_total", "writes_merged_total", "unmaps_merged_total", "zone_appends_merged_total")
"""Counters of merged requests."""


class IoStallSign(StrEnum):
    """A sign that a disk has requests in flight."""

    THREADS = "threads"
    MERGED = "merged requests"
    QUEUES = "queues"


@dataclass(frozen=True, slots=True)
class ThreadWaitingForStorage:
    """A thread that waits in the kernel for storage.

    Attributes:
        id: the thread id.
        timeslices: number of times that the thread was scheduled.
        device: the disk whose file the thread waits for; empty if it is unknown.
    """

    id: int
    timeslices: int
    device: str = ""


@dataclass(slots=True)
class IdleOrStalledDisk:
    """A disk that has completed no request for at least `IDLE_SECONDS`.

    Attributes:
        completed: number of completed requests when the disk became idle.
        merged: number of merged requests when the disk became idle.
        last_completed_ns: time of the last completed request, in nanoseconds since the epoch. If the time is unknown, the value is the time
            of the poll at which the disk became idle.
        signs: the signs of requests in flight, each with the time when the sign began, in nanoseconds since the epoch.
        queued_ns: time of the first poll that showed requests in the disk's virtio queues, in nanoseconds since the epoch. 0 if the last
            poll of the queues showed no requests.
        requests: number of requests in the disk's virtio queues at the last poll of the queues; None if the queues were never polled.
        threads: number of threads that wait for this disk.
    """

    completed: float
    merged: float
    last_completed_ns: int
    signs: dict[IoStallSign, int] = field(default_factory=dict)
    queued_ns: int = 0
    requests: int | None = None
    threads: int = 0


class IoStallDetector:
    """The idle disks of one VM, and which of them stall.

    Attributes:
        idle_or_stalled_disks: the disks that have completed no request for `IDLE_SECONDS`, by device.
        stalled: the devices that `stalled_samples` last reported as stalled.
        has_samples: whether the last call of `stalled_samples` returned a sample.
    """

    __slots__ = ("_threads", "has_samples", "idle_or_stalled_disks", "stalled")

    def __init__(self) -> None:
        self.idle_or_stalled_disks: dict[str, IdleOrStalledDisk] = {}
        self.stalled: frozenset[str] = frozenset()
        self.has_samples = False
        # When each thread began to wait; the key is its id and its number of time slices.
        self._threads: dict[tuple[int, int], int] = {}

    @property
    def is_suspect(self) -> bool:
        """True if a disk that completes no requests may have requests in flight. Usually the requests complete before the next poll."""
        if self._threads:
            return bool(self.idle_or_stalled_disks)
        for disk in self.idle_or_stalled_disks.values():  # noqa: SIM110 - each poll of an idle disk runs this
            if disk.signs or disk.queued_ns:
                return True
        return False

    def on_disks(self, disks: Sequence[Sample], merged_lately: Collection[str], time_ns: int) -> bool:
        """Update the idle disks after a poll of the disks' counters.

        Args:
            disks: samples of the family `block`.
            merged_lately: disks that merged requests and completed none since the previous poll.
            time_ns: when the query was sent, in nanoseconds since the epoch.

        Returns:
            True if a disk has become idle since the previous poll.
        """
        before, self.idle_or_stalled_disks, has_new = self.idle_or_stalled_disks, {}, False
        if self.stalled:
            self.stalled = self.stalled.intersection(sample.subject for sample in disks)
        for sample in disks:
            device, values = sample.labels[0], sample.values
            idle = values.get("idle_seconds")
            if idle is not None and idle < IDLE_SECONDS:
                continue
            last_completed_ns, disk = time_ns - int((idle or 0.0) * 1e9), before.get(device)
            if disk is None or (
                # The idle time shows whether a disk is still idle. Without an idle time, or after a slow reply, the counters decide.
                (idle is None or last_completed_ns > disk.last_completed_ns + SAME_ACCESS_NS)
                and disk.completed != _completed_requests(values)
            ):
                if len(self.idle_or_stalled_disks) >= MAX_DISKS:
                    continue
                disk, has_new = (
                    IdleOrStalledDisk(_completed_requests(values), _merged_requests(values), last_completed_ns),
                    True,
                )
                if device in merged_lately:
                    disk.signs[IoStallSign.MERGED] = time_ns
            elif _merged_requests(values) > disk.merged:
                disk.signs.setdefault(IoStallSign.MERGED, time_ns)
            self.idle_or_stalled_disks[device] = disk
        return has_new

    def on_waiting_threads(self, threads: Iterable[ThreadWaitingForStorage], time_ns: int) -> None:
        """Update the stall signs of the idle disks.

        Args:
            threads: all threads of QEMU that wait for storage.
            time_ns: when the threads were read, in nanoseconds since the epoch.
        """
        before, self._threads = self._threads, {}
        for disk in self.idle_or_stalled_disks.values():
            disk.threads = 0
            disk.signs.pop(IoStallSign.THREADS, None)
        for thread in threads:
            key = thread.id, thread.timeslices
            since_ns = self._threads[key] = min(before.get(key, time_ns), time_ns)
            if key not in before or since_ns == time_ns:
                continue
            for device, disk in self.idle_or_stalled_disks.items():
                is_candidate = device == thread.device if thread.device else bool(disk.completed)
                if is_candidate and disk.last_completed_ns <= since_ns:
                    disk.threads += 1
                    disk.signs[IoStallSign.THREADS] = min(since_ns, disk.signs.get(IoStallSign.THREADS, since_ns))

    def on_virtio_queues(self, requests: Mapping[str, int], time_ns: int) -> None:
        """Update the stall signs of the idle disks after a poll of virtio queues.

        Args:
            requests: number of requests in flight, by disk.
            time_ns: time of the poll, in nanoseconds since the epoch.
        """
        for device, count in requests.items():
            disk = self.idle_or_stalled_disks.get(device)
            if disk is None:
                continue
            disk.requests = count
            if not count:
                disk.queued_ns = 0
                disk.signs.pop(IoStallSign.QUEUES, None)
            elif not disk.queued_ns:
                disk.queued_ns = time_ns
            elif time_ns > disk.queued_ns:
                disk.signs[IoStallSign.QUEUES] = disk.queued_ns

    def stalled_samples(self, find_throttled: Callable[[], Collection[str]], time_ns: int) -> list[Sample]:
        """Return a sample for each stalled disk, and for each disk whose stall has ended since the last call.

        Args:
            find_throttled: returns the disks with a throttle limit; called only if a disk has a sign.
            time_ns: time of the poll in nanoseconds since the epoch.
        """
        samples: list[Sample] = []
        suspects = [(device, disk) for device, disk in self.idle_or_stalled_disks.items() if disk.signs]
        throttled = find_throttled() if suspects else ()
        for device, disk in suspects:
            counted = {IoStallSign.THREADS} if device in throttled else set(IoStallSign)
            signs = {sign: since_ns for sign, since_ns in disk.signs.items() if sign in counted}
            if signs:
                samples.append(_stalled_sample(device, disk, signs, time_ns))
        if not samples and not self.stalled:
            self.has_samples = False
            return samples
        stalled = frozenset(sample.subject for sample in samples)
        moving = {"state": "moving", "seconds": 0.0}
        samples += [Sample(BLOCK_STALL, (device,), dict(moving)) for device in sorted(self.stalled - stalled)]
        self.stalled, self.has_samples = stalled, bool(samples)
        return samples


def _stalled_sample(device: str, disk: IdleOrStalledDisk, signs: Mapping[IoStallSign, int], time_ns: int) -> Sample:
    since_ns = min(signs.values())
    values: FieldValues = {
        "state": "stalled",
        "seconds": max(0, time_ns - since_ns) / 1e9,
        "since_timestamp_seconds": since_ns / 1e9,
        "signs": ", ".join(sorted(signs)),
    }
    if IoStallSign.THREADS in signs:
        values["waiting_threads"] = disk.threads
    if disk.requests is not None:
        values["requests_in_flight"] = disk.requests
    return Sample(BLOCK_STALL, (device,), values)


def _completed_requests(values: FieldValues) -> float:
    return float(sum(values.get(name, 0) for name in COMPLETED))


def _merged_requests(values: FieldValues) -> float:
    """Return the number of merged requests. The code is written for speed, because each poll of an idle disk runs it."""
    reads, writes, unmaps, zone_appends = MERGED
    get = values.get
    return float(get(reads, 0) + get(writes, 0) + get(unmaps, 0) + get(zone_appends, 0))
