"""QEMU's processes on this host, out of /proc. Every read is bounded; what cannot be read is not there."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MAX_BYTES = 1 << 20
"""A command line past this is cut; a QEMU with a hundred disks has some 40 KB."""

_QEMU = re.compile(r"^(qemu-system-[a-z0-9_-]+|qemu-kvm|qemu|kvm|kvm-spice)$")


def read(path: Path | str) -> bytes:
    """Return the beginning of a file of /proc, or nothing where it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - the path need not be one
        return file.read(MAX_BYTES)
    return b""


def pids(proc: Path = PROC) -> Iterator[int]:
    """Yield the processes that there are."""
    return (int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 - names, not paths


def arguments(pid: int, proc: Path = PROC) -> list[str]:
    """Return a process's command line; nothing where there is none, or we may not know."""
    text = read(proc / str(pid) / "cmdline").removesuffix(b"\0")
    return [part.decode("utf-8", "backslashreplace") for part in text.split(b"\0")] if text else []


def is_qemu(argv: list[str]) -> bool:
    """Return whether a command line is that of a QEMU that runs a VM."""
    return bool(argv) and _QEMU.match(os.path.basename(argv[0])) is not None  # noqa: PTH119 - argv[0] is any text


def qemu_of(pid: int | None, proc: Path = PROC) -> int | None:
    """Return the process if it is a QEMU that we can see; one that passed a socket on, or is in another namespace, is none."""
    return pid if pid and is_qemu(arguments(pid, proc)) else None


def qemus(proc: Path = PROC) -> list[int]:
    """Return the processes that are QEMUs which run VMs, lowest first."""
    return sorted(pid for pid in pids(proc) if is_qemu(arguments(pid, proc)))
