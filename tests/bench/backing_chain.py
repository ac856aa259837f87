"""Write rate of a guest on a backing chain of 215 layers, on a QEMU without `flat`: with the agent, and without.

QEMU before 5.0 repeats each node's backing chain in its reply to query-named-block-nodes: 17 MB for 215 layers, which the agent does not
read. A proxy makes the machine's QEMU such a QEMU: its greeting has version 4.2, and `flat` is an unknown argument.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.bench.table import Row
from tests.lab.agent_process import AgentProcess
from tests.lab.thin_guests import run

LAYERS: Final = 215
SIZE: Final = "64M"
WARM_UP_SECONDS: Final = 5.0
_VERSION: Final = re.compile(rb'"version": \{"qemu": \{[^}]*\}')
_OLD_VERSION: Final = b'"version": {"qemu": {"micro": 0, "minor": 2, "major": 4}'
_READ_BYTES: Final = 1 << 16


class ChainGuest(Guest):
    """A guest that writes to the top of a backing chain of `LAYERS` images."""

    async def _storage(self) -> Mapping[str, Any]:
        images = [self.folder / f"layer{number}.qcow2" for number in range(LAYERS)]
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(images[0]), SIZE)
        for below, image in itertools.pairwise(images):
            await run(
                "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(below), "-F", "qcow2", str(image), SIZE
            )
        return {"driver": "file", "filename": os.fspath(images[-1])}


class OldQemuProxy:
    """A monitor in front of a real one that behaves like a QEMU before 5.0.

    Attributes:
        commands: The names of the commands that it passed on, oldest first.
        connections: The number of connections.
    """

    def __init__(self, path: Path, monitor: Path) -> None:
        self.path = path
        self.commands: list[str] = []
        self.connections = 0
        self._monitor = monitor

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        server = await asyncio.start_unix_server(self._serve, self.path)
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        qemu_reader, qemu_writer = await asyncio.open_unix_connection(self._monitor)
        greeting = await qemu_reader.readuntil(b"\r\n")
        assert _VERSION.search(greeting), greeting
        writer.write(_VERSION.sub(_OLD_VERSION, greeting))
        tasks = [
            asyncio.create_task(self._pass_requests(reader, qemu_writer)),
            asyncio.create_task(_pass_replies(qemu_reader, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.close()
            qemu_writer.close()

    async def _pass_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            assert b'"flat"' not in data, "QEMU before 5.0 refuses `flat`"
            self.commands += re.findall(r'"execute": ?"([\w-]+)"', data.decode())
            writer.write(data)


async def _pass_replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()


async def write_rate(guest: Guest, seconds: float) -> float:
    """Return the guest's writes per second over this time."""
    begun, before = time.monotonic(), await guest.writes()
    await asyncio.sleep(seconds)
    return (await guest.writes() - before) / (time.monotonic() - begun)


async def backing_chain(*, short: bool) -> list[Row]:
    """Return the rows."""
    seconds, rounds = (30.0, 2) if short else (75.0, 3)
    without: list[float] = []
    ratios: list[float] = []
    lost = 0
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        options = GuestOptions(kind=GuestKind.WRITER, span_mib=4)
        guest = await stack.enter_async_context(ChainGuest(folder, "vm1", options))
        proxy = OldQemuProxy(folder / "old.qmp", guest.monitor)
        await stack.enter_async_context(proxy.running())
        await guest.booted()
        await asyncio.sleep(WARM_UP_SECONDS)  # the first pass over the disk allocates clusters
        for number in range(rounds):
            before = await write_rate(guest, seconds / 2)
            name = f"agent{number}"
            async with AgentProcess(folder, {"monitors": [{"dial": str(proxy.path)}]}, name=name) as agent:
                during = await write_rate(guest, seconds)
                lost += len([*agent.find_records("vm.detached")]) + len([*agent.find_records("vm.gone")])
                attached = len([*agent.find_records("vm.attached")])
            after = await write_rate(guest, seconds / 2)
            without.append((before + after) / 2)
            ratios.append(during / without[-1])
            lost += attached - 1
    listings = proxy.commands.count("query-named-block-nodes")
    ratio = statistics.median(ratios)
    figures = json.dumps([round(ratio, 3) for ratio in ratios])
    return [
        Row(
            f"writes of a guest on {LAYERS} layers, QEMU without `flat`, agent attached",
            f"{ratio * statistics.median(without):.0f} /s; rounds {figures}",
            ratio,
            "without the agent",
            "≥ 0.95",
            ratio >= 0.95,
        ),
        Row(
            "connections lost meanwhile",
            f"{lost} of {proxy.connections}; {listings} requests for all nodes",
            target="0",
            met=lost == 0 and proxy.connections == rounds,
        ),
    ]
