"""Network devices of a VM that `qmp-agent doctor` explains: without counters, or with counters of a virtual function."""

from pathlib import Path

from agent.cli.doctor.argv import parse_argv
from agent.cli.doctor.network_devices import describe_network_devices_without_tap
from agent.cli.doctor.rendering import render_reports
from tests.lab.manager_hosts import FakeProcHost
from tests.unit.host.test_sriov import Machine


def test_backends_without_counters_are_named_with_who_counts_instead(tmp_path: Path) -> None:
    line = "qemu -netdev vhost-user,id=net0,chardev=c0 -netdev tap,id=net1 -netdev vhost-vdpa,id=net2,vhostdev=/dev/vhost-vdpa-0"
    user, vdpa = describe_network_devices_without_tap(parse_argv(line.split()), 70, tmp_path)
    assert user.startswith(
        "network net0 (vhost-user): no counters: the switch at its socket counts the traffic (Open vSwitch"
    )
    assert vdpa.startswith("network net2 (vhost-vdpa): no counters: the device counts the traffic")


def test_a_passed_through_network_device_is_a_function_or_has_no_counters(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for group, (address, kind) in enumerate((("0000:65:00.0", "0x030000"), ("0000:66:00.0", "0x020000")), 60):
        (tmp_path / f"sys/devices/pci0/{address}").mkdir()
        (tmp_path / f"sys/devices/pci0/{address}/class").write_text(f"{kind}\n")
        machine.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0/{address}")
        machine.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", f"../../../../devices/pci0/{address}")
        machine.open_descriptor(f"/dev/vfio/{group}")
    machine.open_descriptor("/dev/vfio/43")
    function, whole = describe_network_devices_without_tap(parse_argv(["qemu"]), 70, tmp_path)
    assert function.startswith("network 0000:01:10.3: VF 3 of ens1f0, counted by its driver")
    assert whole.startswith("network 0000:66:00.0: no counters: the device is no VF")


def test_the_report_of_a_vm_has_these_lines(tmp_path: Path) -> None:
    host = FakeProcHost(tmp_path)
    host.add_process(70, "qemu-system-x86_64 -name a -netdev vhost-user,id=net0,chardev=c0")
    assert any("net0 (vhost-user): no counters" in line for line in render_reports(host.inspect()))
