"""Virtio queues: a session queries them only if the config allows it, and only for disks that QEMU itself serves."""

from typing import Any

import pytest

from agent.model.metrics.block_stall import VIRTIO_QUEUE
from agent.qmp.commands import VIRTIO_QUEUE_STATUS, OptInQemuChange
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised


def path_of(device: str) -> str:
    return f"/machine/peripheral/{device}/virtio-backend"


def set_type(fake: FakeQemu, type_of_own: str) -> None:
    """Set the replies to qom-get: each disk has two queues."""
    types = {path_of("own"): type_of_own, path_of("vhost"): "vhost-user-blk", "/machine/peripheral/scsi": "scsi-hd"}

    def read_property(arguments: dict[str, Any]) -> Any:
        replies = {"type": types.get(arguments["path"]), "num-queues": 2}
        return replies.get(arguments["property"]) or FakeError()

    fake.replies["qom-get"] = read_property


@pytest.fixture
def disks(fake: FakeQemu) -> FakeQemu:
    """The scripted QEMU with a disk of its own, a disk of vhost-user that has block statistics by mistake, and a SCSI disk."""
    qdevs = (path_of("own"), path_of("vhost"), "/machine/peripheral/scsi")
    fake.replies["query-blockstats"] = [{"qdev": qdev, "stats": {"wr_operations": 1}} for qdev in qdevs]
    set_type(fake, "virtio-blk-device")
    fake.replies[VIRTIO_QUEUE_STATUS] = lambda arguments: {"inuse": 3 + arguments["queue"], "vring-num": 256}
    return fake


def queried(fake: FakeQemu) -> list[dict[str, Any]]:
    return [request["arguments"] for request in fake.requests if request.get("execute") == VIRTIO_QUEUE_STATUS]


async def test_each_queue_of_a_disk_that_qemu_serves_is_queried_and_no_other(disks: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, disks.path, context=session_context(OptInQemuChange.VIRTIO_QUEUES)):
        await observer.wait_until(lambda: observer.outcomes("virtio_queues"))
        await observer.wait_for_polls(3)
    assert queried(disks)[:2] == [{"path": path_of("own"), "queue": 0}, {"path": path_of("own"), "queue": 1}]
    assert {request["path"] for request in queried(disks)} == {path_of("own")}
    polled = [samples for _, families, samples, _ in observer.calls_of("on_samples") if VIRTIO_QUEUE in families]
    samples = [sample for poll in polled for sample in poll]
    assert [(sample.labels, sample.values) for sample in samples[:2]] == [
        (("own", "0"), {"requests_in_flight": 3, "size": 256}),
        (("own", "1"), {"requests_in_flight": 4, "size": 256}),
    ]


async def test_no_queue_is_queried_unless_the_config_allows_it(disks: FakeQemu) -> None:
    observer = RecordingObserver()
    others = set(OptInQemuChange) - {OptInQemuChange.VIRTIO_QUEUES, OptInQemuChange.OWN_MONITOR}
    async with supervised(observer, disks.path, context=session_context(*others)):
        await observer.wait_for_polls(3)
    assert queried(disks) == []
    assert observer.outcomes("virtio_queues") == []


async def test_no_queue_is_queried_after_a_device_was_unplugged_until_its_type_is_known(disks: FakeQemu) -> None:
    observer, context = RecordingObserver(), session_context(OptInQemuChange.VIRTIO_QUEUES)
    async with supervised(observer, disks.path, context=context):
        await observer.wait_until(lambda: observer.outcomes("virtio_queues"))
        (vm,) = context.schedule_by_vm
        before = len(queried(disks))
        set_type(disks, "vhost-user-blk")
        disks.emit("DEVICE_DELETED", {"device": "own", "path": "/machine/peripheral/own"})
        await observer.wait_until(lambda: "event.device_deleted" in observer.types())
        context.schedule_vm_collectors_now(vm, ("virtio_queues",))
        await observer.wait_for_polls(3)
        resync = disks.count("query-iothreads")
        context.schedule_vm_collectors_now(vm, ("discover",))
        await disks.wait_for("query-iothreads", resync + 1)
        await observer.wait_for_polls(3)
        context.schedule_vm_collectors_now(vm, ("virtio_queues",))
        await observer.wait_for_polls(3)
        assert len(queried(disks)) == before


@pytest.mark.parametrize("reply", [FakeError(), "wrong", [5, {"qdev": 7}, {}]])
async def test_a_vm_without_readable_disks_has_no_queues(disks: FakeQemu, reply: Any) -> None:
    disks.replies["query-blockstats"] = reply
    observer = RecordingObserver()
    async with supervised(observer, disks.path, context=session_context(OptInQemuChange.VIRTIO_QUEUES)):
        await observer.wait_for_polls(1, "inventory")
    assert queried(disks) == []
