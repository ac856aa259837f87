"""What the host knows of a VM: its process (find, proc), its interfaces (taps), its devices (device), its manager's files (libvirt)."""

from agent.host.device import device_size
from agent.host.find import Found, UnknownProcessError, find
from agent.host.libvirt import LabelsConfig, labels_of
from agent.host.proc import Process
from agent.host.taps import interfaces_of

__all__ = [
    "Found",
    "LabelsConfig",
    "Process",
    "UnknownProcessError",
    "device_size",
    "find",
    "interfaces_of",
    "labels_of",
]
