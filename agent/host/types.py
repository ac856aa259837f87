"""Types of host data about a VM: threads, network interfaces, and requests for files in /proc and /sys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A process or one of its threads.

    Attributes:
        id: process id or thread id on this host.
        name: value of the thread's label: the index of a vCPU or the id of an iothread; empty for the process.
        values: values by name that do not come from a `FileRequest`, such as `qom_path`.
    """

    id: int
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface on the host that a VM's process has open.

    Attributes:
        name: name of the interface on the host, such as tap0.
        values: values by name that do not come from a `FileRequest`, such as the kind of the interface.
        directions_swapped: True for a tap: it transmits the packets that the guest receives. False for a macvtap.
        same_netns: whether the interface is in the agent's network namespace.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    directions_swapped: bool = True
    same_netns: bool = True


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A request for the content of a file in /proc, /sys or a cgroup.

    Attributes:
        path: path relative to the process's directory in /proc. With a leading slash it is an absolute path on the host.
        subject: the task, interface or cgroup that the file describes.
        count_entries: True to count the entries of a directory instead of reading a file.
    """

    path: str
    subject: Any = None
    count_entries: bool = False


@dataclass(frozen=True, slots=True)
class FileReply:
    """The content of a requested file.

    Attributes:
        request: the request that this object answers.
        text: content of the file, or the number of entries of the directory; None if it cannot be read.
    """

    request: FileRequest
    text: str | None
