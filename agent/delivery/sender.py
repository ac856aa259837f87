"""Sends the records of one queue to the sink, batch by batch."""

import time
from collections.abc import Callable, Sequence

from agent.delivery.journal.journal import Journal
from agent.delivery.queue import RecordQueue
from agent.delivery.sinks.supervisor import SinkSupervisor
from agent.model.record import EncodedRecord

BATCH_RECORDS = 8000
"""Maximum number of records in a batch."""
SENDER_BATCH_BYTES = 3 * 1024 * 1024
"""Maximum bytes of a batch. A batch also takes at most a quarter of the queue's memory limit."""


async def send_records_until_cancelled(
    queue: RecordQueue,
    supervisor: SinkSupervisor,
    journal: Journal | None,
    on_sent: Callable[[RecordQueue, Sequence[EncodedRecord]], None],
) -> None:
    """Send the records of a queue, in order, until cancelled.

    Args:
        queue: the queue.
        supervisor: sends a batch until the sink has accepted or rejected each record.
        journal: the journal with the queue's backlog; None if there is no journal.
        on_sent: called after each batch, with the queue and with the records that the sink rejected.
    """
    batch_bytes = min(SENDER_BATCH_BYTES, queue.limits.memory // 4)
    while True:
        await queue.wait_nonempty()
        await queue.linger(BATCH_RECORDS, batch_bytes)
        if not queue.in_flight and queue.backlog and journal is not None:
            await journal.fetch_backlog(queue, BATCH_RECORDS, batch_bytes)
        elif not queue.in_flight:
            queue.take_from_memory(BATCH_RECORDS, batch_bytes)
        if queue.in_flight:
            queue.sent_at = time.monotonic()
            rejected = await supervisor.deliver(queue.in_flight)
            on_sent(queue, rejected)
            queue.ack()
