"""Identifies the QEMU process behind a monitor, at each attach, by the socket's owner and by QEMU's thread ids.

The socket's owner is the process that opened the other end of the monitor's socket (SO_PEERCRED). The owner may be a manager that passed
the socket to QEMU. QEMU reports the ids of its vCPU threads and iothreads. A QEMU in a pid namespace reports the ids in its own namespace.
Other threads on the host may have the same ids. The agent checks both the owner and the thread ids, because either alone can mislead.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.host.process import ROOT, Process

_QEMU_NAME = re.compile(r"Name:\s*(qemu|kvm)")
"""Matches the `Name` line of QEMU's /proc/PID/status, unless `-name process=` changes the name."""

_TGID = re.compile(r"^Tgid:\s+([0-9]{1,10})$", re.MULTILINE)

_MAX_THREADS = 4096
"""Maximum number of threads whose files the agent reads to translate thread ids of a pid namespace."""


class UnidentifiedProcessError(Exception):
    """The process cannot be identified. The message is the cause, for the operator."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """An identified QEMU process.

    Attributes:
        process: the process.
        threads: thread ids on this host, by the ids that QEMU reports.
        start_seconds: start time in seconds since the epoch; None if unknown.
        cgroup: directory below /sys/fs/cgroup with the process's memory and CPU usage; None without cgroup version 2.
        cgroup_name: the process's cgroup (version 2), as in /proc/PID/cgroup; empty if the process has none.
    """

    process: Process
    threads: Mapping[int, int]
    start_seconds: float | None
    cgroup: str | None
    cgroup_name: str


def identify_qemu_process(socket_owner: int | None, threads: Sequence[int], root: Path = ROOT) -> QemuProcess:
    """Return the process of a QEMU. The call blocks for some milliseconds.

    Args:
        socket_owner: pid that opened the other end of the monitor's socket; None if unknown.
        threads: ids of QEMU's vCPU threads and iothreads, as QEMU reports them.
        root: the directory that holds /proc and /sys.

    Raises:
        UnidentifiedProcessError: the process cannot be identified.
    """
    if socket_owner is None:
        raise UnidentifiedProcessError(
            "the monitor is not a Unix socket, or QEMU's process is in a pid namespace that the agent cannot see"
        )
    process = _process_by_pid(socket_owner, threads, root) or _process_by_threads(threads, root)
    if process is None:
        raise UnidentifiedProcessError(
            f"process {socket_owner} opened the monitor's socket but is not QEMU, and no process has the threads that QEMU reports"
        )
    ids = _map_thread_ids(process, threads)
    assert ids is not None
    name = _cgroup_name(process)
    return QemuProcess(process, ids, _start_time(process), _cgroup_directory(process, name), name)


def _process_by_pid(pid: int, threads: Sequence[int], root: Path) -> Process | None:
    """Return the process with this pid; None if the process lacks one of the threads.

    Return None also if `threads` is empty and the process's name is not QEMU's.
    """
    try:
        process = Process(pid, root)
    except OSError:
        return None
    if (_map_thread_ids(process, threads) is not None) if threads else _looks_like_qemu(process):
        return process
    process.close()
    return None


def _process_by_threads(threads: Sequence[int], root: Path) -> Process | None:
    """Return the QEMU in the agent's pid namespace that has these threads; None if no QEMU has them.

    The process's name also has to be QEMU's. The ids may come from another pid namespace, and any process may have threads with the same
    ids in the agent's namespace.
    """
    if not threads:
        return None
    try:
        first = Process(threads[0], root)  # /proc has a directory for each thread, which a listing does not show
    except OSError:
        return None
    leader = _TGID.search(first.read_text_file("status") or "")
    first.close()
    if leader is None:
        return None
    process = _process_by_pid(int(leader[1]), threads, root)
    if process is not None and not (_looks_like_qemu(process) and _pid_namespace_depth(process) == 1):
        process.close()
        return None
    return process


def _looks_like_qemu(process: Process) -> bool:
    return _QEMU_NAME.match(process.read_text_file("status") or "") is not None


def _ids_in_pid_namespaces(status: str | None) -> list[int]:
    """Return a thread's id in each of its pid namespaces, from a `status` file (Linux 4.1).

    The list begins with the id in the agent's namespace, and ends with the id in the innermost namespace.
    """
    line = next((line for line in (status or "").splitlines() if line.startswith("NSpid:")), "")
    return [int(part) for part in line.split()[1:] if part.isdecimal()]


def _pid_namespace_depth(process: Process) -> int:
    return len(_ids_in_pid_namespaces(process.read_text_file("status"))) or 1


def _map_thread_ids(process: Process, threads: Sequence[int]) -> Mapping[int, int] | None:
    """Return the thread ids on this host by the ids that QEMU reports; None if the process lacks one of these threads."""
    if _pid_namespace_depth(process) == 1:
        host_ids = {thread: thread for thread in threads if process.read_text_file(f"task/{thread}/stat") is not None}
    else:
        tasks = [name for name in process.list_directory("task")[:_MAX_THREADS] if name.isdecimal()]
        inner = {task: _ids_in_pid_namespaces(process.read_text_file(f"task/{task}/status")) for task in tasks}
        host_ids = {ids[-1]: int(task) for task, ids in inner.items() if ids and ids[-1] in threads}
    return host_ids if host_ids.keys() >= set(threads) else None


def _start_time(process: Process) -> float | None:
    """Return the start time in seconds since the epoch, computed from the kernel's clock ticks since boot; None if unknown."""
    fields = (process.read_text_file("stat") or "").rpartition(")")[2].split()
    if len(fields) < 20 or not fields[19].isdecimal():
        return None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"), 2)


def _cgroup_name(process: Process) -> str:
    lines = (process.read_text_file("cgroup") or "").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::/")), "")


def _cgroup_directory(process: Process, name: str) -> str | None:
    """Return the directory of the process's cgroup, or of the nearest parent cgroup that counts memory; None if no cgroup counts memory.

    libvirt creates cgroups for groups of threads, and these cgroups do not count memory.
    """
    while name not in ("", "/") and ".." not in name.split("/"):
        directory = f"/sys/fs/cgroup{name}"
        if process.read_text_file(f"{directory}/memory.current") is not None:
            return directory
        name = name.rpartition("/")[0]
    return None
