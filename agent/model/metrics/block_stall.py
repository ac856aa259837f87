"""Disks that complete no request although requests are in flight, and the queues of virtio disks."""

from agent.model.family import DETAIL, GAUGE, STATE, TEXT, Family, Field

BLOCK_STALL = Family(
    "block_stall",
    "query-blockstats, /proc/PID/task and x-query-virtio-queue-status",
    "A disk that completes no request although requests are in flight, while QEMU answers its monitor. Other disks have no sample.",
    ("device",),
    (
        Field("state", "state", STATE, "`stalled`, or `moving` in the first poll after a stall."),
        Field(
            "seconds",
            "seconds",
            GAUGE,
            "Time in seconds without a completed request, since the first sign of a request in flight. 0 after the stall.",
        ),
        Field(
            "since", "since_timestamp_seconds", GAUGE, "Time of the first sign of a stall, in seconds since the epoch."
        ),
        Field("signs", "signs", TEXT, "Signs that requests are in flight: threads, merged requests, queues."),
        Field("threads", "waiting_threads", GAUGE, "Number of QEMU's threads that wait in the kernel for storage."),
        Field(
            "requests",
            "requests_in_flight",
            GAUGE,
            "Number of requests in the disk's virtio queues; absent unless `allow.virtio_queues` is on.",
        ),
    ),
)

VIRTIO_QUEUE = Family(
    "virtio_queue",
    "x-query-virtio-queue-status",
    "A queue of a virtio disk inside QEMU (QEMU 7.2; `allow.virtio_queues`). The agent polls the queues of a VM if one of its disks "
    "completes no request, and at each resync. So there is no series. "
    "`qemu_block_stall_requests_in_flight` is the sum over the queues of a stalled disk.",
    ("device", "queue"),
    (
        Field("inuse", "requests_in_flight", DETAIL, "Number of requests that QEMU has taken and not completed."),
        Field("vring-num", "size", DETAIL, "Number of entries of the queue."),
    ),
)
