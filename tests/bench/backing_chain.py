"""Write rate of a guest on a backing chain of 215 layers, on a QEMU without `flat`: with the agent, and without.

QEMU before 5.0 repeats each node's backing chain in its reply to query-named-block-nodes: 17 MB for 215 layers, which the agent does not
read. A proxy makes the machine's QEMU such a QEMU: its greeting has version 4.2, and `flat` is an unknown argument.
"""

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import FAST_PAUSE_SECONDS, Guest, GuestKind, GuestOptions
from tests.bench.table import Row
from tests.lab.agent_process import AgentProcess
from tests.lab.thin_guests import run

LAYERS: Final = 215
SIZE: Final = "64M"
WARM_UP_SECONDS: Final = 5.0
_VERSION: Final = re.compile(rb'"version": \{"qemu": \{[^}]*\}')
_OLD_VERSION: Final = b'"version": {"qemu": {"micro": 0, "minor": 2, "major": 4}'
_READ_BYTES: Final = 1 << 16
_MAX_REPLY_BYTES: Final = 1 << 26


class ChainGuest(Guest):
    """A guest that writes to the top of a backing chain of `LAYERS` images."""

    async def _disk0_storage(self) -> Mapping[str, Any]:
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
        answering_seconds: Time in which a request had no reply yet.
    """

    def __init__(self, path: Path, monitor: Path) -> None:
        self.path = path
        self.commands: list[str] = []
        self.connections = 0
        self.answering_seconds = 0.0
        self._asked_at: float | None = None
        self._due = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._monitor = monitor

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the `with` block runs."""
        server = await asyncio.start_unix_server(self._serve, self.path)
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        qemu_reader, qemu_writer = await asyncio.open_unix_connection(self._monitor, limit=_MAX_REPLY_BYTES)
        greeting = await qemu_reader.readuntil(b"\r\n")
        assert _VERSION.search(greeting), greeting
        writer.write(_VERSION.sub(_OLD_VERSION, greeting))
        tasks = [
            asyncio.create_task(self._pass_requests(reader, qemu_writer)),
            asyncio.create_task(self._pass_replies(qemu_reader, writer)),
        ]
        self._tasks += tasks
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
            commands = re.findall(r'"execute": ?"([\w-]+)"', data.decode())
            self.commands += commands
            if commands and not self._due:
                self._asked_at = time.monotonic()
            self._due += len(commands)
            writer.write(data)

    async def _pass_replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                data = await reader.readuntil(b"\r\n")
            except asyncio.IncompleteReadError:
                return
            writer.write(data)
            if self._due and not data.startswith(b'{"timestamp"'):
                self._due -= 1
                if not self._due and self._asked_at is not None:
                    self.answering_seconds += time.monotonic() - self._asked_at

    def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()


async def write_rate(guest: Guest, seconds: float) -> float:
    """Return the guest's writes per second over this time."""
    begun, before = time.monotonic(), await guest.count_writes()
    await asyncio.sleep(seconds)
    return (await guest.count_writes() - before) / (time.monotonic() - begun)


async def backing_chain(*, short: bool) -> list[Row]:
    """Return the rows. The agent runs all the time; the VM's monitor exists in the middle of each round only."""
    seconds, rounds = (60.0, 2) if short else (60.0, 6)
    with_agent = without = answering = 0.0
    detached = 0
    proxies: list[OldQemuProxy] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        options = GuestOptions(kind=GuestKind.WRITER, span_mib=4, pause_seconds=FAST_PAUSE_SECONDS)
        guest = await stack.enter_async_context(ChainGuest(folder, "vm1", options))
        agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/old*.qmp"}]}, is_forked=False)
        await stack.enter_async_context(agent)
        await guest.wait_until_booted()
        await asyncio.sleep(WARM_UP_SECONDS)  # the first pass over the disk allocates clusters
        for number in range(rounds):
            without += await write_rate(guest, seconds / 2)
            proxies.append(proxy := OldQemuProxy(folder / f"old{number}.qmp", guest.monitor))
            async with proxy.running():
                mark = agent.mark()
                with_agent += 2 * await write_rate(guest, seconds)
                answering += proxy.answering_seconds
                detached += sum(1 for kind in ("vm.gone", "vm.detached") for _ in agent.find_records(kind, since=mark))
                proxy.close()
            without += await write_rate(guest, seconds / 2)
    ratio, share = with_agent / without, answering / (rounds * seconds)
    connections, listings = (
        sum(proxy.connections for proxy in proxies),
        sum(proxy.commands.count("query-named-block-nodes") for proxy in proxies),
    )
    return [
        Row(
            f"writes of a guest on {LAYERS} layers, QEMU without `flat`, from the attach on",
            f"{with_agent / 2 / rounds:.0f} /s",
            ratio,
            "without a monitor",
            "≥ 0.95",
            ratio >= 0.95,
        ),
        Row(
            "time in which its QEMU had a request to answer",
            f"{share:.1%} of {seconds:.0f} s from the attach on",
            target="≤ 5 %",
            met=share <= 0.05,
        ),
        Row(
            "connections, and requests for all nodes",
            f"{connections} in {rounds} rounds, {detached} lost; {listings} requests",
            target="one a round, 0",
            met=(connections, detached, listings) == (rounds, 0, 0),
        ),
    ]
