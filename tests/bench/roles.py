"""What is compared, each as a process of its own: `python -m tests.bench.roles ROLE FOLDER SECONDS [SERVERS]`.

Each is at every monitor `FOLDER`/*.qmp. Three poll query-blockstats each so many seconds until they are ended:

- `floor`: what any Python program pays that does the same: uvloop, orjson, two records of an answer, a Kafka batch of them four times a
  second, built, compressed and thrown away. It checks nothing, keeps nothing and knows no failure.
- `qemu.qmp`: QEMU's own client library, answers read and dropped.
- `agent`: this agent, its batches thrown away too.

Two deliver events to a real Kafka, and at SIGTERM say how many, and how long each took from the event's own time to its acknowledgement:

- `telling`: this agent, journal and all.
- `bare`: the same events by a protocol that parses them and aiokafka's producer, one message each, nothing kept.
"""

import asyncio
import json
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
from agent.config.model import Config
from agent.delivery.sinks.base import Sink
from agent.model.record import EncodedRecord
from agent.runtime.gc import scheduled_collection

ZSTD = 4
"""Kafka's number for it."""
EVENT = "qemu.event.job_status_change"
TOPIC = "qemu.events"


def _sockets(folder: Path) -> list[Path]:
    return list(folder.glob("*.qmp"))


class Batch:
    """What goes to Kafka in one request, thrown away."""

    def __init__(self) -> None:
        self._builder = BatchBuilder(1 << 20, ZSTD)

    def add(self, time_ns: int, key: bytes, value: bytes) -> None:
        self._builder.append(timestamp=time_ns // 1_000_000, key=key, value=value)

    def build(self) -> None:
        self._builder.close()
        self._builder._build()


# Those that poll.


class Nowhere:
    """A sink that makes of records what goes to Kafka."""

    name = "nowhere"

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        made = Batch()
        for entry in batch:
            made.add(entry.time_ns, entry.key.encode(), entry.body)
        made.build()
        return ()

    async def close(self) -> None:
        """Nothing was opened."""


def _config(folder: Path, seconds: float, state: str, servers: str) -> Config:
    return Config.model_validate(
        {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "web": {"listen_address": "127.0.0.1:0"},
            "intervals": {"poll": seconds},
            "log": {"level": "error"},
            "kafka": {"bootstrap_servers": [servers], "create_topics": {"partitions": 4}},
            "journal": {"directory": state},
        }
    )


async def agent(folder: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, "127.0.0.1:1")  # as if: the sink is ours
        with scheduled_collection():
            async with Agent(config, Nowhere()).running():
                await asyncio.Event().wait()


class _Floor(asyncio.Protocol):
    def __init__(self, seconds: float, made: list[tuple[int, bytes]]) -> None:
        self._seconds = seconds
        self._left = b""
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(b'{"execute":"qmp_capabilities"}')
        asyncio.get_running_loop().call_later(1 + self._seconds * random.random(), self._ask)

    def _ask(self) -> None:
        self._transport.write(b'{"execute":"query-blockstats"}')
        asyncio.get_running_loop().call_later(self._seconds, self._ask)

    def data_received(self, data: bytes) -> None:
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            answer = orjson.loads(line).get("return")
            for disk in answer if isinstance(answer, list) else ():
                self._made.append((time.time_ns(), orjson.dumps(disk["stats"])))


async def floor(folder: Path, seconds: float) -> None:
    loop, made = asyncio.get_running_loop(), list[tuple[int, bytes]]()
    for path in _sockets(folder):
        await loop.create_unix_connection(partial(_Floor, seconds, made), str(path))
    while True:
        await asyncio.sleep(0.25)
        batch = Batch()
        for time_ns, value in made:
            batch.add(time_ns, b"5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", value)
        batch.build()
        made.clear()


async def qemu_qmp(folder: Path, seconds: float) -> None:
    from qemu.qmp import QMPClient  # noqa: PLC0415 - the agent's memory is measured without it

    async def poll(path: Path) -> None:
        client = QMPClient()
        await client.connect(str(path))
        await asyncio.sleep(seconds * random.random())
        while True:
            await client.execute("query-blockstats")
            await asyncio.sleep(seconds)

    await asyncio.gather(*(poll(path) for path in _sockets(folder)))


# Those that deliver.


async def _until_ended(milliseconds: list[float]) -> None:
    """Wait for SIGTERM, and say what was measured."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    print(json.dumps(milliseconds), flush=True)


class Timed:
    """A sink that takes the time of another's acknowledgements, and says in a file how many there were."""

    def __init__(self, to: Sink, count: Path) -> None:
        self.name = to.name
        self.milliseconds: list[float] = []
        self._to = to
        self._count = count

    async def open(self) -> None:
        await self._to.open()

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        refused = await self._to.send(batch)
        now = time.time_ns()
        self.milliseconds += [(now - entry.time_ns) / 1e6 for entry in batch if entry.type == EVENT]
        self._count.write_text(str(len(self.milliseconds)))
        return refused

    async def close(self) -> None:
        await self._to.close()


async def telling(folder: Path, seconds: float, servers: str) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = _config(folder, seconds, state, servers)
        timed = Timed(build_sink(config), folder / "delivered")
        with scheduled_collection():
            async with Agent(config, timed).running():
                await _until_ended(timed.milliseconds)


class _Bare(asyncio.Protocol):
    def __init__(self, tell: Callable[[bytes, int], None]) -> None:
        self._tell = tell
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b'{"execute":"qmp_capabilities"}')

    def data_received(self, data: bytes) -> None:
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            message = orjson.loads(line)
            if "event" in message:
                stamp = message["timestamp"]
                self._tell(orjson.dumps(message), stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000)


async def bare(folder: Path, _seconds: float, servers: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, compression_type="zstd")
    milliseconds: list[float] = []
    under_way: set[asyncio.Task[None]] = set()

    async def send(value: bytes, time_ns: int) -> None:
        await producer.send_and_wait(TOPIC, value, key=value[:16])
        milliseconds.append((time.time_ns() - time_ns) / 1e6)

    def tell(value: bytes, time_ns: int) -> None:
        task = asyncio.ensure_future(send(value, time_ns))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async with producer:
        for path in _sockets(folder):
            await asyncio.get_running_loop().create_unix_connection(lambda: _Bare(tell), str(path))
        await _until_ended(milliseconds)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "floor": floor,
    "qemu.qmp": qemu_qmp,
    "agent": agent,
    "telling": telling,
    "bare": bare,
}

if __name__ == "__main__":
    uvloop.run(ROLES[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
