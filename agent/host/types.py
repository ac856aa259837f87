"""Types of the host's data about a VM: its threads, its network interfaces, and requests for files of the kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A process or one of its threads.

    Attributes:
        id: its pid or thread id on this host.
        name: its label: a vCPU's index or an iothread's id; empty for the process.
        values: values that no file has, by the paths of the metrics' fields.
    """

    id: int
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface on the host that a VM's process has open.

    Attributes:
        name: its name on the host, such as tap0.
        values: values that no file has, by the paths of the metrics' fields.
        directions_swapped: whether the interface transmits the packets that the guest receives; true for a tap, false for a macvtap.
        same_netns: whether it is in the agent's own network namespace.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    directions_swapped: bool = True
    same_netns: bool = True


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A request for the content of a file in /proc, /sys or a cgroup.

    Attributes:
        path: relative to the process's directory under /proc; with a leading slash, absolute on the host.
        subject: the task, interface or cgroup that the file is about; the reply has the same subject.
        count_entries: whether `path` is a directory whose entries are counted.
    """

    path: str
    subject: Any = None
    count_entries: bool = False


@dataclass(frozen=True, slots=True)
class FileReply:
    """The content of a requested file.

    Attributes:
        request: the request.
        text: the content, or the number of entries; None if the file or directory cannot be read.
    """

    request: FileRequest
    text: str | None
