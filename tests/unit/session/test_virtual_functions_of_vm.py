"""A session finds the virtual functions of its VM without a command to QEMU, and polls their counters beside the kernel's files."""

from collections.abc import Sequence
from pathlib import Path

from agent.collectors import ALL_COLLECTORS, VmFacts
from agent.host.process import Process
from agent.host.rtnetlink import VirtualFunctionReading
from agent.host.virtual_function_counters import VirtualFunctionCounters
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.session.host_process import HostProcess
from agent.session.shared_types import SessionContext, SessionSettings
from tests.unit.host.test_sriov import Machine

NET = next(collector for collector in ALL_COLLECTORS if collector.name == "net")


async def refuse(commands: Sequence[Command]) -> list[CommandResult]:
    raise AssertionError(commands)


async def test_a_vm_with_a_function_and_a_macvtap_has_samples_of_both(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_command_line("-device", "vfio-pci,host=0000:01:10.3,id=hostdev0")
    machine.open_descriptor("/dev/vfio/43")
    counters = {"rx_bytes": 100, "tx_bytes": 200}
    vfs = VirtualFunctionCounters(
        lambda interface: [VirtualFunctionReading(3, "", counters)] if interface == "ens1f0" else []
    )
    host = HostProcess(SessionContext(SessionSettings("hv7"), root=tmp_path, virtual_function_counters=vfs))
    host._process = Process(70, tmp_path)
    try:
        facts = VmFacts(interfaces=await host._find_interfaces(refuse, host._process))
        files = NET.files(facts)
        assert list(NET.collect(host.read_files(files))) == []
        await vfs.refresh()
        (sample,) = NET.collect(host.read_files(files))
        assert (sample.labels, sample.values["device"]) == (("ens1f0v3",), "hostdev0")
        assert (sample.values["receive_bytes_total"], sample.values["transmit_bytes_total"]) == (100, 200)
        statistics = tmp_path / "sys/class/net/macvtap0/statistics"
        statistics.mkdir(parents=True)
        (statistics / "rx_bytes").write_text("7\n")
        machine.open_descriptor("/dev/tap9")
        (statistics.parent / "ifindex").write_text("9\n")
        interfaces = await host._find_interfaces(no_devices, host._process)
        samples = list(NET.collect(host.read_files(NET.files(VmFacts(interfaces=interfaces)))))
        received = {sample.subject: sample.values["receive_bytes_total"] for sample in samples}
        assert received == {"macvtap0": 7, "ens1f0v3": 100}
    finally:
        host.close()


async def no_devices(commands: Sequence[Command]) -> list[CommandResult]:
    return [[] for _ in commands]
