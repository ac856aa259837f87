"""Every query of the dashboards returns a result from a real Prometheus. It scrapes a real agent with busy guests."""

import asyncio
import json
import math
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from agent.cli.demo.guest import Guest, GuestKind
from dashboards import DASHBOARDS
from tests.lab.agent_process import AgentProcess
from tests.lab.background import in_background
from tests.lab.fixtures import StartGuest, StartPrometheus
from tests.lab.kafka import KafkaCluster
from tests.lab.prometheus import Prometheus
from tests.lab.waiting import until

FOLDER: Final = Path(__file__).parents[2] / "dashboards"
ROOT: Final = os.geteuid() == 0
SLOW: Final = 100_000  # bytes per second: a migration outlasts the test
PAUSE_INTERVAL: Final = 20  # seconds: annotations cover the last minute
COPY_SPEED: Final = 1_000_000  # bytes per second: a copy stays behind the guest, which writes about three times as much

NO_RESULT: Final = {
    "qemu_migration_cpu_throttle_ratio": "auto-converge throttles vCPUs only after several passes that did not converge",
    "qemu_cgroup_memory_bytes": "QEMU may run in a cgroup without memory accounting",
    "qemu_cgroup_memory_limit_bytes": "as above, and the cgroup needs a limit",
    "namespace": "no guest is one of KubeVirt's: tests/integration/prometheus/test_dashboard_values.py has its values",
    "qemu_guest_load_average_": "the guest's qemu-ga is older than 10.0",
    "qemu_pool_metadata_": "the guests' images are not on an LVM thin pool",
    "internal-error|guest-panicked": "no guest has such a run state",
    "qemu_pool_inodes": "the file system of the guests' images may have no fixed number of inodes",
    "qemu_pool_time_to_full_seconds": "the guests do not fill the file system of their images within an hour",
    "qemu_pool_growth_over_day_bytes_per_second": "the guests run for less than a quarter of an hour",
} | ({} if ROOT else {"qemu_net_": "only root can create a tap interface"})
"""Parts of queries that have no result in this test, with the reason."""


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every query of a dashboard: its panel, and the PromQL expression."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = re.sub(r"label_values\((.*), (\w+)\)", r"group by (\2) (\1)", variable["query"])
            yield f"${variable['name']}", re.sub(r"query_result\((.*)\)", r"\1", query)


def substitute(query: str, agent: AgentProcess, guest: Guest) -> str:
    """Replace the variables in a query, like Grafana."""
    values = {
        "$__rate_interval": "10s",
        "$__range": "30s",
        "$hosts": ".*",
        "$host": agent.url.removeprefix("http://"),
        "$vm": ".*",
        "$pool": ".*",
        "$alert": ".*",
        "$uuid": guest.uuid,
        "$disk": "disk0",
    }
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


@pytest.fixture
def network_card() -> Iterator[list[str]]:
    """QEMU's arguments for a network card on a tap interface; empty if the user is not root."""
    if not ROOT:
        yield []
        return
    tap = f"qmpd{os.getpid() % 10**6}"
    subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", tap, "up"], check=True)
    yield [
        *("-netdev", f"tap,id=tap0,ifname={tap},script=no,downscript=no"),
        *("-device", "virtio-net-pci,id=nic1,netdev=tap0"),
    ]
    subprocess.run(["ip", "link", "delete", tap], check=True)


@asynccontextmanager
async def read_disk(guest: Guest) -> AsyncIterator[None]:
    """Read from a guest's disk while the `with` block runs. The guest itself only writes."""

    async def read() -> None:
        line = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "aio_read 0 4k"'
        while True:
            await guest.command("human-monitor-command", command_line=line)
            await asyncio.sleep(0.5)

    async with in_background(read()):
        yield


async def wait_for_guest_agent(agent: AgentProcess, expressions: Iterable[str]) -> None:
    """Wait until the agent has a value of each metric from inside the guest. It does not query the guest agent of a migrating guest."""
    expected = {name for expression in expressions for name in re.findall(r"qemu_guest_\w+", expression)}
    missing = expected

    async def all_have_values() -> bool:
        nonlocal missing
        missing = expected - {name for name, _ in (await agent.metrics()).values}
        return not missing

    try:
        await until(all_have_values)
    except TimeoutError:
        raise AssertionError(f"no value of {sorted(missing)}: {agent.log}") from None


async def start_work(guest: Guest, migrated: Guest) -> None:
    """Start a slow copy and a slow migration of `guest`. Migrate `migrated` at full speed."""
    await migrated.command("migrate", uri="exec:cat >/dev/null")
    await guest.command("blockdev-add", driver="null-co", node_name="copy", size=guest.options.disk_mib << 20)
    steps: Any = {"granularity": 1 << 16, "buf_size": 1 << 16}  # small steps, so that each poll shows progress
    await guest.command(
        "blockdev-mirror", job_id="copy0", device="disk0-format", target="copy", sync="full", speed=COPY_SPEED, **steps
    )
    await guest.command("migrate-set-parameters", max_bandwidth=SLOW)
    await guest.command("migrate", uri="exec:cat >/dev/null")


async def has_result(prometheus: Prometheus, query: str) -> bool:
    """Return whether a query returns a number."""
    return any(series["value"][1] != "NaN" for series in await prometheus.query(query))


async def test_every_query_of_every_panel_has_a_result(
    start_guest: StartGuest,
    start_prometheus: StartPrometheus,
    kafka: KafkaCluster,
    folder: Path,
    network_card: list[str],
) -> None:
    extra = ["-smp", "2", "-object", "iothread,id=io0", *network_card]
    work: Any = {
        "kind": GuestKind.LINUX,
        "guest_agent": True,
        "pause_seconds": 0.3,
        "span_mib": 40,
        "disk_options": "iothread=io0",
    }
    linux = await start_guest("web-1", extra=extra, **work)
    migrated = await start_guest("old-1", kind=GuestKind.WRITER)
    topics = {kind: f"test-{kind}-{uuid4()}" for kind in ("events", "samples", "alerts")}
    for topic in topics.values():
        await kafka.create_topic(topic)
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "1s", "guest_memory": "1s", "resync": "5s", "storage": "1s"},
        "allow": {"guest_stats_interval": "1s", "latency_histograms": True},
        "guest_agent": {"enabled": True, "intervals": {"filesystems": "1s", "load": "1s", "clock": "1s"}},
        "alerts": {"disks": {"mode": "arm", "levels": ["used 640KiB", "used 13MiB", "used 32MiB", "used 63MiB"]}},
        "kafka": {"bootstrap_servers": kafka.bootstrap, "topics": {**topics, "state": None}},
    }
    async with AgentProcess(folder, config) as agent, read_disk(linux):
        prometheus = await start_prometheus(agent.url.removeprefix("http://"))
        boards = [json.loads((FOLDER / f"{dashboard.uid}.json").read_text()) for dashboard in DASHBOARDS]
        empty = {
            (board["title"], location, substitute(query, agent, linux))
            for board in boards
            for location, query in queries(board)
            if not any(name in query for name in NO_RESULT)
        }
        assert len(empty) > 100
        await linux.wait_until_booted()
        await wait_for_guest_agent(agent, (query for _, _, query in empty))
        await start_work(linux, migrated)
        paused_at = -math.inf

        async def all_have_results() -> bool:
            nonlocal paused_at
            if time.monotonic() - paused_at > PAUSE_INTERVAL:
                await linux.command("stop")
                await linux.command("cont")
                paused_at = time.monotonic()
            for entry in sorted(empty):
                if await has_result(prometheus, entry[2]):
                    empty.remove(entry)
            return not empty

        try:
            await until(all_have_results)
        except TimeoutError:
            raise AssertionError(
                "queries without a result:\n" + "\n".join(": ".join(entry) for entry in sorted(empty))
            ) from None
        (vm,) = (v for board in boards for v in board["templating"]["list"] if v["name"] == "uuid")
        infos: list[dict[str, Any]] = []

        async def has_info() -> bool:
            nonlocal infos  # empty after a scrape that took longer than Prometheus' timeout
            infos = await prometheus.query(f'qemu_vm_info{{vm_uuid="{linux.uuid}"}}')
            return bool(infos)

        await until(has_info)
        series = infos[0]["metric"]
        text = "qemu_vm_info{" + ",".join(f'{k}="{v}"' for k, v in sorted(series.items()) if k != "__name__") + "}"
        match = re.search(vm["regex"].strip("/").replace("(?<", "(?P<"), text)
        assert match is not None
        assert match.groupdict() == {"text": "web-1", "value": linux.uuid}
