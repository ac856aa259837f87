"""The values in a scrape equal the values that QEMU reports to an independent client. Prometheus accepts the scrape."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from qemu.qmp import QMPClient

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess, Scrape
from tests.lab.prometheus import Prometheus, promtool_check
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BALLOON: Final = "/machine/peripheral/balloon0"
BALLOON_BYTES: Final = 100 << 20

# QEMU's name of each value, the series' name, and QEMU's units per unit of the series.
# Written by hand: the agent's own table is what this test checks.
BLOCK: Final[Mapping[str, tuple[str, float]]] = {
    "rd_bytes": ("read_bytes_total", 1),
    "wr_bytes": ("write_bytes_total", 1),
    "unmap_bytes": ("unmap_bytes_total", 1),
    "zone_append_bytes": ("zone_append_bytes_total", 1),
    "rd_operations": ("reads_total", 1),
    "wr_operations": ("writes_total", 1),
    "flush_operations": ("flushes_total", 1),
    "unmap_operations": ("unmaps_total", 1),
    "zone_append_operations": ("zone_appends_total", 1),
    "rd_total_time_ns": ("read_seconds_total", 1e9),
    "wr_total_time_ns": ("write_seconds_total", 1e9),
    "flush_total_time_ns": ("flush_seconds_total", 1e9),
    "unmap_total_time_ns": ("unmap_seconds_total", 1e9),
    "zone_append_total_time_ns": ("zone_append_seconds_total", 1e9),
    "rd_merged": ("reads_merged_total", 1),
    "wr_merged": ("writes_merged_total", 1),
    "unmap_merged": ("unmaps_merged_total", 1),
    "zone_append_merged": ("zone_appends_merged_total", 1),
    "failed_rd_operations": ("failed_reads_total", 1),
    "failed_wr_operations": ("failed_writes_total", 1),
    "failed_flush_operations": ("failed_flushes_total", 1),
    "failed_unmap_operations": ("failed_unmaps_total", 1),
    "failed_zone_append_operations": ("failed_zone_appends_total", 1),
    "invalid_rd_operations": ("invalid_reads_total", 1),
    "invalid_wr_operations": ("invalid_writes_total", 1),
    "invalid_flush_operations": ("invalid_flushes_total", 1),
    "invalid_unmap_operations": ("invalid_unmaps_total", 1),
    "invalid_zone_append_operations": ("invalid_zone_appends_total", 1),
    "wr_highest_offset": ("write_highest_offset_bytes", 1),
}
NO_SERIES: Final = {"account_failed", "account_invalid", "timed_stats"}
MOVING: Final = {"idle_time_ns"}
GUEST_MEMORY: Final[Mapping[str, str]] = {
    "stat-total-memory": "total_bytes",
    "stat-free-memory": "free_bytes",
    "stat-available-memory": "available_bytes",
    "stat-disk-caches": "disk_cache_bytes",
    "stat-swap-in": "swap_in_bytes_total",
    "stat-swap-out": "swap_out_bytes_total",
    "stat-major-faults": "major_faults_total",
    "stat-minor-faults": "minor_faults_total",
    "stat-htlb-pgalloc": "hugetlb_allocations_total",
    "stat-htlb-pgfail": "hugetlb_failures_total",
    "stat-oom-kills": "oom_kills_total",
    "stat-alloc-stalls": "allocation_stalls_total",
    "stat-async-scans": "background_scans_total",
    "stat-direct-scans": "direct_scans_total",
    "stat-async-reclaims": "background_reclaims_total",
    "stat-direct-reclaims": "direct_reclaims_total",
}
LAST_UPDATE: Final = "guest_memory_last_update_timestamp_seconds"
UNKNOWN: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Environment:
    linux: Guest
    writer: Guest
    agent: AgentProcess
    prometheus: Prometheus


def second_monitor(guest: Guest) -> Path:
    return guest.monitor.with_suffix(".second")


@asynccontextmanager
async def independent_client(guest: Guest) -> AsyncIterator[QMPClient]:
    """Connect an independent QMP client to the guest's second monitor."""
    client = QMPClient()
    await client.connect(str(second_monitor(guest)))
    try:
        yield client
    finally:
        await client.disconnect()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)

        def guest(name: str, **options: Any) -> Guest:
            extra = ["-qmp", f"unix:{folder / name}.second,server=on,wait=off"]
            return Guest(folder, name, GuestOptions(extra=extra, **options))

        linux = guest("linux", kind=GuestKind.LINUX, pause_seconds=0.1)
        one_error = {"event": "write_aio", "iotype": "write", "errno": 5, "once": True}
        writer = guest("writer", kind=GuestKind.WRITER, faults=[one_error], disk_options="werror=report")
        config = {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "intervals": {"poll": "500ms", "guest_memory": "1s", "resync": "1s"},
        }
        agent = AgentProcess(folder, config)
        prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{agent.port}")
        async with AsyncExitStack() as running:
            await asyncio.gather(*(running.enter_async_context(part) for part in (linux, writer, agent, prometheus)))
            await linux.command("qom-set", path=BALLOON, property="guest-stats-polling-interval", value=1)

            async def has_flushed() -> bool:
                return any(disk["stats"]["flush_operations"] for disk in await linux.command("query-blockstats"))

            await asyncio.gather(until(has_flushed), until(writer.count_writes))
            yield Environment(linux, writer, agent, prometheus)


@asynccontextmanager
async def paused(guest: Guest) -> AsyncIterator[None]:
    """Pause a guest while the `with` block runs. Its values do not change meanwhile."""
    await guest.command("stop")
    try:
        yield
    finally:
        await guest.command("cont")


async def scrape_of(environment: Environment, guest: Guest) -> Scrape:
    """Return a scrape with values of polls after the guest was paused."""

    async def is_paused() -> bool:
        return (await environment.agent.metrics()).value("qemu_runstate_running", vm_uuid=guest.uuid) == 0

    await until(is_paused)
    return await environment.agent.fresh_metrics("sample.block", vm=guest.uuid, device="disk0")


@pytest.mark.parametrize("name", ["linux", "writer"])
async def test_disk_values_equal_qemus_own(environment: Environment, name: str) -> None:
    guest: Guest = getattr(environment, name)
    async with paused(guest), independent_client(guest) as client:
        series = await scrape_of(environment, guest)
        disks: Any = await client.execute("query-blockstats")
        status: Any = await client.execute("query-status")
    names = {disk["qdev"].removeprefix("/machine/peripheral/").removesuffix("/virtio-backend"): disk for disk in disks}
    assert names.keys() == {"linux": {"disk0"}, "writer": {"disk0", "boot"}}[name]
    for device, disk in names.items():
        stats = disk["stats"]
        assert not stats.keys() - BLOCK.keys() - NO_SERIES - MOVING
        for key in stats.keys() & BLOCK.keys():
            name_of_series, unit = BLOCK[key]
            assert (
                series.value(f"qemu_block_{name_of_series}", vm_uuid=guest.uuid, device=device) == stats[key] / unit
            ), key
        highest = series.value("qemu_block_storage_write_highest_offset_bytes", vm_uuid=guest.uuid, device=device)
        assert highest == disk["parent"]["stats"]["wr_highest_offset"]
        for key in BLOCK.keys() - stats.keys():
            assert series.value(f"qemu_block_{BLOCK[key][0]}", vm_uuid=guest.uuid, device=device) is None, key
    disk = names["disk0"]["stats"]
    assert disk["wr_operations"] > 0 < disk["wr_highest_offset"]
    assert disk["flush_operations" if name == "linux" else "failed_wr_operations"] > 0
    idle = series.value("qemu_block_idle_seconds", vm_uuid=guest.uuid, device="disk0")
    assert idle is not None
    assert 0 < idle < disk["idle_time_ns"] / 1e9
    assert series.value("qemu_runstate_status", vm_uuid=guest.uuid) == 1
    assert series.value("qemu_runstate_status", vm_uuid=guest.uuid, status=status["status"]) == 1
    assert series.value("qemu_runstate_running", vm_uuid=guest.uuid) == status["running"] == 0


async def test_guest_memory_values_equal_qemus_own(environment: Environment) -> None:
    guest = environment.linux
    await guest.command("balloon", value=BALLOON_BYTES)

    async def has_inflated() -> bool:
        return bool((await guest.command("query-balloon"))["actual"] == BALLOON_BYTES)

    async def has_reported_since() -> bool:
        stats = (await guest.command("qom-get", path=BALLOON, property="guest-stats"))["stats"]
        return bool(stats["stat-total-memory"] <= BALLOON_BYTES)

    await until(has_inflated)
    await until(has_reported_since)
    async with paused(guest), independent_client(guest) as client:
        labels = {"vm_uuid": guest.uuid}
        memory: Any = {}
        series = Scrape("", {})

        async def both_match() -> bool:
            nonlocal memory, series  # a report of the guest may still arrive after the pause
            balloon: Any = await client.execute("query-balloon")
            memory = await client.execute("qom-get", {"path": BALLOON, "property": "guest-stats"})
            series = await environment.agent.metrics()
            exported = [series.value(f"qemu_{name}", **labels) for name in ("balloon_actual_bytes", LAST_UPDATE)]
            return bool(exported == [balloon["actual"], memory["last-update"]])

        await until(both_match)
    assert not memory["stats"].keys() - GUEST_MEMORY.keys()
    for key, name in GUEST_MEMORY.items():
        value = memory["stats"].get(key, UNKNOWN)
        assert series.value(f"qemu_guest_memory_{name}", **labels) == (None if value == UNKNOWN else value), key
    assert 0 < memory["stats"]["stat-free-memory"] < memory["stats"]["stat-total-memory"]
    assert series.matching("qemu_balloon_actual_bytes", vm_uuid=environment.writer.uuid) == []


def layer_values(nodes: Any) -> dict[tuple[str, str], float]:
    """Return the values of the layers of `disk0` in a reply to query-named-block-nodes, by layer and name of the series."""
    return {
        (layer, name): float(value)
        for node in nodes
        for layer in ("format", "storage")
        if node["node-name"] == f"disk0-{layer}"
        for name, value in (
            ("size_bytes", node["image"]["virtual-size"]),
            ("allocated_bytes", node["image"]["actual-size"]),
            ("write_threshold_bytes", node["write_threshold"]),
            ("read_only", node["ro"]),
            ("backing_depth", node["backing_file_depth"]),
        )
    }


async def test_layer_values_equal_qemus_own(environment: Environment) -> None:
    guest = environment.linux
    await guest.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1 << 40)
    async with paused(guest), independent_client(guest) as client:
        expected: dict[tuple[str, str], float] = {}

        async def all_match() -> bool:
            nonlocal expected  # the host's file system may change the allocated size without a write of the guest
            expected = layer_values(await client.execute("query-named-block-nodes", {"flat": True}))
            series = await environment.agent.metrics()
            labels = {"vm_uuid": guest.uuid, "device": "disk0"}
            exported = {key: series.value(f"qemu_block_layer_{key[1]}", layer=key[0], **labels) for key in expected}
            return exported == expected

        await until(all_match)
    assert expected["storage", "write_threshold_bytes"] == 1 << 40
    assert 0 < expected["storage", "allocated_bytes"] < expected["format", "size_bytes"]


async def test_an_exceeded_threshold_is_reported_with_qemus_values(environment: Environment) -> None:
    guest = environment.linux
    await guest.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1 << 20)
    qemu_event = (await guest.wait_for_event("BLOCK_WRITE_THRESHOLD"))["data"]
    alert = await environment.agent.wait_for_record("alert.write_threshold", vm=guest.uuid, state="firing")
    assert (alert["subject"], alert["severitytext"]) == ("disk0", "WARN")
    assert alert["data"]["level_bytes"] == qemu_event["write-threshold"]
    assert alert["data"]["exceeded_by_bytes"] == qemu_event["amount-exceeded"]
    assert alert["data"]["layer"] == "storage"
    series = await environment.agent.metrics()
    firing = {"vm_uuid": guest.uuid, "alert": "write_threshold", "device": "disk0", "severity": "warning"}
    assert series.value("qemu_alert_firing", **firing) == 1


async def test_promtool_accepts_a_scrape(environment: Environment) -> None:
    assert promtool_check((await environment.agent.metrics()).text) == []


async def test_prometheus_sees_a_guest_write(environment: Environment) -> None:
    written = f'qemu_block_write_bytes_total{{device="disk0",vm_uuid="{environment.writer.uuid}"}}'

    async def value(expression: str) -> float:
        result = await environment.prometheus.query(expression)
        return float(result[0]["value"][1]) if result else 0.0

    async def is_scraped() -> bool:
        return await value("up") == 1 and await value(written) > 0

    await until(is_scraped)
    before = await value(written)

    async def has_risen() -> bool:
        return await value(written) > before

    await until(has_risen)
    found: list[dict[str, Any]] = []

    async def has_version() -> bool:
        nonlocal found  # empty after a scrape that took longer than Prometheus' timeout
        found = await environment.prometheus.query(
            f"{written} * on (job, instance, vm_uuid) group_left (qemu_version) qemu_vm_info"
        )
        return bool(found)

    await until(has_version)
    (info,) = found
    assert info["metric"]["qemu_version"].count(".") == 2
