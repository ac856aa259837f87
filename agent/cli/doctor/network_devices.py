"""Describes the network devices of a VM whose traffic the host's kernel does not count at a tap interface."""

from collections.abc import Iterator
from pathlib import Path

from agent.cli.doctor.argv import CommandLine
from agent.host.interfaces import descriptor_targets
from agent.host.process import Process
from agent.host.sriov import locate_virtual_function, passthrough_addresses
from agent.model.record import sanitize

_NETWORK_CLASS = "0x02"
"""First digits of the PCI class of network devices."""

_BACKENDS_WITHOUT_COUNTERS = {
    "vhost-user": "the switch at its socket counts the traffic (Open vSwitch, VPP, passt), and the host's kernel does not",
    "vhost-vdpa": "the device counts the traffic (`vdpa dev vstats show`), and the host's kernel does not",
}
"""Network backends without counters in the kernel. The text says where the traffic is counted instead."""


def describe_network_devices_without_tap(command_line: CommandLine, pid: int, root: Path) -> tuple[str, ...]:
    """Return a text for each network device without a tap interface: where the device's traffic is counted, or that no counter exists."""
    return tuple(
        sanitize(line, 512) for line in (*_describe_backends(command_line), *_describe_passthrough_devices(pid, root))
    )


def _describe_backends(command_line: CommandLine) -> Iterator[str]:
    for name, kind in command_line.netdevs:
        if kind in _BACKENDS_WITHOUT_COUNTERS:
            yield f"network {name} ({kind}): no counters: {_BACKENDS_WITHOUT_COUNTERS[kind]}"


def _describe_passthrough_devices(pid: int, root: Path) -> Iterator[str]:
    try:
        process = Process(pid, root)
    except OSError:
        return
    try:
        for address in passthrough_addresses(process, descriptor_targets(process).values()):
            vf = locate_virtual_function(process, address)
            if vf is not None:
                yield (
                    f"network {address}: VF {vf.number} of {vf.physical_interface}, "
                    "counted by its driver if the driver has counters of VFs"
                )
            elif (process.read_text_file(f"/sys/bus/pci/devices/{address}/class") or "").startswith(_NETWORK_CLASS):
                yield (
                    f"network {address}: no counters: the device is no VF, or its physical function has no network interface "
                    "in the agent's network namespace"
                )
    finally:
        process.close()
