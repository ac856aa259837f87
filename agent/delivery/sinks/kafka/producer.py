"""Starts aiokafka's producers with the settings of the sink, and discards them after any failure.

After a permanent failure, an idempotent producer's sequence numbers no longer match the broker's, and every later batch also fails
(aiokafka issue 1017). After all brokers have moved, a producer does not use its bootstrap servers again (aiokafka issue 459). If the
brokers are gone, a producer's `stop` waits forever (aiokafka issue 1101). So after any failure, the supervisor closes the sink, opens the
sink with a new producer, and sends the batch again.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agent.delivery.sinks.kafka.config import KafkaConfig

KAFKA_BATCH_BYTES = 1024 * 1024
"""Maximum bytes of a Kafka batch before compression. Each partition has only one batch in flight, so small batches would limit the rate."""
UNCOMPRESSED_BATCH_BYTES = 256 * 1024
"""Maximum bytes of a Kafka batch if batches are not compressed."""


async def start_producer(config: KafkaConfig, options: Mapping[str, Any], close_seconds: float) -> AIOKafkaProducer:
    """Start a producer of aiokafka, wait until it has connected, and return it.

    Args:
        config: the sink's config.
        options: aiokafka's keyword arguments for the connection.
        close_seconds: maximum time in seconds to discard a producer that fails to start.
    """
    codec = None if config.compression == "none" else config.compression
    batch_bytes = KAFKA_BATCH_BYTES if codec else UNCOMPRESSED_BATCH_BYTES
    producer = AIOKafkaProducer(
        acks="all",
        enable_idempotence=True,
        compression_type=codec,
        max_batch_size=min(batch_bytes, config.max_message_bytes),
        max_request_size=config.max_message_bytes + KAFKA_BATCH_BYTES,
        retry_backoff_ms=250,
        metadata_max_age_ms=60_000,
        **options,
    )
    try:
        await producer.start()
    except BaseException:
        await discard_producer(producer, close_seconds)
        raise
    return producer


async def discard_producer(producer: AIOKafkaProducer, seconds: float) -> None:
    """End a producer immediately, with its tasks and connections.

    This function does not call the producer's `stop`, because `stop` waits for brokers that may never reply.

    The function removes the callback of each task before it cancels the task. A cancelled sender task waits for its requests, and the
    requests end with an exception that the callback of aiokafka 0.14 does not handle.

    The function aborts the connections. A connection that is only closed would stay open until the broker has read all data.

    Args:
        producer: the producer.
        seconds: maximum time in seconds to wait for the end of its tasks.
    """
    producer._closed = True  # noqa: SLF001 - otherwise the producer logs a warning when it is garbage-collected
    sender, client, accumulator = producer._sender, producer.client, producer._message_accumulator  # noqa: SLF001
    tasks = [task for task in asyncio.all_tasks() if _task_owner(task) in (sender, client)]
    for task in tasks:
        task.remove_done_callback(sender._fail_all)  # noqa: SLF001
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    batches = accumulator._pending_batches  # noqa: SLF001
    batches.update(b for queue in accumulator._batches.values() for b in queue)  # noqa: SLF001 - batches that wait for a retry
    accumulator.fail_all(KafkaError("the producer was closed"))
    for batch in batches:
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if future.done() and not future.cancelled():
                future.exception()  # retrieve the exception, because asyncio warns about exceptions that are never retrieved
    for connection in list(client._conns.values()):  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        connection.close()
        if writer is not None:
            writer.transport.abort()


def _task_owner(task: "asyncio.Task[Any]") -> object:
    """Return the object whose method a task runs; None if the task does not run a method."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None
