"""Measures the CPU of events in this process, on request: `python tests/bench/event_path.py`, with the tree to measure in PYTHONPATH.

For each line on standard input, it passes events through the agent's own objects, and writes a line of JSON: the nanoseconds of CPU of an
event. It uses only what older versions of the agent have too, and nothing of the tests.
"""

import asyncio
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from aiokafka.producer.message_accumulator import BatchBuilder

from agent.app.agent import Agent
from agent.config.model import Config
from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.transaction import Transaction
from agent.delivery.sinks.kafka.sink import KafkaSink
from agent.delivery.sizes import RowsSummary
from agent.model.record import Vm
from agent.qmp.commands import AllowList
from agent.qmp.protocol import Event
from agent.session.event_handler import EventHandler

try:
    from agent.qmp.client import QmpClient
except ImportError:
    from agent.qmp.client import Client as QmpClient  # type: ignore[attr-defined, no-redef]  # its name in older versions

VMS: Final = 50
EVENTS_PER_VM: Final = 80
EVENT: Final = "JOB_STATUS_CHANGE"
ZSTD: Final = 4
BATCH_BYTES: Final = 1 << 20


class _Transport(asyncio.Transport):
    """A transport that discards what is written, and is never paused."""

    def __init__(self) -> None:
        super().__init__({})

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class EventPath:
    """The path of an event: from the monitor's bytes to the queue, into the journal, and into a Kafka batch that is discarded."""

    def __init__(self, directory: str) -> None:
        config = Config.model_validate(
            {
                "host": "hv1",
                "monitors": [{"dial": f"{directory}/*.qmp"}],
                "kafka": {"bootstrap_servers": ["127.0.0.1:1"]},
                "journal": {"directory": directory},
                "web": {"listen_address": "127.0.0.1:0"},
            }
        )
        assert config.kafka is not None
        self._agent = Agent(config)
        self._queue = self._agent.publisher.delivery.events
        self._sink = KafkaSink(config.kafka)
        self._handlers = []
        for number in range(VMS):
            uuid = f"5bd1a5a4-5c0f-4d54-9d0b-{number:012d}"
            handler = EventHandler(self._agent.observer)
            handler.set_vm_and_report_buffered(Vm("hv1", uuid, f"vm{number}", f"/run/qemu/{number}.qmp"))
            self._handlers.append(handler)
        self._clients = [_ready_client() for _ in range(VMS)]
        self._database = JournalDatabase(Path(directory) / "path.db")
        self._queue.journaling.on_opened(RowsSummary(), 0)
        gc.freeze()  # so that the collections between two measurements are short

    def measure(self) -> dict[str, float]:
        """Return the CPU of an event in nanoseconds: to read it, to publish it, to journal it (with its deletion), and to send it."""
        count = VMS * EVENTS_PER_VM
        # Without a time of QEMU, an event gets the time at which it is published. So no event is late, however busy the machine is.
        events = [Event(EVENT, {"id": f"job{number}", "status": "running"}, None) for number in range(count)]
        lines = [
            b'{"event": "%b", "data": {"id": "job%d", "status": "running"}}\r\n' % (EVENT.encode(), n)
            for n in range(count)
        ]
        chunks = [b"".join(lines[number::VMS]) for number in range(VMS)]
        gc.collect()
        gc.disable()
        started = time.process_time_ns()
        for client, chunk in zip(self._clients, chunks, strict=True):
            client.data_received(chunk)
        read = time.process_time_ns() - started
        started = time.process_time_ns()
        for number, event in enumerate(events):
            self._handlers[number % VMS].on_event(event)
        published = time.process_time_ns() - started
        journaled = self._commit()
        sent, latest_ms = 0, time.time_ns() // 1_000_000
        while self._queue.tail:
            started = time.process_time_ns()
            self._queue.take_from_memory(count, BATCH_BYTES // 2)
            batch = BatchBuilder(BATCH_BYTES, ZSTD)
            end, _ = self._sink._fill_batch(batch, self._queue.in_flight, 0, latest_ms, float("inf"))
            batch.close()
            batch._build()
            self._queue.ack()
            sent += time.process_time_ns() - started
            assert end, "no record fits into the batch"
        journaled += self._commit()
        gc.enable()
        return {"read": read / count, "publish": published / count, "journal": journaled / count, "send": sent / count}

    def _commit(self) -> int:
        """Insert the waiting records and delete the delivered ones in one transaction. Return the CPU in nanoseconds."""
        started = time.process_time_ns()
        transaction = Transaction([self._queue])
        transaction.delete_delivered()
        transaction.insert_waiting_records()
        self._database.commit(transaction.changes)
        transaction.report_committed()
        return time.process_time_ns() - started


def _ready_client() -> QmpClient:
    """Return a client after its negotiation, which discards events."""
    client = QmpClient(AllowList(), lambda _event: None)
    client.connection_made(_Transport())
    client.data_received(b'{"QMP": {"version": {}, "capabilities": []}}\r\n{"return": {}}\r\n')
    return client


async def _main() -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as directory:
        path = EventPath(directory)
        for _ in sys.stdin:
            print(json.dumps(path.measure()), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
