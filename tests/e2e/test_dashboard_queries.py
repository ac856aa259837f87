"""Every query of every dashboard, asked of a real Prometheus that scrapes a real agent with real guests at work, finds something."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from agent.cli.demo.guest import Guest, GuestKind, until
from dashboards import DASHBOARDS
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest, StartPrometheus
from tests.lab.kafka import KafkaCluster
from tests.lab.prometheus import Prometheus

FOLDER: Final = Path(__file__).parents[2] / "dashboards"
ROOT: Final = os.geteuid() == 0
SLOW: Final = 200_000  # bytes a second, by which a migration lasts longer than the test
BEHIND: Final = 1_000_000  # by which a copy stays behind a guest that writes some three times as much

CANNOT: Final = {
    "qemu_migration_cpu_throttle_ratio": "vCPUs are slowed only after a migration has failed to converge for several passes",
    "qemu_cgroup_memory_bytes": "where the tests run, QEMU need not be in a cgroup that counts memory",
    "qemu_cgroup_memory_limit_bytes": "as above, and it has to have a limit",
} | ({} if ROOT else {"qemu_net_": "only root makes a tap"})
"""What cannot be had here, by what is in the query, and why."""


def queries(made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the place and the expression of every query in a dashboard's JSON."""
    for panel in made["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for marks in made["annotations"]["list"]:
        yield marks["name"], marks["expr"]
    for variable in made["templating"]["list"]:
        if variable["type"] == "query":
            query = re.sub(r"label_values\((.*), (\w+)\)", r"group by (\2) (\1)", variable["query"])
            yield f"${variable['name']}", re.sub(r"query_result\((.*)\)", r"\1", query)


def chosen(query: str, agent: AgentProcess, guest: Guest) -> str:
    """Return a query as Grafana would send it."""
    values = {
        "$__rate_interval": "10s",
        "$__range": "30s",
        "$hosts": ".*",
        "$host": agent.url.removeprefix("http://"),
        "$vm": ".*",
        "$uuid": guest.uuid,
    }
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


@pytest.fixture
def card() -> Iterator[list[str]]:
    """Arguments for a network card on a tap; none where only root could make one."""
    if not ROOT:
        yield []
        return
    tap = f"qmpd{os.getpid() % 10**6}"
    subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", tap, "up"], check=True)
    yield [
        *("-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"),
        *("-device", "virtio-net-pci,id=nic0,netdev=net0"),
    ]
    subprocess.run(["ip", "link", "delete", tap], check=True)


@asynccontextmanager
async def reading(guest: Guest) -> AsyncIterator[None]:
    """Have a disk read, which its guest does not do, now and then."""

    async def read() -> None:
        line = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "aio_read 0 4k"'
        while True:
            await guest.command("human-monitor-command", command_line=line)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def set_to_work(guest: Guest, moved: Guest) -> None:
    """Have a Linux be copied and moved, slowly, its latencies counted; and another moved at once."""
    await moved.command("migrate", uri="exec:cat >/dev/null")
    await guest.booted()
    await guest.command(
        "block-latency-histogram-set",
        id="/machine/peripheral/disk0/virtio-backend",
        boundaries=[100_000, 1_000_000, 10_000_000],
    )
    await guest.command("blockdev-add", driver="null-co", node_name="copy", size=guest.options.disk_mib << 20)
    small: Any = {"granularity": 1 << 16, "buf_size": 1 << 16}  # steps, so that it is seen to advance at each poll
    await guest.command(
        "blockdev-mirror", job_id="copy0", device="disk0-format", target="copy", sync="full", speed=BEHIND, **small
    )
    await guest.command("migrate-set-parameters", max_bandwidth=SLOW)
    await guest.command("migrate", uri="exec:cat >/dev/null")


async def found(prometheus: Prometheus, query: str) -> bool:
    """Return whether a query finds a number."""
    return any(series["value"][1] != "NaN" for series in await prometheus.query(query))


@pytest.mark.timeout(300)
async def test_every_query_of_every_panel_finds_what_there_is(
    start_guest: StartGuest,
    start_prometheus: StartPrometheus,
    kafka: KafkaCluster,
    folder: Path,
    card: list[str],
) -> None:
    extra = ["-smp", "2", "-object", "iothread,id=io0", *card]
    work: Any = {"kind": GuestKind.LINUX, "pause_seconds": 0.3, "span_mib": 40, "disk_options": "iothread=io0"}
    linux = await start_guest("web-1", extra=extra, **work)
    moved = await start_guest("old-1", kind=GuestKind.WRITER)
    topics = {kind: f"test-{kind}-{uuid4()}" for kind in ("events", "samples", "alerts")}
    for topic in topics.values():
        await kafka.create_topic(topic)
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "1s", "guest_memory": "1s", "resync": "5s"},
        "allow": {"guest_stats_interval": "1s"},
        "alerts": {"write_threshold": {"mode": "arm", "levels": ["1%", "20%", "50%", "99%"]}},
        "kafka": {"bootstrap_servers": kafka.bootstrap, "topics": topics},
    }
    async with AgentProcess(folder, config) as agent, reading(linux):
        prometheus = await start_prometheus(agent.url.removeprefix("http://"))
        await set_to_work(linux, moved)
        made = [json.loads((FOLDER / f"{one.uid}.json").read_text()) for one in DASHBOARDS]
        empty = {
            (one["title"], place, chosen(query, agent, linux))
            for one in made
            for place, query in queries(one)
            if not any(name in query for name in CANNOT)
        }
        assert len(empty) > 100

        async def nothing_is_empty() -> bool:
            await linux.command("stop")  # marks are of the last minute
            await linux.command("cont")
            for one in sorted(empty):
                if await found(prometheus, one[2]):
                    empty.remove(one)
            return not empty

        try:
            await until(nothing_is_empty, 150)
        except TimeoutError:
            raise AssertionError("these find nothing:\n" + "\n".join(": ".join(one) for one in sorted(empty))) from None
        (vm,) = (v for one in made for v in one["templating"]["list"] if v["name"] == "uuid")
        series = (await prometheus.query(f'qemu_vm_info{{vm_uuid="{linux.uuid}"}}'))[0]["metric"]
        text = "qemu_vm_info{" + ",".join(f'{k}="{v}"' for k, v in sorted(series.items()) if k != "__name__") + "}"
        match = re.search(vm["regex"].strip("/").replace("(?<", "(?P<"), text)
        assert match is not None
        assert match.groupdict() == {"text": "web-1", "value": linux.uuid}
