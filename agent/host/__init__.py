"""The host's data about VMs: processes, interfaces, block devices, sockets, libvirt's files. Only this package reads /proc and /sys."""

from agent.host.block_device import device_identity, device_size
from agent.host.interfaces import interfaces_of
from agent.host.libvirt_metadata import LabelsConfig, read_libvirt_labels
from agent.host.process import Process
from agent.host.process_lookup import QemuProcess, UnknownProcessError, find_process

__all__ = [
    "LabelsConfig",
    "Process",
    "QemuProcess",
    "UnknownProcessError",
    "device_identity",
    "device_size",
    "find_process",
    "interfaces_of",
    "read_libvirt_labels",
]
