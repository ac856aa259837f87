"""Finds QEMU processes in /proc and reads their command lines. Every read has a size limit. An unreadable file counts as empty."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MAX_FILE_BYTES = 1 << 20
"""Maximum number of bytes to read from a file. The command line of a QEMU with a hundred disks has about 40 KB."""

_QEMU = re.compile(r"^(qemu-system-[a-z0-9_-]+|qemu-kvm|qemu|kvm|kvm-spice)$")


def read_file(path: Path | str) -> bytes:
    """Return the first MAX_FILE_BYTES of a file; empty if the file cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - the path may be a string
        return file.read(MAX_FILE_BYTES)
    return b""


def list_pids(proc: Path = PROC) -> Iterator[int]:
    """Yield the pids of all processes."""
    return (int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 - names, not paths


def read_command_line(pid: int, proc: Path = PROC) -> list[str]:
    """Return the command line of a process, the program first; empty if the kernel has none or permission is denied."""
    text = read_file(proc / str(pid) / "cmdline").removesuffix(b"\0")
    return [part.decode("utf-8", "backslashreplace") for part in text.split(b"\0")] if text else []


def is_qemu_command_line(argv: list[str]) -> bool:
    """Return whether a command line starts a QEMU system emulator."""
    return bool(argv) and _QEMU.match(os.path.basename(argv[0])) is not None  # noqa: PTH119 - argv[0] is any text


def pid_if_qemu(pid: int | None, proc: Path = PROC) -> int | None:
    """Return `pid` if this process runs QEMU, else None.

    The peer of a monitor's socket may be another process that passed the socket to QEMU, or a process in another pid namespace.
    """
    return pid if pid and is_qemu_command_line(read_command_line(pid, proc)) else None


def list_qemu_pids(proc: Path = PROC) -> list[int]:
    """Return the pids of all QEMU system emulators, sorted."""
    return sorted(pid for pid in list_pids(proc) if is_qemu_command_line(read_command_line(pid, proc)))


def start_ticks(pid: int, proc: Path = PROC) -> int:
    """Return when a process started, in clock ticks since the host's boot; 0 if unknown."""
    fields = read_file(proc / str(pid) / "stat").rpartition(b") ")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else 0
