"""A node of KubeVirt: many libvirts in namespaces of their own, each with one domain, under one entry `libvirt: auto`.

The guests are paused. Otherwise emulated guests take all CPUs of a small machine, and domains cannot start at one a second.
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, Final

from agent.cli.demo.images import MissingDependencyError
from tests.bench.process import cpu_seconds, resident_bytes
from tests.bench.table import Row
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.waiting import until

POLL_SECONDS: Final = 1.0
POLLS_PER_DOMAIN: Final = 20
"""Polls of each domain over which the CPU is measured, on average."""
LIVE: Final = 0.25
"""Share of the libvirts that have a domain at a time."""


@dataclass(slots=True)
class Churn:
    """Domains that started and ended.

    Attributes:
        started: when `virsh create` returned, in seconds since the epoch, by UUID.
        threads: number of the agent's threads, once a second.
        memory: the agent's resident memory in bytes, once a second.
    """

    started: dict[str, float] = field(default_factory=dict)
    threads: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


async def kubevirt_node(*, short: bool) -> list[Row]:
    """Return the rows."""
    count, hung, seconds = (6, 1, 20.0) if short else (40, 10, 600.0)
    try:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
            folder.chmod(0o755)  # noqa: ASYNC240 - the test's own; QEMU runs as a user of libvirt's
            libvirts = [await _start_libvirt(stack, folder / f"pod{number}") for number in range(count)]
            agent = await stack.enter_async_context(_agent(folder, libvirts))
            await until(lambda: "libvirt auto: up" in agent.log, 600)
            for libvirt in libvirts[:hung]:
                await libvirt.send_signal(SIGSTOP)
            churn = await _churn(agent, libvirts[hung:], seconds)
            for libvirt in libvirts[:hung]:
                await libvirt.send_signal(SIGCONT)
            rows = _churn_rows(agent, churn, count, hung, seconds)
            # Ten minutes of results are kept if the machine is too busy for the rest.
            try:
                rows.append(await _cpu_row(folder, libvirts[hung:]))
            except TimeoutError as error:
                rows.append(Row("the agent's CPU for a poll of a domain", f"not measured: {error}"))
            return rows
    except MissingDependencyError as error:
        return [Row("libvirts in namespaces of their own", f"not measured: {error}")]


def _agent(folder: Path, libvirts: list[Libvirtd], name: str = "agent") -> AgentProcess:
    entry = {"libvirt": "auto", "containers": [libvirt.container for libvirt in libvirts]}
    return AgentProcess(
        folder, {"monitors": [entry], "intervals": {"poll": f"{POLL_SECONDS:g}s"}}, name=name, is_forked=False
    )


async def _start_libvirt(stack: AsyncExitStack, folder: Path) -> Libvirtd:
    folder.mkdir()  # noqa: ASYNC240 - the test's own
    return await stack.enter_async_context(Libvirtd(folder))


async def _churn(agent: AgentProcess, libvirts: list[Libvirtd], seconds: float) -> Churn:
    """Start a domain each second, each in the next libvirt, and end the oldest so that a share of the libvirts has one."""
    churn, live, numbers = Churn(), deque[tuple[Libvirtd, Domain]](), itertools.count()
    end = time.monotonic() + seconds
    assert agent.process is not None
    while (now := time.monotonic()) < end:
        number = next(numbers)
        libvirt = libvirts[number % len(libvirts)]
        domain = await libvirt.domain(f"shop_vm-{number}", paused=True)
        churn.started[domain.uuid] = time.time()
        live.append((libvirt, domain))
        if len(live) > max(1, len(libvirts) * LIVE):
            ended, oldest = live.popleft()
            await ended.virsh("destroy", oldest.name)
        churn.memory.append(resident_bytes(agent.process.pid))
        churn.threads.append(len(list(Path(f"/proc/{agent.process.pid}/task").iterdir())))  # noqa: ASYNC240 - /proc
        await asyncio.sleep(max(0.0, now + 1 - time.monotonic()))
    for libvirt, domain in live:
        await libvirt.virsh("destroy", domain.name)
    return churn


def _churn_rows(agent: AgentProcess, churn: Churn, count: int, hung: int, seconds: float) -> list[Row]:
    attached: dict[str, float] = {}
    for record in agent.find_records("vm.attached"):
        attached.setdefault(record["vmuuid"], _seconds(record))
    delays = sorted(max(0.0, attached[uuid] - at) for uuid, at in churn.started.items() if uuid in attached)
    missed = len(churn.started) - len(delays)
    fifth = max(1, len(churn.memory) // 5)
    memory = [statistics.median(part) / 2**20 for part in (churn.memory[fifth : 2 * fifth], churn.memory[-fifth:])]
    threads = [max(part) for part in (churn.threads[fifth : 2 * fifth], churn.threads[-fifth:])]
    p99 = delays[int(len(delays) * 0.99)] if delays else float("inf")
    what = (
        f"{count} libvirts in their own namespaces, {hung} of them hung, {len(churn.started)} domains in {seconds:g} s"
    )
    return [
        Row(f"{what}: not attached", f"{missed}", target="0", met=missed == 0),
        Row("start of a domain to attached, median", f"{statistics.median(delays) * 1e3:.0f} ms" if delays else "-"),
        Row(
            "start of a domain to attached, 99th percentile",
            f"{p99 * 1e3:.0f} ms",
            target="<= 1 s",
            met=p99 <= 1,
        ),
        Row("memory, second fifth and last fifth", f"{memory[0]:.1f} and {memory[1]:.1f} MiB"),
        Row("threads, most in the second fifth and in the last fifth", f"{threads[0]} and {threads[1]}"),
    ]


async def _cpu_row(folder: Path, libvirts: list[Libvirtd]) -> Row:
    """Return the CPU for a domain in a libvirt of its own, beside the same number of domains in one libvirt."""
    libvirts = libvirts[:10]
    together = await _cpu(folder, libvirts[:1], len(libvirts), "together")
    apart = await _cpu(folder, libvirts, 1, "apart")
    return Row(
        f"the agent's CPU for a poll of one of {len(libvirts)} domains, each in a libvirt of its own",
        f"{apart * 1e6:.0f} us",
        apart / together,
        "all in one libvirt",
    )


async def _cpu(folder: Path, libvirts: list[Libvirtd], domains_each: int, name: str) -> float:
    """Return the agent's CPU seconds for one poll of one domain."""
    started = [
        (libvirt, await libvirt.domain(f"{name}-{n}", paused=True)) for libvirt in libvirts for n in range(domains_each)
    ]
    async with _agent(folder, libvirts, name) as agent:
        assert agent.process is not None
        await until(lambda: len([*agent.find_records("vm.attached")]) == len(started), 120)
        await agent.wait_for_record("sample.block", since=agent.mark())
        mark, spent = agent.mark(), cpu_seconds([agent.process.pid])
        polls = 0

        def are_enough() -> bool:
            nonlocal polls
            records = agent.find_records("sample.block", since=mark)
            polls = sum(record["data"]["device"] == "virtio-disk1" for record in records)
            return polls >= POLLS_PER_DOMAIN * len(started)

        await until(are_enough, 600)
        spent = cpu_seconds([agent.process.pid]) - spent
    for libvirt, domain in started:
        await libvirt.virsh("destroy", domain.name)
    return float(spent / polls)


def _seconds(record: dict[str, Any]) -> float:
    """Return a record's time in seconds since the epoch."""
    return datetime.fromisoformat(record["time"]).timestamp()
