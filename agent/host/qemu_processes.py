"""QEMU processes on this host, from /proc. Every read is bounded. A file that cannot be read counts as empty."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MAX_BYTES = 1 << 20
"""Maximum size of a command line; longer ones are truncated. A QEMU with a hundred disks has about 40 KB."""

_QEMU = re.compile(r"^(qemu-system-[a-z0-9_-]+|qemu-kvm|qemu|kvm|kvm-spice)$")


def read(path: Path | str) -> bytes:
    """Return a file of /proc up to MAX_BYTES; empty if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - the path may be a string
        return file.read(MAX_BYTES)
    return b""


def pids(proc: Path = PROC) -> Iterator[int]:
    """Yield the pids of all processes."""
    return (int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 - names, not paths


def arguments(pid: int, proc: Path = PROC) -> list[str]:
    """Return a process's command line; empty if it has none or permission is denied."""
    text = read(proc / str(pid) / "cmdline").removesuffix(b"\0")
    return [part.decode("utf-8", "backslashreplace") for part in text.split(b"\0")] if text else []


def is_qemu(argv: list[str]) -> bool:
    """Return whether a command line is that of a QEMU system emulator."""
    return bool(argv) and _QEMU.match(os.path.basename(argv[0])) is not None  # noqa: PTH119 - argv[0] is any text


def pid_if_qemu(pid: int | None, proc: Path = PROC) -> int | None:
    """Return the pid if it is a visible QEMU. None if not: the process passed the socket to QEMU, or is in another pid namespace."""
    return pid if pid and is_qemu(arguments(pid, proc)) else None


def list_qemus(proc: Path = PROC) -> list[int]:
    """Return the pids of all QEMU system emulators, sorted."""
    return sorted(pid for pid in pids(proc) if is_qemu(arguments(pid, proc)))
