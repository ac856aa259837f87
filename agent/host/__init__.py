"""What the host knows of a VM: its process (find, proc), its interfaces (taps), its devices (device), its manager's files (libvirt)."""

from agent.host.block_device import device_size
from agent.host.find import QemuProcess, UnknownProcessError, find
from agent.host.interfaces import interfaces_of
from agent.host.libvirt_metadata import LabelsConfig, labels_of
from agent.host.process import Process

__all__ = [
    "LabelsConfig",
    "Process",
    "QemuProcess",
    "UnknownProcessError",
    "device_size",
    "find",
    "interfaces_of",
    "labels_of",
]
