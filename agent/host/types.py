"""Host-side facts of a VM: its threads, its network interfaces, and requests for files of the kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A process or one of its threads.

    Attributes:
        id: its pid or thread id on this host.
        name: its label: a vCPU's index or an iothread's id; empty for the process.
        values: known values that need no file, by the catalogue's paths.
    """

    id: int
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface on the host that a VM's process has open.

    Attributes:
        name: its name on the host, such as tap0.
        values: known values, by the catalogue's paths.
        directions_swapped: whether the host transmits what the guest receives; true for a tap, false for a macvtap.
        same_netns: whether it is in the agent's own network namespace.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    directions_swapped: bool = True
    same_netns: bool = True


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file of the kernel to read whole.

    Attributes:
        path: relative to the process's directory under /proc; with a leading slash, absolute on the host.
        subject: what the file is about; returned with the reply.
        entries: whether to count the entries of this directory instead.
    """

    path: str
    subject: Any = None
    entries: bool = False


@dataclass(frozen=True, slots=True)
class FileReply:
    """The content of a requested file.

    Attributes:
        request: the request.
        text: the content; None if the file cannot be read.
    """

    request: FileRequest
    text: str | None
