"""Identification of the QEMU process behind a monitor, once at each attach.

There are two clues: the pid that opened the monitor's socket (SO_PEERCRED), and the ids of QEMU's vCPU threads.
Each clue alone can be wrong: a manager may have opened the socket and passed it to QEMU, and a QEMU in a pid namespace reports the thread
ids of that namespace. A process is returned only if the clues agree.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.host.process import ROOT, Process
from agent.host.procfs import keyed_numbers

_QEMU = re.compile(r"Name:\s*(qemu|kvm)")
"""Name of QEMU's process unless `-name process=` changes it."""

_tgid = keyed_numbers("Tgid")

_MAX_THREADS = 4096
"""Maximum number of threads to search for ids of another pid namespace."""


class UnknownProcessError(Exception):
    """The process cannot be identified. The message is the cause, for the operator."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """An identified QEMU process.

    Attributes:
        process: the process.
        threads: thread ids on this host, by the ids that QEMU reports.
        start_seconds: start time in seconds since the epoch.
        cgroup: directory of its cgroup (version 2) on the host, or None.
        cgroup_name: its cgroup, or empty.
    """

    process: Process
    threads: Mapping[int, int]
    start_seconds: float | None
    cgroup: str | None
    cgroup_name: str


def find_process(socket_owner: int | None, threads: Sequence[int], root: Path = ROOT) -> QemuProcess:
    """Return the process of a QEMU. Blocks for some milliseconds.

    Args:
        socket_owner: pid that opened the other end of the monitor's socket, or None if unknown.
        threads: ids of its vCPU threads and iothreads, as QEMU reports them.
        root: the directory that holds /proc and /sys.

    Raises:
        UnknownProcessError: the process cannot be identified.
    """
    if socket_owner is None:
        raise UnknownProcessError(
            "its monitor is not a Unix socket, or its process is in a pid namespace outside the agent's"
        )
    process = _by_pid(socket_owner, threads, root) or _by_threads(threads, root)
    if process is None:
        raise UnknownProcessError(
            f"process {socket_owner} opened its monitor's socket but is not QEMU, and no process has the threads that QEMU reports"
        )
    ids = _ids(process, threads)
    assert ids is not None
    name = _cgroup_name(process)
    return QemuProcess(process, ids, _start(process), _cgroup(process, name), name)


def _by_pid(pid: int, threads: Sequence[int], root: Path) -> Process | None:
    """Return this process if it has these threads. If no threads are given, its name must be QEMU's."""
    try:
        process = Process(pid, root)
    except OSError:
        return None
    if (_ids(process, threads) is not None) if threads else _looks_like_qemu(process):
        return process
    process.close()
    return None


def _by_threads(threads: Sequence[int], root: Path) -> Process | None:
    """Return the process with these threads. Thread ids alone may match another process: its name and pid namespace are checked, too."""
    if not threads:
        return None
    try:
        first = Process(threads[0], root)  # /proc has an unlisted directory for each thread
    except OSError:
        return None
    leader = _tgid(first.read("status") or "").get("Tgid")
    first.close()
    if leader is None:
        return None
    process = _by_pid(leader, threads, root)
    if process is not None and not (_looks_like_qemu(process) and _depth(process) == 1):
        process.close()
        return None
    return process


def _looks_like_qemu(process: Process) -> bool:
    return _QEMU.match(process.read("status") or "") is not None


def _namespaced(status: str | None) -> list[int]:
    """Return a thread's ids from a `status` file: first in the agent's pid namespace, last in its own (Linux 4.1)."""
    line = next((line for line in (status or "").splitlines() if line.startswith("NSpid:")), "")
    return [int(part) for part in line.split()[1:] if part.isdecimal()]


def _depth(process: Process) -> int:
    return len(_namespaced(process.read("status"))) or 1


def _ids(process: Process, threads: Sequence[int]) -> Mapping[int, int] | None:
    """Map the thread ids that QEMU reports to the ids on this host; None if the process lacks any of them."""
    if _depth(process) == 1:
        known = {thread: thread for thread in threads if process.read(f"task/{thread}/stat") is not None}
    else:
        tasks = [name for name in process.names("task")[:_MAX_THREADS] if name.isdecimal()]
        inner = {task: _namespaced(process.read(f"task/{task}/status")) for task in tasks}
        known = {ids[-1]: int(task) for task, ids in inner.items() if ids and ids[-1] in threads}
    return known if known.keys() >= set(threads) else None


def _start(process: Process) -> float | None:
    """Return the start time in seconds since the epoch; the kernel reports it in clock ticks since boot."""
    fields = (process.read("stat") or "").rpartition(")")[2].split()
    if len(fields) < 20 or not fields[19].isdecimal():
        return None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"), 2)


def _cgroup_name(process: Process) -> str:
    lines = (process.read("cgroup") or "").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::/")), "")


def _cgroup(process: Process, name: str) -> str | None:
    """Return the directory of the process's cgroup, or of the nearest one above it that counts memory: libvirt's for threads do not."""
    while name not in ("", "/") and ".." not in name.split("/"):
        directory = f"/sys/fs/cgroup{name}"
        if process.read(f"{directory}/memory.current") is not None:
            return directory
        name = name.rpartition("/")[0]
    return None
