"""What the host knows of a VM: its process (find, proc), its network interfaces (taps), what its manager wrote down (libvirt)."""

from agent.host.find import Found, UnknownProcessError, find
from agent.host.libvirt import Labels, labels_of
from agent.host.proc import Process
from agent.host.taps import interfaces_of

__all__ = ["Found", "Labels", "Process", "UnknownProcessError", "find", "interfaces_of", "labels_of"]
