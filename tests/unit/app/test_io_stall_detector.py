"""Which disks stall with requests in flight, and which are only idle, paused, throttled or slow."""

from collections.abc import Iterable
from typing import Any, Final

import pytest

from agent.app.io_stall_detector import IoStallDetector, ThreadWaitingForStorage
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from tests.lab.alert_scenario import SECOND

START: Final = 1_000_000 * SECOND
"""Time of the first poll, in nanoseconds since the epoch."""
STUCK: Final = ThreadWaitingForStorage(7, 20)
"""A thread that waits for an unknown disk, as long as it is read with the same timeslices."""


class Polls:
    """Polls of one VM at an interval of 10 s.

    Attributes:
        detector: The detector.
        seconds: Time of the last poll, since the first one.
    """

    def __init__(self) -> None:
        self.detector = IoStallDetector()
        self.seconds = -10

    def poll(
        self,
        *disks: Sample,
        threads: Iterable[ThreadWaitingForStorage] = (),
        merged: tuple[str, ...] = (),
        queued: dict[str, int] | None = None,
        throttled: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Poll everything 10 s after the last poll, the queues 5 s later. Return the seconds of each stalled disk."""
        self.seconds += 10
        now = START + self.seconds * SECOND
        self.detector.on_disks(disks, merged, now)
        self.detector.on_waiting_threads(threads, now)
        samples = self.detector.stalled_samples(lambda: throttled, now)
        if queued is not None:
            self.detector.on_virtio_queues(queued, now + 5 * SECOND)
        return {sample.subject: sample.values["seconds"] for sample in samples}


@pytest.fixture
def polls() -> Polls:
    return Polls()


def disk(device: str = "disk0", *, idle: float | None, writes: int = 100, **values: Any) -> Sample:
    """Return a sample of a disk. With `idle` None, it has no idle time, as over libvirt's API."""
    idle_time = {} if idle is None else {"idle_seconds": idle}
    return Sample(BLOCK, (device,), {"writes_total": writes, **idle_time, **values})


def test_a_thread_that_has_not_run_between_two_polls_shows_that_a_disk_stalls(polls: Polls) -> None:
    assert polls.poll(disk(idle=2)) == {}
    assert polls.poll(disk(idle=12), threads=[STUCK]) == {}
    assert polls.detector.is_suspect
    assert polls.poll(disk(idle=22), threads=[STUCK]) == {"disk0": 10.0}
    assert polls.poll(disk(idle=32), threads=[STUCK]) == {"disk0": 20.0}


def test_a_disk_that_moves_again_is_reported_once_more_as_moving(polls: Polls) -> None:
    polls.poll(disk(idle=12), threads=[STUCK])
    assert polls.poll(disk(idle=22), threads=[STUCK]) == {"disk0": 10.0}
    assert polls.poll(disk(idle=0.1, writes=101)) == {"disk0": 0.0}
    assert polls.poll(disk(idle=0.1, writes=102)) == {}
    assert not polls.detector.is_suspect


def test_a_slow_disk_whose_threads_run_in_between_does_not_stall(polls: Polls) -> None:
    for timeslices in range(20):
        waiting = [ThreadWaitingForStorage(7, timeslices)]
        assert polls.poll(disk(idle=12 + 10 * timeslices), threads=waiting) == {}


def test_a_disk_that_completes_one_request_in_each_poll_does_not_stall(polls: Polls) -> None:
    for writes in range(20):
        assert polls.poll(disk(idle=9.9, writes=writes), threads=[STUCK], queued={"disk0": 4}) == {}
        assert polls.poll(disk(idle=None, writes=writes), threads=[STUCK], queued={"disk0": 4}) == {}


def test_an_idle_disk_does_not_stall_although_nothing_moves_for_a_day(polls: Polls) -> None:
    for number in range(8640):
        assert polls.poll(disk(idle=12 + 10 * number), queued={"disk0": 0}) == {}
    assert not polls.detector.is_suspect


def test_a_thread_that_waits_since_before_the_last_request_concerns_another_disk(polls: Polls) -> None:
    polls.poll(disk(idle=12), disk("disk1", idle=1), threads=[STUCK])
    polls.poll(disk(idle=22), disk("disk1", idle=3, writes=101), threads=[STUCK])
    assert polls.poll(disk(idle=32), disk("disk1", idle=11, writes=102), threads=[STUCK]) == {"disk0": 20.0}


def test_a_thread_that_waits_for_the_file_of_one_disk_concerns_no_other(polls: Polls) -> None:
    stuck = [ThreadWaitingForStorage(7, 20, "disk1")]
    polls.poll(disk(idle=12), disk("disk1", idle=12), threads=stuck)
    assert polls.poll(disk(idle=22), disk("disk1", idle=22), threads=stuck) == {"disk1": 10.0}


def test_a_disk_that_never_completed_a_request_stalls_only_if_it_is_named(polls: Polls) -> None:
    unused = disk("cd0", idle=None, writes=0)
    polls.poll(unused, threads=[STUCK])
    assert polls.poll(unused, threads=[STUCK]) == {}
    named = [ThreadWaitingForStorage(8, 3, "cd0")]
    polls.poll(unused, threads=named)
    assert polls.poll(unused, threads=named) == {"cd0": 10.0}


def test_a_merge_without_a_completed_request_is_a_sign(polls: Polls) -> None:
    assert polls.poll(disk(idle=12, writes_merged_total=5)) == {}
    assert polls.poll(disk(idle=22, writes_merged_total=6)) == {"disk0": 0.0}
    assert polls.poll(disk(idle=32, writes_merged_total=6)) == {"disk0": 10.0}
    assert polls.poll(disk(idle=4, writes=101, writes_merged_total=6)) == {"disk0": 0.0}


def test_a_merge_is_a_sign_from_the_first_poll_at_which_the_disk_is_idle(polls: Polls) -> None:
    polls.poll(disk(idle=3))
    assert polls.poll(disk(idle=13), merged=("disk0",)) == {"disk0": 0.0}


def test_requests_in_a_virtio_queue_in_two_polls_are_a_sign(polls: Polls) -> None:
    assert polls.poll(disk(idle=12), queued={"disk0": 3, "disk9": 1}) == {}
    assert polls.detector.is_suspect
    assert polls.poll(disk(idle=22), queued={"disk0": 3}) == {}
    assert polls.poll(disk(idle=32), queued={"disk0": 4}) == {"disk0": 15.0}
    polls.poll(disk(idle=42), queued={"disk0": 0})
    assert polls.poll(disk(idle=52), queued={"disk0": 0}) == {"disk0": 0.0}


def test_a_request_that_was_queued_by_chance_is_no_sign(polls: Polls) -> None:
    for number in range(10):
        writes, idle = 100 + number, 12.0
        assert polls.poll(disk(idle=idle, writes=writes), queued={"disk0": 1}) == {}


def test_a_throttled_disk_stalls_only_if_a_thread_waits_for_it(polls: Polls) -> None:
    for number in range(10):
        throttled = disk(idle=12 + 10 * number, writes_merged_total=number)
        assert polls.poll(throttled, queued={"disk0": 5}, throttled=("disk0",)) == {}
    waiting = disk(idle=112, writes_merged_total=9)
    polls.poll(waiting, threads=[STUCK], throttled=("disk0",))
    assert polls.poll(waiting, threads=[STUCK], throttled=("disk0",)) == {"disk0": 10.0}


def test_a_disk_that_was_unplugged_is_reported_no_longer(polls: Polls) -> None:
    polls.poll(disk(idle=12), threads=[STUCK])
    assert polls.poll(disk(idle=22), threads=[STUCK]) == {"disk0": 10.0}
    assert polls.poll(threads=[STUCK]) == {}


def test_a_qemu_with_endless_disk_names_is_remembered_in_part_only(polls: Polls) -> None:
    for number in range(3):
        polls.poll(*(disk(f"{number}-{index}", idle=12) for index in range(1000)))
        assert len(polls.detector.idle_or_stalled_disks) <= 256
