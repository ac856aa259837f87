"""Programs that the benchmark compares, as processes: `python -m tests.bench.roles ROLE FOLDER SECONDS [SERVERS]`.

Each role connects to every monitor `FOLDER`/*.qmp. They poll query-blockstats every SECONDS until they are killed:

- `floor`: the least that a Python program needs for the same work: uvloop, orjson, two records for each reply, and a Kafka batch of them
  four times a second, built, compressed and discarded. It checks nothing, keeps nothing and handles no failure.
- `qemu.qmp`: QEMU's own client library; replies are read and dropped.
- `agent`: this agent; its batches are discarded too.
- `agent-watched`: the same, with the longest block of its event loop at SIGTERM.

Two also read the kernel's files about each monitor's process, and print the CPU seconds of their parts at SIGTERM:

- `floor-day`: the floor, which keeps the files open, reads each at each poll, and makes a record of each process and thread.
- `agent-day`: this agent, with an endpoint to scrape.

Two deliver events to a real Kafka. At SIGTERM they print the latency of each event, from its timestamp to its acknowledgement:

- `agent-kafka`: this agent, with its journal.
- `aiokafka`: a protocol that parses the events, and aiokafka's producer with one message for each; nothing is kept.
"""

import asyncio
import gzip
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from agent.app.agent import Agent
from agent.app.builders import build_sink
from agent.common.unix_peer import peer_pid
from agent.config.model import Config
from agent.delivery.sinks.base import Sink
from agent.delivery.sinks.kafka.message import StructuredMessageEncoder
from agent.http import handlers
from agent.model.record import EncodedRecord
from agent.qmp.client import QmpClient
from agent.runtime.gc import scheduled_garbage_collection
from agent.session.callback_polls import CallbackPolls
from agent.session.host_process import HostProcess
from agent.session.poller import Poller
from tests.bench.shares import Shares

ZSTD = 4
"""Kafka's number of the codec."""
EVENT = "qemu.event.job_status_change"
TOPIC = "qemu.events"


def _sockets(folder: Path) -> list[Path]:
    return list(folder.glob("*.qmp"))


class Batch:
    """A Kafka batch that is built and discarded."""

    def __init__(self) -> None:
        self._builder = BatchBuilder(1 << 20, ZSTD)

    def add(self, time_ns: int, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self._builder.append(timestamp=time_ns // 1_000_000, key=key, value=value, headers=headers or [])

    def build(self) -> None:
        self._builder.close()
        self._builder._build()


# --- Roles that poll ---


class DiscardingSink:
    """A sink that builds Kafka batches and discards them."""

    name = "discarding"

    def __init__(self) -> None:
        self._encode = StructuredMessageEncoder()

    async def open(self) -> None:
        """Do nothing: it needs no connection."""

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        discarded = Batch()
        for entry in batch:
            discarded.add(entry.time_ns, *self._encode(entry))
        discarded.build()
        return ()

    async def close(self) -> None:
        """Do nothing."""


def _config(folder: Path, seconds: float, state: str, servers: str, port: str = "0") -> Config:
    return Config.model_validate(
        {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "web": {"listen_address": f"127.0.0.1:{port}"},
            "intervals": {"poll": seconds},
            "log": {"level": "error"},
            "kafka": {"bootstrap_servers": [servers], "create_topics": {"partitions": 4}},
            "journal": {"directory": state},
        }
    )


async def agent(folder: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, "127.0.0.1:1")  # not used: the sink is replaced
        with scheduled_garbage_collection():
            async with Agent(config, DiscardingSink()).run_in_background():
                await asyncio.Event().wait()


async def agent_day(folder: Path, seconds: float, port: str, measure_shares: str) -> None:
    shares = Shares()
    if measure_shares == "yes":
        shares.wrap(HostProcess, "read_files", "kernel files: reading")
        shares.wrap(Poller, "poll_host", "kernel files: parsing, samples, records")
        for name in ("poll", "callback_batch", "on_replies"):
            shares.wrap(Poller, name, "polls")
        shares.wrap(CallbackPolls, "on_wake", "polls")
        shares.wrap(QmpClient, "data_received", "polls")
        shares.wrap(handlers._RequestHandlers, "metrics", "scrape")
        shares.wrap(DiscardingSink, "send", "sink")
        shares.wrap_in_thread(gzip, "compress", "gzip")
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, "127.0.0.1:1", port)
        with scheduled_garbage_collection():
            async with Agent(config, DiscardingSink()).run_in_background():
                await _wait_and_print_shares(shares)


async def _wait_and_print_shares(shares: Shares) -> None:
    """Start to count at SIGUSR1; print the CPU seconds by part at SIGTERM."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, shares.reset)
    await _terminated()
    print(json.dumps(shares.seconds), flush=True)


class LoopWatch:
    """The longest time for which the event loop ran one thing without a pause.

    It counts CPU time of the loop's thread and not the time of day, so that other processes on the machine do not count.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    def reset(self) -> None:
        """Start to measure."""
        self.longest = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.thread_time() - before)


async def agent_watched(folder: Path, seconds: float, port: str) -> None:
    """Poll; at SIGTERM, print the longest block of the event loop since SIGUSR1 in milliseconds of CPU, and the delivered records."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        sink, watch = DiscardingSink(), LoopWatch()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watch.reset)
        with scheduled_garbage_collection():
            async with Agent(_config(folder, seconds, state, "127.0.0.1:1", port), sink).run_in_background():
                watching = asyncio.create_task(watch.run())
                await _terminated()
                watching.cancel()
                print(json.dumps({"longest_ms": watch.longest * 1000}), flush=True)


class TimedDiscardingSink(DiscardingSink):
    """A discarding sink that records the latency of events."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: list[float] = []

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        now = time.time_ns()
        self.milliseconds += [(now - entry.time_ns) / 1e6 for entry in batch if entry.type == EVENT]
        return await super().send(batch)


async def agent_guests(folder: Path, seconds: float, guest_seconds: str) -> None:
    """Poll, and query the guest agents at FOLDER/*.qga each `guest_seconds`; 0 queries none."""
    names = ("filesystems", "load", "cpu", "disks", "network", "users", "os", "clock", "freeze")
    guest_agent = {
        "enabled": float(guest_seconds) > 0,
        "channels": [{"socket": f"{folder}/{{monitor}}.qga"}],
        "timeout": 5.0,
        "max_retry_delay": 10.0,
        "intervals": dict.fromkeys(names, float(guest_seconds)),
    }
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, "127.0.0.1:1")
        sink = TimedDiscardingSink()
        with scheduled_garbage_collection():
            config = Config.model_validate(config.model_dump() | {"guest_agent": guest_agent})
            async with Agent(config, sink).run_in_background():
                await _wait_and_print(sink.milliseconds)


class _Floor(asyncio.Protocol):
    def __init__(self, seconds: float, records: list[tuple[int, bytes]]) -> None:
        self._seconds = seconds
        self._rest = b""
        self._records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(b'{"execute":"qmp_capabilities"}')
        asyncio.get_running_loop().call_later(1 + self._seconds * random.random(), self._poll)

    def _poll(self) -> None:
        self._transport.write(b'{"execute":"query-blockstats"}')
        asyncio.get_running_loop().call_later(self._seconds, self._poll)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reply = orjson.loads(line).get("return")
            for disk in reply if isinstance(reply, list) else ():
                self._records.append((time.time_ns(), orjson.dumps(disk["stats"])))


async def floor(folder: Path, seconds: float) -> None:
    loop, records = asyncio.get_running_loop(), list[tuple[int, bytes]]()
    for path in _sockets(folder):
        await loop.create_unix_connection(partial(_Floor, seconds, records), str(path))
    await _send_batches(records)


async def _send_batches(records: list[tuple[int, bytes]]) -> None:
    while True:
        await asyncio.sleep(0.25)
        batch = Batch()
        for time_ns, value in records:
            batch.add(time_ns, b"5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", value)
        batch.build()
        records.clear()


class _DayFloor(_Floor):
    """The floor, with the files of the process that owns the socket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        pid = peer_pid(transport)
        tasks = [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task") if task != str(pid)]  # noqa: PTH208 - read once
        groups = [[f"/proc/{pid}/{name}" for name in ("stat", "schedstat", "status", "io")]]
        groups += [[f"{task}/{name}" for name in ("stat", "schedstat")] for task in tasks]
        self._files = [[os.open(path, os.O_RDONLY) for path in group] for group in groups]

    def _poll(self) -> None:
        super()._poll()
        for group in self._files:
            texts = [os.pread(descriptor, 4096, 0) for descriptor in group]
            numbers = [int(word) for text in texts for word in text.split() if word.isdigit()]
            self._records.append((time.time_ns(), orjson.dumps(numbers)))


async def floor_day(folder: Path, seconds: float) -> None:
    loop, records = asyncio.get_running_loop(), list[tuple[int, bytes]]()
    for path in _sockets(folder):
        await loop.create_unix_connection(partial(_DayFloor, seconds, records), str(path))
    sending = asyncio.create_task(_send_batches(records))
    await _wait_and_print_shares(Shares())
    sending.cancel()


async def qemu_qmp(folder: Path, seconds: float) -> None:
    from qemu.qmp import QMPClient  # noqa: PLC0415 - the agent's memory is measured without this import

    async def poll(path: Path) -> None:
        client = QMPClient()
        await client.connect(str(path))
        await asyncio.sleep(seconds * random.random())
        while True:
            await client.execute("query-blockstats")
            await asyncio.sleep(seconds)

    await asyncio.gather(*(poll(path) for path in _sockets(folder)))


# --- Roles that deliver ---


async def _terminated() -> None:
    """Wait for SIGTERM."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await terminated.wait()


async def _wait_and_print(milliseconds: list[float]) -> None:
    """Wait for SIGTERM and print the latencies."""
    await _terminated()
    print(json.dumps(milliseconds), flush=True)


class TimedEventSink:
    """A sink that records the latency of another sink's events, and writes their number to a file."""

    def __init__(self, sink: Sink, counter: Path) -> None:
        self.name = sink.name
        self.milliseconds: list[float] = []
        self._sink = sink
        self._counter = counter

    async def open(self) -> None:
        await self._sink.open()

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        refused = await self._sink.send(batch)
        now = time.time_ns()
        self.milliseconds += [(now - entry.time_ns) / 1e6 for entry in batch if entry.type == EVENT]
        self._counter.write_text(str(len(self.milliseconds)))
        return refused

    async def close(self) -> None:
        await self._sink.close()


async def agent_kafka(folder: Path, seconds: float, servers: str) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, servers)
        sink = TimedEventSink(build_sink(config), folder / "delivered")
        with scheduled_garbage_collection():
            async with Agent(config, sink).run_in_background():
                await _wait_and_print(sink.milliseconds)


class _EventParser(asyncio.Protocol):
    def __init__(self, on_event: Callable[[bytes, int], None]) -> None:
        self._on_event = on_event
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b'{"execute":"qmp_capabilities"}')

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = orjson.loads(line)
            if "event" in message:
                stamp = message["timestamp"]
                self._on_event(orjson.dumps(message), stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000)


async def bare_aiokafka(folder: Path, _seconds: float, servers: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, compression_type="zstd")
    milliseconds: list[float] = []
    in_flight: set[asyncio.Task[None]] = set()

    async def send(value: bytes, time_ns: int) -> None:
        await producer.send_and_wait(TOPIC, value, key=value[:16])
        milliseconds.append((time.time_ns() - time_ns) / 1e6)

    def start_sending(value: bytes, time_ns: int) -> None:
        task = asyncio.ensure_future(send(value, time_ns))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)

    async with producer:
        for path in _sockets(folder):
            await asyncio.get_running_loop().create_unix_connection(lambda: _EventParser(start_sending), str(path))
        await _wait_and_print(milliseconds)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "floor": floor,
    "qemu.qmp": qemu_qmp,
    "agent": agent,
    "floor-day": floor_day,
    "agent-day": agent_day,
    "agent-watched": agent_watched,
    "agent-guests": agent_guests,
    "agent-kafka": agent_kafka,
    "aiokafka": bare_aiokafka,
}

if __name__ == "__main__":
    uvloop.run(ROLES[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
