"""Which process is behind a monitor: found out once at attach, and doubted.

Two things speak for a process: the kernel says who opened the monitor's socket (SO_PEERCRED), and QEMU says the ids of its vCPUs'
threads. A manager may have opened the socket and handed it over, and a QEMU in a pid namespace of its own counts its threads as that
does. What is not certain is not taken.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.host.process import ROOT, Process
from agent.host.procfs import keyed

_QEMU = re.compile(r"Name:\s*(qemu|kvm)")
"""What QEMU's process is called unless `-name process=` says otherwise."""

_tgid = keyed("Tgid")

_MAX_THREADS = 4096
"""Threads of a process that are looked through for those of another pid namespace."""


class UnknownProcessError(Exception):
    """It cannot be known which process it is; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A process that was found.

    Attributes:
        process: it.
        threads: its threads' ids on this host, by the ids that QEMU told.
        start_seconds: when it was started, seconds since the epoch.
        cgroup: the folder of its cgroup (version 2) on the host, or None.
        cgroup_name: its cgroup, or empty.
    """

    process: Process
    threads: Mapping[int, int]
    start_seconds: float | None
    cgroup: str | None
    cgroup_name: str


def find(opener: int | None, threads: Sequence[int], root: Path = ROOT) -> QemuProcess:
    """Return the process of a QEMU. Blocks, for some milliseconds.

    Args:
        opener: the pid that opened the other end of the monitor's socket; None where nothing tells it.
        threads: the ids of its vCPUs' and iothreads' threads, as QEMU told them.
        root: the folder that has /proc and /sys.

    Raises:
        UnknownProcessError: it cannot be known.
    """
    if opener is None:
        raise UnknownProcessError(
            "its monitor is no Unix socket, or its process is in a pid namespace that is not within the agent's"
        )
    process = _by_opener(opener, threads, root) or _by_threads(threads, root)
    if process is None:
        raise UnknownProcessError(
            f"process {opener} opened its monitor's socket but is not it, and its threads are none that could be recognised"
        )
    ids = _ids(process, threads)
    assert ids is not None
    name = _cgroup_name(process)
    return QemuProcess(process, ids, _start(process), _cgroup(process, name), name)


def _by_opener(pid: int, threads: Sequence[int], root: Path) -> Process | None:
    """Return that process if these threads are its own; one that told of none has to look like a QEMU."""
    try:
        process = Process(pid, root)
    except OSError:
        return None
    if (_ids(process, threads) is not None) if threads else _looks_like_qemu(process):
        return process
    process.close()
    return None


def _by_threads(threads: Sequence[int], root: Path) -> Process | None:
    """Return the process that has these threads, if it looks like a QEMU of our own pid namespace: their numbers alone prove little."""
    if not threads:
        return None
    try:
        first = Process(threads[0], root)  # /proc has a folder for each thread too, though it does not list it
    except OSError:
        return None
    leader = _tgid(first.read("status") or "").get("Tgid")
    first.close()
    if leader is None:
        return None
    process = _by_opener(leader, threads, root)
    if process is not None and not (_looks_like_qemu(process) and _depth(process) == 1):
        process.close()
        return None
    return process


def _looks_like_qemu(process: Process) -> bool:
    return _QEMU.match(process.read("status") or "") is not None


def _namespaced(status: str | None) -> list[int]:
    """Return a thread's ids from a `status` file, in our pid namespace first and in its own last (Linux 4.1)."""
    line = next((line for line in (status or "").splitlines() if line.startswith("NSpid:")), "")
    return [int(part) for part in line.split()[1:] if part.isdecimal()]


def _depth(process: Process) -> int:
    return len(_namespaced(process.read("status"))) or 1


def _ids(process: Process, threads: Sequence[int]) -> Mapping[int, int] | None:
    """Return the ids on this host of the threads that QEMU told, or None unless all are the process' own."""
    if _depth(process) == 1:
        known = {thread: thread for thread in threads if process.read(f"task/{thread}/stat") is not None}
    else:
        tasks = [name for name in process.names("task")[:_MAX_THREADS] if name.isdecimal()]
        inner = {task: _namespaced(process.read(f"task/{task}/status")) for task in tasks}
        known = {ids[-1]: int(task) for task, ids in inner.items() if ids and ids[-1] in threads}
    return known if known.keys() >= set(threads) else None


def _start(process: Process) -> float | None:
    """Return when it was started: the kernel says it in clock ticks since the boot."""
    fields = (process.read("stat") or "").rpartition(")")[2].split()
    if len(fields) < 20 or not fields[19].isdecimal():
        return None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"), 2)


def _cgroup_name(process: Process) -> str:
    lines = (process.read("cgroup") or "").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::/")), "")


def _cgroup(process: Process, name: str) -> str | None:
    """Return the folder of the nearest cgroup above it that counts memory: libvirt puts threads into ones that cannot."""
    while name not in ("", "/") and ".." not in name.split("/"):
        folder = f"/sys/fs/cgroup{name}"
        if process.read(f"{folder}/memory.current") is not None:
            return folder
        name = name.rpartition("/")[0]
    return None
