"""The Kafka sink without Kafka: what it leaves behind when a send is cancelled."""

import asyncio
import gc
from typing import Any

from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.sink import KafkaSink
from tests.lab.scripted_sink import RecordSource


class SilentSink(KafkaSink):
    """A sink whose brokers never acknowledge a batch."""

    sending: asyncio.Event

    async def _send_partition(self, *_: Any) -> None:
        self.sending.set()
        await asyncio.Event().wait()


async def test_a_cancelled_send_leaves_no_unretrieved_exception() -> None:
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    sink = SilentSink(KafkaConfig(bootstrap_servers=["127.0.0.1:9"]))
    sink.sending = asyncio.Event()
    partitions = {("qemu.events", 0): [RecordSource().next()]}
    no_producer: Any = None
    send = asyncio.create_task(sink._send_all(no_producer, partitions))
    await sink.sending.wait()
    send.cancel()
    await asyncio.wait({send})
    assert send.cancelled()
    del send
    gc.collect()
    await asyncio.sleep(0)
    assert logged == []
