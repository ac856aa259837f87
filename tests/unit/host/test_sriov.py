"""Virtual functions of a process: found by VFIO and sysfs, matched to QEMU's devices by PCI address."""

from pathlib import Path

import pytest

from agent.host.interfaces import find_process_interfaces
from agent.host.process import Process
from agent.host.sriov import full_pci_address, passthrough_qdev_ids
from agent.host.types import VirtualFunctionLocation


class Machine:
    """A tree of /proc and /sys with one process and one physical function with eight virtual functions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("70/fd", "70/fdinfo", "70/ns", "self/ns"):
            (root / "proc" / name).mkdir(parents=True)
        for name in ("70", "self"):
            (root / f"proc/{name}/ns/net").symlink_to("net:[1]")
        self.write_command_line()
        self.physical = root / "sys/devices/pci0/0000:01:00.0"
        (self.physical / "net/ens1f0").mkdir(parents=True)
        for number in range(8):
            address = f"0000:01:10.{number}"
            device = root / f"sys/devices/pci0/{address}"
            device.mkdir()
            (device / "physfn").symlink_to("../0000:01:00.0")
            (self.physical / f"virtfn{number}").symlink_to(f"../{address}")
            self.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0/{address}")
            self.link(f"sys/kernel/iommu_groups/{40 + number}/devices/{address}", f"../../../../devices/pci0/{address}")
            self.link(f"sys/class/vfio-dev/vfio{number}/device", f"../../../devices/pci0/{address}")
        self.descriptors = 0

    def link(self, name: str, target: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def write_command_line(self, *arguments: str) -> None:
        (self.root / "proc/70/cmdline").write_text("\0".join(("qemu-system-x86_64", *arguments, "")))

    def open_descriptor(self, target: str) -> None:
        self.descriptors += 1
        (self.root / f"proc/70/fd/{self.descriptors}").symlink_to(target)

    def interfaces(self) -> list[tuple[str, dict[str, str], VirtualFunctionLocation | None]]:
        process = Process(70, self.root)
        try:
            return [(each.name, dict(each.extra_values), each.vf) for each in find_process_interfaces(process, {})]
        finally:
            process.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def found(number: int, **values: str) -> tuple[str, dict[str, str], VirtualFunctionLocation]:
    address = f"0000:01:10.{number}"
    return (
        f"ens1f0v{number}",
        {"kind": "vf", "host_address": address, **values},
        VirtualFunctionLocation("ens1f0", number, address),
    )


@pytest.mark.parametrize("target", ["/dev/vfio/43", "/dev/vfio/noiommu-43", "/dev/vfio/devices/vfio3"])
def test_a_function_is_found_by_its_group_and_by_its_device(machine: Machine, target: str) -> None:
    for other in ("/dev/vfio/vfio", "/dev/vfio/99", "/dev/vfio/devices/vfio99", "anon_inode:[vfio-device]"):
        machine.open_descriptor(other)
    machine.open_descriptor(target)
    assert machine.interfaces() == [found(3)]


@pytest.mark.parametrize(
    "device",
    [
        "vfio-pci,host=0000:01:10.3,id=hostdev0",
        "vfio-pci,host=01:10.3,id=hostdev0,bus=pci.0",
        '{"driver":"vfio-pci","host":"0000:01:10.3","id":"hostdev0","bootindex":1}',
    ],
)
def test_a_function_has_the_id_of_qemus_device(machine: Machine, device: str) -> None:
    machine.write_command_line("-device", "virtio-net-pci,id=net0", "-device", device, "-device", "{bad")
    machine.open_descriptor("/dev/vfio/43")
    machine.open_descriptor("/dev/vfio/44")
    assert machine.interfaces() == [found(3, device="hostdev0"), found(4)]


def test_a_function_of_another_network_namespace_is_found(machine: Machine) -> None:
    (machine.root / "proc/70/ns/net").unlink()
    (machine.root / "proc/70/ns/net").symlink_to("net:[2]")
    machine.open_descriptor("/dev/vfio/40")
    assert machine.interfaces() == [found(0)]


def test_a_device_without_a_physical_function_is_none(machine: Machine) -> None:
    gpu = "0000:65:00.0"
    (machine.root / f"sys/devices/pci0/{gpu}").mkdir()
    machine.link(f"sys/bus/pci/devices/{gpu}", f"../../../devices/pci0/{gpu}")
    machine.link(f"sys/kernel/iommu_groups/50/devices/{gpu}", f"../../../../devices/pci0/{gpu}")
    machine.open_descriptor("/dev/vfio/50")
    assert machine.interfaces() == []


def test_a_physical_function_without_one_network_interface_has_no_counters(machine: Machine) -> None:
    machine.open_descriptor("/dev/vfio/43")
    (machine.physical / "net/ens1f1").mkdir()
    assert machine.interfaces() == []
    for interface in ("ens1f0", "ens1f1"):
        (machine.physical / "net" / interface).rmdir()
    assert machine.interfaces() == []


def test_addresses_are_compared_with_their_domain_and_in_lower_case() -> None:
    assert [full_pci_address(text) for text in ("01:1A.3", "0000:01:1a.3", "10000:01:00.0")] == [
        "0000:01:1a.3",
        "0000:01:1a.3",
        "10000:01:00.0",
    ]
    assert (
        passthrough_qdev_ids(["-device", "vfio-pci,host=01:10.3", "-device", "e1000,host=01:10.3,id=x", "-device"])
        == {}
    )
