"""What is compared, each as a process of its own: `python -m tests.bench.roles ROLE FOLDER SECONDS`.

Each polls every monitor `FOLDER`/*.qmp with query-blockstats each so many seconds until it is ended:

- `floor`: uvloop and orjson, and nothing done with the answers: what any Python program pays that sends and parses these bytes.
- `qemu.qmp`: QEMU's own client library, answers read and dropped.
- `agent`: this agent with records, series, and Kafka's batches built, compressed and thrown away.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop
from aiokafka.producer.message_accumulator import BatchBuilder
from qemu.qmp import QMPClient

from agent.app import App
from agent.config import Config
from agent.delivery.entry import Entry

ZSTD = 4
"""Kafka's number for it."""


class Batches:
    """A sink that makes of records what goes to Kafka, and throws it away."""

    name = "nowhere"

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def send(self, batch: Sequence[Entry]) -> Sequence[Entry]:
        builder = BatchBuilder(1 << 20, ZSTD)
        for entry in batch:
            builder.append(timestamp=entry.time_ns // 1_000_000, key=entry.key.encode(), value=entry.body)
        builder.close()
        builder._build()
        return ()

    async def close(self) -> None:
        """Nothing was opened."""


async def agent(folder: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as state:
        config = Config.model_validate(
            {
                "monitors": [{"dial": f"{folder}/*.qmp"}],
                "prometheus": {"listen": "127.0.0.1:0"},
                "intervals": {"poll": seconds},
                "kafka": {"servers": ["127.0.0.1:1"]},  # as if; the sink is ours
                "journal": {"folder": state},
            }
        )
        async with App(config, Batches()).running():
            await asyncio.Event().wait()


class _Floor(asyncio.Protocol):
    """The least that polls: negotiates, asks, parses each line."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left = b""

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
            orjson.loads(line)


def _sockets(folder: Path) -> list[Path]:
    return list(folder.glob("*.qmp"))


async def floor(folder: Path, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    for path in _sockets(folder):
        await loop.create_unix_connection(lambda: _Floor(seconds), str(path))
    await asyncio.Event().wait()


async def qemu_qmp(folder: Path, seconds: float) -> None:
    async def poll(path: Path) -> None:
        client = QMPClient()
        await client.connect(str(path))
        await asyncio.sleep(seconds * random.random())
        while True:
            await client.execute("query-blockstats")
            await asyncio.sleep(seconds)

    await asyncio.gather(*(poll(path) for path in _sockets(folder)))


ROLES: dict[str, Any] = {"floor": floor, "qemu.qmp": qemu_qmp, "agent": agent}

if __name__ == "__main__":
    uvloop.run(ROLES[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3])))
