"""While a guest writes, what the agent tells lies between what libvirt's own tool and another QMP client say before and after."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest
import pytest_asyncio
from qemu.qmp import QMPClient

from agent.cli.demo.guest import until
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Domain, Libvirtd

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

DEVICE: Final = "virtio-disk1"
ROUNDS: Final = 3

# virsh's name of a figure, qemu.qmp's, ours, and how many of their units one of ours is; by hand, not out of the agent's table.
BLOCK: Final = (
    ("block.1.rd.reqs", "rd_operations", "reads_total", 1),
    ("block.1.rd.bytes", "rd_bytes", "read_bytes_total", 1),
    ("block.1.rd.times", "rd_total_time_ns", "read_seconds_total", 1e9),
    ("block.1.wr.reqs", "wr_operations", "writes_total", 1),
    ("block.1.wr.bytes", "wr_bytes", "write_bytes_total", 1),
    ("block.1.wr.times", "wr_total_time_ns", "write_seconds_total", 1e9),
    ("block.1.fl.reqs", "flush_operations", "flushes_total", 1),
    ("block.1.fl.times", "flush_total_time_ns", "flush_seconds_total", 1e9),
)
OF_VM: Final = ("run_delay_seconds_total", "actual_bytes")
TICK_SECONDS: Final = 0.01
"""To what libvirt, which asks the kernel by clock ticks, is exact."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A domain with two monitors beside libvirt's, and the agent on one of them.

    Attributes:
        other: a QMP client that is not ours, on the other.
    """

    libvirtd: Libvirtd
    domain: Domain
    agent: AgentProcess
    other: QMPClient

    async def virsh(self) -> dict[str, float]:
        """Return what virsh says, in our names and units."""
        told = await self.libvirtd.stats(self.domain)
        return {ours: int(told[name]) / unit for name, _, ours, unit in BLOCK} | {
            "cpu_seconds": int(told["vcpu.0.time"]) / 1e9,
            "run_delay_seconds_total": int(told["vcpu.0.delay"]) / 1e9,
            "actual_bytes": int(told["balloon.current"]) * 1024,
        }

    async def qmp(self) -> dict[str, float]:
        """Return what the other client is answered, in our names and units."""
        disks: Any = await self.other.execute("query-blockstats")
        (stats,) = (disk["stats"] for disk in disks if f"/{DEVICE}/" in disk["qdev"])
        balloon: Any = await self.other.execute("query-balloon")
        return {ours: stats[name] / unit for _, name, ours, unit in BLOCK} | {"actual_bytes": balloon["actual"]}

    async def told(self) -> dict[str, float]:
        """Return what the agent tells that it asked from now on."""
        since = self.agent.mark()
        for _ in range(2):  # the first may have been asked before
            block = await self.agent.wait_for_record("sample.block", vm=self.domain.uuid, since=since, device=DEVICE)
            since = self.agent.records().index(block) + 1
        vcpu = await self.agent.wait_for_record("sample.vcpu", vm=self.domain.uuid, since=since)
        balloon = await self.agent.wait_for_record("sample.balloon", vm=self.domain.uuid)
        figures: Mapping[str, Any] = block["data"] | vcpu["data"] | balloon["data"]
        return {name: figures[name] for name in (*(ours for _, _, ours, _ in BLOCK), *OF_VM)} | {
            "cpu_seconds": figures["user_seconds_total"] + figures["system_seconds_total"]
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(libvirtd: Libvirtd) -> AsyncIterator[Stage]:
    monitors = [libvirtd.folder / "lib" / name for name in ("agent.qmp", "other.qmp")]
    words = [word for path in monitors for word in ("-qmp", f"unix:{path},server=on,wait=off")]
    arguments = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    (libvirtd.folder / "lib").chmod(0o777)  # QEMU is not root there
    domain = await libvirtd.domain("loaded", extra=f"<qemu:commandline>{arguments}</qemu:commandline>")

    async def writes() -> bool:
        return int((await libvirtd.stats(domain))["block.1.wr.reqs"]) > 0

    await until(writes, 30)
    other = QMPClient()
    await other.connect(str(monitors[1]))
    config = {"monitors": [{"dial": str(monitors[0])}], "intervals": {"poll": "200ms"}}
    folder = libvirtd.folder / "agent"
    folder.mkdir()
    async with AgentProcess(folder, config) as agent:
        await agent.wait_for_record("sample.block", vm=domain.uuid, device=DEVICE)
        yield Stage(libvirtd, domain, agent, other)
    await other.disconnect()


async def test_under_load_all_figures_lie_between_two_that_virsh_tells_and_two_that_qemu_qmp_is_answered(
    stage: Stage,
) -> None:
    first = await stage.virsh()
    for _ in range(ROUNDS):
        before, also_before = await stage.virsh(), await stage.qmp()
        told = await stage.told()
        also_after, after = await stage.qmp(), await stage.virsh()
        for name, value in told.items():
            slack = TICK_SECONDS * 2 if name == "cpu_seconds" else 1e-9 * value
            assert before[name] - slack <= value <= after[name] + slack, name
            if name in also_before:
                assert also_before[name] - slack <= value <= also_after[name] + slack, name
    last = await stage.virsh()
    for name in ("writes_total", "write_bytes_total", "write_seconds_total", "cpu_seconds"):
        assert last[name] > first[name], f"there was no load: {name} did not rise"
