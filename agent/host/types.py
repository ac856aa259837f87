"""What the host tells of a VM: its threads, its network interfaces, and files of the kernel that are read for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A process or one of its threads, and what is known of it that no file need be read for.

    Attributes:
        id: its pid or thread id, as this host counts.
        name: its label: a vCPU's index, an iothread's id; empty for the process.
        values: what is known, as the catalogue's paths name it.
    """

    id: int
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface on the host that a VM's process has open.

    Attributes:
        name: the host's name of it, such as tap0.
        values: what is known of it, as the catalogue's paths name it.
        swapped: whether the host sends what the guest receives: so with a tap, not with a macvtap.
        near: whether it is in the agent's own network namespace.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    swapped: bool = True
    near: bool = True


@dataclass(frozen=True, slots=True)
class File:
    """A question that the host's kernel answers, without QEMU: a file, read whole.

    Attributes:
        path: in the folder of the VM's process under /proc; with a / in front, on the host.
        of: what it is about; comes back with the answer.
        entries: whether what is wanted is the number of entries of this folder.
    """

    path: str
    of: Any = None
    entries: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """What a File holds.

    Attributes:
        file: the question.
        text: the answer; None where it cannot be read.
    """

    file: File
    text: str | None
