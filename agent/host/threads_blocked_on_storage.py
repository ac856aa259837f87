"""Threads of a process that wait in the kernel for storage, from /proc/PID/task. Reading these files never waits for storage.

A thread in state D (disk sleep) waits for storage. A thread in state S (sleeping) waits for storage if the thread is in a system call that
accesses files, for example on FUSE. The agent can read the system call and its file only with the permission to trace the process (ptrace).
Without this permission, the agent finds only threads in state D.
"""

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from agent.host.process import Process
from agent.host.procfs import split_stat

MAX_THREADS: Final = 256
"""Maximum number of threads to read. QEMU has by default up to 64 threads that access files."""

_STORAGE_CALLS: Final[Mapping[str, Mapping[int, str]]] = {
    "x86_64": {
        17: "pread64",
        18: "pwrite64",
        74: "fsync",
        75: "fdatasync",
        77: "ftruncate",
        209: "io_submit",
        277: "sync_file_range",
        285: "fallocate",
        295: "preadv",
        296: "pwritev",
        327: "preadv2",
        328: "pwritev2",
    },
    "aarch64": {
        2: "io_submit",
        46: "ftruncate",
        47: "fallocate",
        67: "pread64",
        68: "pwrite64",
        69: "preadv",
        70: "pwritev",
        82: "fsync",
        83: "fdatasync",
        84: "sync_file_range",
        286: "preadv2",
        287: "pwritev2",
    },
}
"""System calls that QEMU makes for a guest's I/O requests, by machine and number."""

_CALL_WITHOUT_FILE: Final = "io_submit"
"""The only system call in `_STORAGE_CALLS` whose first argument is not a file descriptor."""


@dataclass(frozen=True, slots=True)
class ThreadBlockedOnStorage:
    """A thread that waits in the kernel for storage.

    Attributes:
        id: the thread id.
        timeslices: how often the thread was scheduled. The thread has not run between two reads if both return the same number.
        path: path of the file that the thread waits for; empty if unknown.
    """

    id: int
    timeslices: int
    path: str = ""


def find_threads_blocked_on_storage(
    process: Process, skip: Collection[str] = (), machine: str = platform.machine()
) -> list[ThreadBlockedOnStorage]:
    """Return the threads of a process that wait in the kernel for storage.

    Args:
        process: the process.
        skip: ids of threads to leave out, such as the vCPU threads, which wait for the guest.
        machine: the machine's architecture, such as `x86_64`. The numbers of system calls depend on the architecture.
    """
    calls = _STORAGE_CALLS.get(machine, {})
    ids = [name for name in process.list_directory("task") if name not in skip][:MAX_THREADS]
    threads = (_read_thread(process, name, calls) for name in ids if name.isdecimal())
    return [thread for thread in threads if thread is not None]


def _read_thread(process: Process, name: str, calls: Mapping[int, str]) -> ThreadBlockedOnStorage | None:
    words = split_stat((process.read_text_file(f"task/{name}/stat") or "").encode())
    state = words[0] if words else b""
    if state not in (b"D", b"S"):
        return None
    number, *arguments = (process.read_text_file(f"task/{name}/syscall") or "").split() or [""]
    call = calls.get(int(number)) if number.isdecimal() else None
    if state == b"S" and call is None:
        return None
    slices = (process.read_text_file(f"task/{name}/schedstat") or "").split()
    # Leave out a thread whose number of time slices is unknown. Only this number shows whether the thread runs between two reads.
    if len(slices) < 3 or not slices[2].isdecimal():
        return None
    return ThreadBlockedOnStorage(int(name), int(slices[2]), _path_of_file(process, call, arguments))


def _path_of_file(process: Process, call: str | None, arguments: list[str]) -> str:
    """Return the path of the file that a system call accesses; empty if the path is unknown."""
    if call is None or call == _CALL_WITHOUT_FILE or not arguments:
        return ""
    try:
        descriptor = int(arguments[0], 16)
    except ValueError:
        return ""
    return (process.read_link(f"fd/{descriptor}") or "").removesuffix(" (deleted)")
