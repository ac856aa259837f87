"""Beside Debian's prometheus-libvirt-exporter on the same domain, the recording rules make the series that it makes."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from agent.cli.demo.guest import until
from tests.integration.libvirt.conftest import QUICK
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartPrometheus
from tests.lab.libvirt import MONITOR, Domain, Libvirtd, exporter
from tests.lab.prometheus import Prometheus

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

FOLDER: Final = Path(__file__).parents[3] / "deploy/prometheus"
OURS: Final = {"instance", "job", "__name__"}

Named = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(address: str) -> Named:
    """Return what it tells of libvirt; empty while it does not answer."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as response:
            # An empty label is the same as none to Prometheus.
            return {
                (one.name, frozenset((key, value) for key, value in one.labels.items() if value)): one.value
                for family in text_string_to_metric_families(await response.text())
                for one in family.samples
                if one.name.startswith("libvirt_")
            }
    return {}


async def recorded(prometheus: Prometheus) -> Named:
    """Return what the rules have made, without the labels that Prometheus gives a target."""
    return {
        (one["metric"]["__name__"], frozenset((k, v) for k, v in one["metric"].items() if k not in OURS)): float(
            one["value"][1]
        )
        for one in await prometheus.query('{__name__=~"libvirt_.+"}')
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domain(libvirtd: Libvirtd) -> Domain:
    """A domain with an interface on the host, and a monitor of its own, that has written something and stands still."""
    monitors = libvirtd.folder / "qmp"
    monitors.mkdir()
    monitors.chmod(0o777)  # QEMU runs as a user of libvirt's
    extra = MONITOR.format(path=monitors / "web-3.qmp")
    made = await libvirtd.domain("web-3", vcpus=2, interface="ethernet", extra=extra)

    async def has_written() -> bool:
        return int((await libvirtd.stats(made))["block.1.wr.reqs"]) > 0

    await until(has_written, 30)
    await libvirtd.virsh("suspend", made.name)
    return made


SECOND: Final = 1.0
"""How far apart two figures of CPU time may be: the guest stands, but QEMU answers."""

# libvirt tells no threads: CPU time, vCPUs and taps come from the kernel, where the process is known, as of a monitor that is dialed.
# Over a monitor nobody tells libvirt's names of disks: there they have their devices'.
OVER_LIBVIRT: Final = {"up", "domains_number", "domain_state_code"} | {
    f"domain_{name}"
    for name in (
        *("info_maximum_memory_bytes", "info_memory_usage_bytes"),
        *(f"block_stats_{way}_{what}_total" for way in ("read", "write") for what in ("bytes", "requests")),
    )
}
OVER_A_MONITOR: Final = OVER_LIBVIRT | {
    f"domain_{name}"
    for name in (
        *("info_virtual_cpus", "info_cpu_time_seconds_total"),
        *(
            f"interface_stats_{way}_{what}_total"
            for way in ("receive", "transmit")
            for what in ("bytes", "packets", "errors", "drops")
        ),
    )
}
DEVICES: Final = {"vda": "virtio-disk0", "vdb": "virtio-disk1"}


def among(series: Named, names: set[str], targets: Mapping[str, str]) -> Named:
    """Return the series of these names, with other names of disks."""
    return {
        (name, frozenset((k, targets.get(v, v) if k == "target_device" else v) for k, v in labels)): value
        for (name, labels), value in series.items()
        if name.removeprefix("libvirt_") in names
    }


@pytest.mark.parametrize("way", ["libvirt", "monitor"])
async def test_the_rules_make_the_series_of_debians_exporter(
    way: str, libvirtd: Libvirtd, domain: Domain, folder: Path, start_prometheus: StartPrometheus
) -> None:
    monitor = {"libvirt": libvirtd.uri} if way == "libvirt" else {"dial": f"{libvirtd.folder}/qmp/*.qmp"}
    names, targets = (OVER_LIBVIRT, {}) if way == "libvirt" else (OVER_A_MONITOR, DEVICES)
    async with AgentProcess(folder, {**QUICK, "monitors": [monitor]}) as agent, exporter(libvirtd) as (address, _):
        rules = FOLDER / "libvirt-names-debian.yml"
        prometheus = await start_prometheus(f"127.0.0.1:{agent.port}", rules=rules, job="qmp-agent")
        theirs: Named = {}
        ours: Named = {}

        async def alike() -> bool:
            nonlocal theirs, ours
            theirs = among(await scraped(address), names, targets)
            ours = await recorded(prometheus)
            return theirs.keys() <= ours.keys() and {name for name, _ in theirs} == {f"libvirt_{n}" for n in names}

        with contextlib.suppress(TimeoutError):
            await until(alike, 30)
        assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=SECOND if "cpu_time" in key[0] else 0), key
    assert ours["libvirt_domain_state_code", frozenset({("domain", "web-3"), ("uuid", domain.uuid)})] == 3
    assert {name.removeprefix("libvirt_") for name, _ in await every(libvirtd)} == OVER_LIBVIRT | OVER_A_MONITOR


async def every(libvirtd: Libvirtd) -> Named:
    """Return all series that the exporter has."""
    found: Named = {}
    async with exporter(libvirtd) as (address, _):

        async def told() -> bool:
            found.update(await scraped(address))
            return len(found) > 1

        await until(told, 20)
    return found
