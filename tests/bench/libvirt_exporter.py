"""CPU of Debian's prometheus-libvirt-exporter and its libvirtd, and of this agent on the same domains."""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import orjson

from agent.cli.demo.images import MissingDependencyError
from tests.bench.process import cpu_seconds
from tests.bench.table import Row
from tests.lab.libvirt import MONITOR, Libvirtd, run_exporter
from tests.lab.machine import free_port

_START_SECONDS: Final = 60.0


class Intervals(NamedTuple):
    """Seconds between two polls of the agent, and between two scrapes."""

    poll: float
    scrape: float


async def libvirt_exporter(*, short: bool) -> list[Row]:
    """Return the rows at the shortest useful intervals, at which both poll as often as they are scraped."""
    domains, seconds = (10, 15.0) if short else (40, 40.0)
    return await compare(domains, seconds, Intervals(1.0, 1.0))


async def compare(domains: int, seconds: float, every: Intervals) -> list[Row]:
    """Return the rows: the CPU for one scrape of one domain, of all processes that take part in it."""
    try:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
            libvirtd = await stack.enter_async_context(Libvirtd(folder))
            monitors = folder / "qmp"
            monitors.mkdir()
            monitors.chmod(0o777)  # QEMU runs as a user of libvirt's
            for number in range(domains):
                name = f"vm{number}"
                await libvirtd.domain(name, extra=MONITOR.format(path=monitors / f"{name}.qmp"))
                await libvirtd.virsh("suspend", name)
            qemus, daemon = processes_of(str(monitors)), processes_of(str(folder / "libvirtd.conf"))
            assert len(qemus) == domains
            idle = await _spent([*qemus, *daemon], seconds)
            async with run_exporter(libvirtd) as (address, pid):
                theirs = await _scrape_cost(
                    address, {"exporter": [pid], "libvirtd": daemon, "QEMU": qemus}, seconds, domains, every.scrape
                )
            address, pid = await stack.enter_async_context(_agent(folder, f"{monitors}/*.qmp", every.poll))
            ours = await _scrape_cost(address, {"agent": [pid], "QEMU": qemus}, seconds, domains, every.scrape)
    except MissingDependencyError as error:
        return [Row("prometheus-libvirt-exporter and libvirtd", f"not measured: {error}")]
    # QEMU's and libvirtd's CPU without any scrape counts for neither.
    baseline = idle / seconds * every.scrape / domains * 1e6
    suffix = f", poll {every.poll:g} s, scrape {every.scrape:g} s" if every.poll != every.scrape else ""
    exporter_us, agent_us = sum(theirs.values()) - baseline, sum(ours.values()) - baseline
    return [
        Row(
            f"prometheus-libvirt-exporter, libvirtd and QEMU, one scrape of one of {domains} VMs{suffix}",
            f"{exporter_us:.0f} us ({_parts(theirs)})",
        ),
        Row(
            f"agent and QEMU, the same{suffix}",
            f"{agent_us:.0f} us ({_parts(ours)})",
            agent_us / exporter_us,
            "the exporter's",
            "≤ 0.15",
            agent_us <= exporter_us * 0.15,
        ),
    ]


@contextlib.asynccontextmanager
async def _agent(folder: Path, dial: str, poll: float) -> AsyncIterator[tuple[str, int]]:
    """Run the agent with a file as its sink; yield the address of its endpoint and its process id."""
    address, config = f"127.0.0.1:{free_port()}", folder / "agent.json"
    settings = {"monitors": [{"dial": dial}], "intervals": {"poll": poll}, "web": {"listen_address": address}}
    config.write_bytes(orjson.dumps(settings | {"jsonl": {"path": str(folder / "records.jsonl")}}))  # JSON is YAML too
    command = Path(sys.executable).parent / "qmp-agent"
    process = await asyncio.create_subprocess_exec(command, "run", "--config", config)
    try:
        yield address, process.pid
    finally:
        process.terminate()
        await process.wait()


def processes_of(text: str) -> list[int]:
    """Return the libvirtd and QEMU processes whose command line contains a text."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line and line.startswith(("libvirtd", "/usr/bin/qemu")):
                pids.append(int(entry.name))
    return pids


async def _spent(pids: list[int], seconds: float) -> float:
    before = cpu_seconds(pids)
    await asyncio.sleep(seconds)
    return cpu_seconds(pids) - before


async def _scrape_cost(
    address: str, parts: dict[str, list[int]], seconds: float, domains: int, interval: float
) -> dict[str, float]:
    """Scrape each `interval` for `seconds`; return the microseconds of CPU for one scrape of one domain, by part."""
    async with aiohttp.ClientSession() as session:

        async def scrape() -> None:
            async with session.get(f"http://{address}/metrics") as response:
                await response.read()

        async with asyncio.timeout(_START_SECONDS):
            while True:
                try:
                    await scrape()
                    break
                except aiohttp.ClientConnectionError:  # it does not listen yet
                    await asyncio.sleep(1)
        for _ in range(4):  # the first scrapes cost more
            await asyncio.sleep(interval)
            await scrape()
        before = {name: cpu_seconds(pids) for name, pids in parts.items()}
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            await scrape()
            count += 1
            await asyncio.sleep(max(0.0, begun + count * interval - time.monotonic()))
        return {name: (cpu_seconds(pids) - before[name]) / count / domains * 1e6 for name, pids in parts.items()}


def _parts(microseconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {each:.0f}" for name, each in microseconds.items())
