"""Types of host data about a VM: threads, network interfaces, and requests for files in /proc and /sys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class ProcessOrThread:
    """A process, or one thread of a process. Linux calls both of them tasks.

    Attributes:
        id: process id or thread id on this host.
        name: value of the thread's label: the index of a vCPU or the id of an iothread; empty for the process.
        extra_values: values of the sample that do not come from a `KernelFilesToRead`, by name, such as `qom_path`.
    """

    id: int
    name: str = ""
    extra_values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualFunctionLocation:
    """A virtual function (SR-IOV) of a network device.

    Attributes:
        physical_interface: name of the network interface of its physical function.
        number: the number of the virtual function within its physical function.
        address: its PCI address, such as 0000:01:10.3.
    """

    physical_interface: str
    number: int
    address: str


@dataclass(frozen=True, slots=True)
class VmHostInterface:
    """A network interface on the host that a VM's process has open, or a virtual function that was passed through to the VM.

    Attributes:
        name: name of the interface on the host, such as tap0, or ens1f0v3 for a virtual function.
        extra_values: values of the sample that no poll reads from kernel files, by name, such as the kind of the interface.
        directions_swapped: whether the guest receives the packets that the interface counts as sent. True for a tap; False for a macvtap
            and a virtual function.
        same_netns: whether the interface is in the agent's network namespace.
        vf: the virtual function; None for a tap and a macvtap.
    """

    name: str
    extra_values: Mapping[str, Any] = field(default_factory=dict)
    directions_swapped: bool = True
    same_netns: bool = True
    vf: VirtualFunctionLocation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class KernelFilesToRead:
    """A request for files of one directory in /proc, /sys or a cgroup.

    Callers use the same object at each poll, because the files stay open between polls.

    Attributes:
        directory: path relative to the process's directory in /proc; empty for this directory itself. A path with a leading slash is an
            absolute path on the host.
        names: names of the files. A name that ends with a slash is a directory. For a directory, the reply contains the number of
            entries.
        subject: the task, interface or cgroup that the files describe.
    """

    directory: str
    names: tuple[str, ...]
    subject: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class VirtualFunctionCountersToRead(KernelFilesToRead):
    """A request for the counters and the MAC address of a virtual function.

    The names in `names` are the kernel's names of the counters, and `mac` for the MAC address. The kernel has no file with the counters.
    The agent queries the counters at an interval. The reply to a request contains the result of the last query.

    Attributes:
        vf: the virtual function.
    """

    vf: VirtualFunctionLocation = field(kw_only=True)


class KernelFileContents(NamedTuple):
    """The contents of the requested files.

    Attributes:
        request: the request that this object answers.
        contents: the content of each file, in the order of the names; None if the file cannot be read.
    """

    request: KernelFilesToRead
    contents: Sequence[bytes | None]
