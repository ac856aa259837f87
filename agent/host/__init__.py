"""What the host's kernel knows of a VM: its process, found and read (proc), and the network interfaces that it has open (taps)."""

from agent.host.find import Found, UnknownProcessError, find
from agent.host.proc import Process
from agent.host.taps import interfaces_of

__all__ = ["Found", "Process", "UnknownProcessError", "find", "interfaces_of"]
