"""The recording rules produce the same series as Debian's prometheus-libvirt-exporter for one domain."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.libvirt.conftest import QUICK
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartPrometheus
from tests.lab.libvirt import MONITOR, Domain, Libvirtd, run_exporter
from tests.lab.prometheus import Prometheus
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOLDER: Final = Path(__file__).parents[3] / "deploy/prometheus"
TARGET_LABELS: Final = {"instance", "job", "__name__"}

SeriesValues = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape_exporter(address: str) -> SeriesValues:
    """Return an exporter's libvirt series; empty while it does not answer."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as response:
            # An empty label is the same as none to Prometheus.
            return {
                (sample.name, frozenset((key, value) for key, value in sample.labels.items() if value)): sample.value
                for family in text_string_to_metric_families(await response.text())
                for sample in family.samples
                if sample.name.startswith("libvirt_")
            }
    return {}


async def recorded_series(prometheus: Prometheus) -> SeriesValues:
    """Return the series that the rules recorded, without the labels that Prometheus adds to a target."""
    return {
        (
            sample["metric"]["__name__"],
            frozenset((k, v) for k, v in sample["metric"].items() if k not in TARGET_LABELS),
        ): float(sample["value"][1])
        for sample in await prometheus.query('{__name__=~"libvirt_.+"}')
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domain(libvirtd: Libvirtd) -> Domain:
    """A paused domain that has written, with an interface on the host and its own monitor."""
    monitors = libvirtd.folder / "qmp"
    monitors.mkdir()
    monitors.chmod(0o777)  # QEMU runs as a user of libvirt's
    extra = MONITOR.format(path=monitors / "web-3.qmp")
    started = await libvirtd.domain("web-3", vcpus=2, interface="ethernet", extra=extra)

    async def has_written() -> bool:
        return int((await libvirtd.stats(started))["block.1.wr.reqs"]) > 0

    await until(has_written, 180)
    await libvirtd.virsh("suspend", started.name)
    return started


CPU_TIME_TOLERANCE_SECONDS: Final = 1.0
"""Maximum difference between two CPU times. The guest is paused, but QEMU uses CPU time to answer."""

# libvirt does not report threads, so vCPUs are counted over a monitor only. CPU time and taps come from the kernel.
# QMP does not report libvirt's names of disks: the series have the devices' names.
OVER_LIBVIRT: Final = {"up", "domains_number", "domain_state_code"} | {
    f"domain_{name}"
    for name in (
        *("info_maximum_memory_bytes", "info_memory_usage_bytes", "info_cpu_time_seconds_total"),
        *(f"block_stats_{direction}_{what}_total" for direction in ("read", "write") for what in ("bytes", "requests")),
        *(
            f"interface_stats_{direction}_{what}_total"
            for direction in ("receive", "transmit")
            for what in ("bytes", "packets", "errors", "drops")
        ),
    )
}
OVER_A_MONITOR: Final = OVER_LIBVIRT | {"domain_info_virtual_cpus"}
DEVICES: Final = {"vda": "virtio-disk0", "vdb": "virtio-disk1"}


def select_series(series: SeriesValues, names: set[str], targets: Mapping[str, str]) -> SeriesValues:
    """Return the series of these names, with the disks renamed by `targets`."""
    return {
        (name, frozenset((k, targets.get(v, v) if k == "target_device" else v) for k, v in labels)): value
        for (name, labels), value in series.items()
        if name.removeprefix("libvirt_") in names
    }


def different(theirs: SeriesValues, ours: SeriesValues) -> list[object]:
    """Return the series whose values differ."""
    return [
        key
        for key, value in theirs.items()
        if abs(ours[key] - value) > (CPU_TIME_TOLERANCE_SECONDS if "cpu_time" in key[0] else 0)
    ]


@pytest.mark.parametrize("transport", ["libvirt", "monitor"])
async def test_the_recording_rules_produce_the_series_of_debians_exporter(
    transport: str, libvirtd: Libvirtd, domain: Domain, folder: Path, start_prometheus: StartPrometheus
) -> None:
    monitor = {"libvirt": libvirtd.uri} if transport == "libvirt" else {"dial": f"{libvirtd.folder}/qmp/*.qmp"}
    names, targets = (OVER_LIBVIRT, {}) if transport == "libvirt" else (OVER_A_MONITOR, DEVICES)
    async with AgentProcess(folder, {**QUICK, "monitors": [monitor]}) as agent, run_exporter(libvirtd) as (address, _):
        rules = FOLDER / "libvirt-names-debian.yml"
        prometheus = await start_prometheus(f"127.0.0.1:{agent.port}", rules=rules, job="qmp-agent")
        theirs: SeriesValues = {}
        ours: SeriesValues = {}

        async def same_series() -> bool:
            """Read both again, because the host sends a few packets to a new tap."""
            nonlocal theirs, ours
            theirs = select_series(await scrape_exporter(address), names, targets)
            ours = await recorded_series(prometheus)
            has_all = {name for name, _ in theirs} == {f"libvirt_{n}" for n in names}
            return has_all and theirs.keys() == ours.keys() and not different(theirs, ours)

        with contextlib.suppress(TimeoutError):
            await until(same_series, 180)
        assert theirs.keys() == ours.keys()
        assert different(theirs, ours) == []
    assert ours["libvirt_domain_state_code", frozenset({("domain", "web-3"), ("uuid", domain.uuid)})] == 3
    assert {name.removeprefix("libvirt_") for name, _ in await all_series(libvirtd)} == OVER_LIBVIRT | OVER_A_MONITOR


async def all_series(libvirtd: Libvirtd) -> SeriesValues:
    """Return all libvirt series of the exporter."""
    series: SeriesValues = {}
    async with run_exporter(libvirtd) as (address, _):

        async def has_series() -> bool:
            series.update(await scrape_exporter(address))
            return len(series) > 1

        await until(has_series, 180)
    return series
