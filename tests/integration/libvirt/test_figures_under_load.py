"""While a guest writes, the agent's figures lie between the figures that virsh and another QMP client read before and after."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest
import pytest_asyncio
from qemu.qmp import QMPClient

from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEVICE: Final = "virtio-disk1"
ROUNDS: Final = 3

# virsh's name, qemu.qmp's, the agent's, and their units in one of the agent's; written by hand, not taken from the agent's table.
BLOCK_FIGURES: Final = (
    ("block.1.rd.reqs", "rd_operations", "reads_total", 1),
    ("block.1.rd.bytes", "rd_bytes", "read_bytes_total", 1),
    ("block.1.rd.times", "rd_total_time_ns", "read_seconds_total", 1e9),
    ("block.1.wr.reqs", "wr_operations", "writes_total", 1),
    ("block.1.wr.bytes", "wr_bytes", "write_bytes_total", 1),
    ("block.1.wr.times", "wr_total_time_ns", "write_seconds_total", 1e9),
    ("block.1.fl.reqs", "flush_operations", "flushes_total", 1),
    ("block.1.fl.times", "flush_total_time_ns", "flush_seconds_total", 1e9),
)
VM_FIGURES: Final = ("run_delay_seconds_total", "actual_bytes")
TICK_SECONDS: Final = 0.01
"""Resolution of libvirt's CPU times, which it reads in clock ticks."""


@dataclass(frozen=True, slots=True)
class LoadedDomain:
    """A domain whose guest writes, with two monitors beside libvirt's: one for the agent, one for another QMP client.

    Attributes:
        other: the other QMP client.
    """

    libvirtd: Libvirtd
    domain: Domain
    agent: AgentProcess
    other: QMPClient

    async def virsh_figures(self) -> dict[str, float]:
        """Return virsh's figures, in the agent's names and units."""
        stats = await self.libvirtd.stats(self.domain)
        return {ours: int(stats[name]) / unit for name, _, ours, unit in BLOCK_FIGURES} | {
            "cpu_seconds": int(stats["vcpu.0.time"]) / 1e9,
            "run_delay_seconds_total": int(stats["vcpu.0.delay"]) / 1e9,
            "actual_bytes": int(stats["balloon.current"]) * 1024,
        }

    async def qmp_figures(self) -> dict[str, float]:
        """Return the other client's figures, in the agent's names and units."""
        disks: Any = await self.other.execute("query-blockstats")
        (stats,) = (disk["stats"] for disk in disks if f"/{DEVICE}/" in disk["qdev"])
        balloon: Any = await self.other.execute("query-balloon")
        return {ours: stats[name] / unit for _, name, ours, unit in BLOCK_FIGURES} | {"actual_bytes": balloon["actual"]}

    async def agent_figures(self) -> dict[str, float]:
        """Return the agent's figures of polls that start from now on."""
        since = self.agent.mark()
        block = await self.agent.wait_for_record("sample.block", vm=self.domain.uuid, since=since, device=DEVICE)
        vcpu = await self.agent.wait_for_record("sample.vcpu", vm=self.domain.uuid, since=since)
        balloon = await self.agent.wait_for_record("sample.balloon", vm=self.domain.uuid)
        figures: Mapping[str, Any] = block["data"] | vcpu["data"] | balloon["data"]
        return {name: figures[name] for name in (*(ours for _, _, ours, _ in BLOCK_FIGURES), *VM_FIGURES)} | {
            "cpu_seconds": figures["user_seconds_total"] + figures["system_seconds_total"]
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded_domain(libvirtd: Libvirtd) -> AsyncIterator[LoadedDomain]:
    monitors = [libvirtd.folder / "lib" / name for name in ("agent.qmp", "other.qmp")]
    options = [option for path in monitors for option in ("-qmp", f"unix:{path},server=on,wait=off")]
    arguments = "".join(f"<qemu:arg value='{option}'/>" for option in options)
    (libvirtd.folder / "lib").chmod(0o777)  # QEMU is not root there
    domain = await libvirtd.domain("loaded", extra=f"<qemu:commandline>{arguments}</qemu:commandline>", pause_us=20_000)

    async def writes() -> bool:
        return int((await libvirtd.stats(domain))["block.1.wr.reqs"]) > 0

    await until(writes, 180)
    other = QMPClient()
    await other.connect(str(monitors[1]))
    config = {"monitors": [{"dial": str(monitors[0])}], "intervals": {"poll": "200ms"}}
    folder = libvirtd.folder / "agent"
    folder.mkdir()
    async with AgentProcess(folder, config) as agent:
        await agent.wait_for_record("sample.block", vm=domain.uuid, device=DEVICE)
        yield LoadedDomain(libvirtd, domain, agent, other)
    await other.disconnect()


async def test_under_load_all_figures_lie_between_those_of_virsh_and_of_another_qmp_client(
    loaded_domain: LoadedDomain,
) -> None:
    first = await loaded_domain.virsh_figures()
    for _ in range(ROUNDS):
        before, other_before = await loaded_domain.virsh_figures(), await loaded_domain.qmp_figures()
        figures = await loaded_domain.agent_figures()
        other_after, after = await loaded_domain.qmp_figures(), await loaded_domain.virsh_figures()
        for name, value in figures.items():
            slack = TICK_SECONDS * 2 if name == "cpu_seconds" else 1e-9 * value
            assert before[name] - slack <= value <= after[name] + slack, name
            if name in other_before:
                assert other_before[name] - slack <= value <= other_after[name] + slack, name
    last = await loaded_domain.virsh_figures()
    for name in ("writes_total", "write_bytes_total", "write_seconds_total", "cpu_seconds"):
        assert last[name] > first[name], f"there was no load: {name} did not rise"
