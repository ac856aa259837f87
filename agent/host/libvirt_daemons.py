"""Finds libvirt's daemons in /proc, on the host and inside containers, and the QEMUs in their pid namespaces. The calls block.

A scan takes little longer than a listing of /proc, because a scan reads only the names of new processes. The agent uses only a socket
that the daemon itself has open, because two containers may share a directory. The agent connects to a daemon inside a container through
/proc/PID/root. The agent itself resolves symbolic links in the container, so that no link leads out of the container.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.host.qemu_processes import PROC, is_qemu_command_line, list_pids, read_command_line, read_file, start_ticks

SOCKET_NAMES = {"libvirtd": "libvirt-sock", "virtqemud": "virtqemud-sock"}
"""The file name of a daemon's socket, by the daemon's process name. libvirtd is the monolithic daemon, virtqemud the modular one."""

HOST_SOCKETS = ("/run/libvirt/{name}", "/run/user/{uid}/libvirt/{name}")
"""Paths of the host's daemons' sockets. The agent uses these paths if the agent may not list a daemon's open files."""

MAX_TABLE_BYTES = 16 << 20
"""Maximum number of bytes to read from the kernel's table of Unix sockets. A line has about 100 bytes."""

NEW_PROCESS_SECONDS = 10.0
"""Age in seconds up to which each scan reads a process's name again, because a young process may still execute another program."""

FULL_SCAN_SECONDS = 60.0
"""Seconds between two scans that read the names of all processes. The names may change, because the kernel reuses process IDs."""

MAX_DAEMONS = 1024
"""Maximum number of daemons. Further daemons are counted, but not used."""

MAX_LINKS = 40
"""Maximum number of symbolic links in a path. The kernel has the same limit."""

MAX_INDEX_AGE_SECONDS = 1.0
"""Seconds for which the result of a scan for QEMUs is used, because many domains may be attached within a second.

A UUID that the last scan lacks causes a scan at any age, because its QEMU may have started later.
"""

LISTENING_SOCKET_FLAGS = "00010000"
"""The flags of a listening socket in the kernel's table (__SO_ACCEPTCON)."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class LibvirtDaemon:
    """A running daemon of libvirt whose socket exists.

    Attributes:
        pid: its process ID.
        pid_namespace: inode of its pid namespace; None if the agent may not read the namespace.
        mount_namespace: inode of its mount namespace; None for the agent's own namespace, or if the agent may not read the namespace.
        socket: the socket's path in the daemon's mount namespace.
        privileged: whether the daemon runs as root of its user namespace. Root's daemon serves qemu:///system, any other qemu:///session.
        container: name of its container, such as a Kubernetes pod; empty in the agent's own mount namespace.
    """

    pid: int
    pid_namespace: int | None
    mount_namespace: int | None
    socket: str
    privileged: bool
    container: str

    @property
    def namespace_and_socket(self) -> tuple[int | None, str]:
        """Identity of the daemon: mount namespace and socket. A daemon that restarts in the same container keeps its identity."""
        return self.mount_namespace, self.socket

    @property
    def connection_uri(self) -> str:
        """The URI with which libvirt's library on this host connects to the daemon."""
        prefix = "" if self.mount_namespace is None else f"/proc/{self.pid}/root"
        return f"qemu+unix:///{'system' if self.privileged else 'session'}?socket={prefix}{self.socket}"


@dataclass(frozen=True, slots=True)
class LibvirtDaemonScanResult:
    """The result of a scan.

    Attributes:
        daemons: the daemons by `LibvirtDaemon.namespace_and_socket`.
        qemus: process IDs of QEMUs, by pid namespace and the VM's UUID.
        unreadable_daemons: number of daemons in other mount namespaces that the agent may not inspect.
        ignored_daemons: number of daemons above MAX_DAEMONS.
    """

    daemons: Mapping[tuple[int | None, str], LibvirtDaemon] = field(default_factory=dict)
    qemus: Mapping[tuple[int | None, str], int] = field(default_factory=dict)
    unreadable_daemons: int = 0
    ignored_daemons: int = 0


class LibvirtDaemonScanner:
    """Scans /proc for daemons of libvirt. Keeps the results of earlier scans, so that a scan reads only new processes."""

    def __init__(self, proc: Path = PROC, host_sockets: Sequence[str] = HOST_SOCKETS) -> None:
        """Create a scanner without processes.

        Args:
            proc: the directory /proc.
            host_sockets: sockets of the host's daemons, in the form of HOST_SOCKETS.
        """
        self._proc = proc
        self._host_sockets = tuple(host_sockets)
        self._own_mounts = _namespace_inode(proc, "self", "mnt")
        self._first_seen: dict[int, float] = {}
        self._daemon_names: dict[int, str] = {}
        self._daemons: dict[int, LibvirtDaemon] = {}
        """Daemons whose socket is known, by process ID."""
        self._qemus: dict[int, tuple[int | None, str]] = {}
        self._last_full_scan = -FULL_SCAN_SECONDS

    def scan_proc(self, now: float | None = None) -> LibvirtDaemonScanResult:
        """Return the daemons and QEMUs that run now. `now` is the monotonic time."""
        self._classify_new_processes(time.monotonic() if now is None else now)
        unreadable = 0
        for pid in self._daemon_names.keys() - self._daemons.keys():
            daemon, is_readable = self._find_daemon(pid, self._daemon_names[pid])
            unreadable += not is_readable
            if daemon is not None:
                self._daemons[pid] = daemon
        daemons: dict[tuple[int | None, str], LibvirtDaemon] = {}
        ignored = 0
        # A daemon forks to start a QEMU, and the child has the same files open. So the oldest process with the socket is the daemon.
        for pid in sorted(self._daemons, key=lambda pid: (start_ticks(pid, self._proc), pid)):
            daemon = self._daemons[pid]
            if daemon.namespace_and_socket in daemons:
                continue
            if len(daemons) >= MAX_DAEMONS:
                ignored += 1
            else:
                daemons[daemon.namespace_and_socket] = daemon
        return LibvirtDaemonScanResult(daemons, {key: pid for pid, key in self._qemus.items()}, unreadable, ignored)

    def _classify_new_processes(self, now: float) -> None:
        is_full = now - self._last_full_scan >= FULL_SCAN_SECONDS
        if is_full:
            self._last_full_scan = now
            self._daemons.clear()
        pids = set(list_pids(self._proc))
        for pid in self._first_seen.keys() - pids:
            del self._first_seen[pid]
            self._forget_process(pid)
        for pid in pids:
            if is_full or now - self._first_seen.setdefault(pid, now) <= NEW_PROCESS_SECONDS:
                self._first_seen.setdefault(pid, now)
                self._classify_process(pid)

    def _classify_process(self, pid: int) -> None:
        name = read_file(self._proc / str(pid) / "comm").strip().decode("ascii", "replace")
        if name in SOCKET_NAMES:
            self._daemon_names[pid] = name
        elif not name.startswith(("qemu", "kvm")):
            self._forget_process(pid)
        elif pid not in self._qemus:
            self._forget_process(pid)
            if uuid := _uuid_argument(read_command_line(pid, self._proc)):
                self._qemus[pid] = _namespace_inode(self._proc, pid, "pid"), uuid

    def _forget_process(self, pid: int) -> None:
        self._daemon_names.pop(pid, None)
        self._daemons.pop(pid, None)
        self._qemus.pop(pid, None)

    def _find_daemon(self, pid: int, name: str) -> tuple[LibvirtDaemon | None, bool]:
        """Return a daemon, or None if its socket is not found. Also return whether the search was possible.

        The search is impossible if the agent may not inspect the daemon and none of `HOST_SOCKETS` exists.
        """
        uids = self._find_user(pid)
        if uids is None:
            return None, True
        uid, is_root = uids
        mounts = _namespace_inode(self._proc, pid, "mnt")
        inodes = self._open_sockets(pid)
        if mounts is None or inodes is None:
            paths = (path.format(name=SOCKET_NAMES[name], uid=uid) for path in self._host_sockets)
            socket = next((path for path in paths if _is_socket(path)), None)
            daemon = LibvirtDaemon(pid, None, None, socket, is_root, "") if socket is not None else None
            return daemon, daemon is not None
        is_own = mounts == self._own_mounts
        root = "" if is_own else f"{self._proc}/{pid}/root"
        for bound in self._listening_paths(pid, inodes):
            path = bound if is_own else resolve_in_root(root, bound)
            if bound.endswith(f"/{SOCKET_NAMES[name]}") and path is not None and _is_socket(root + path):
                pid_namespace = _namespace_inode(self._proc, pid, "pid")
                container = "" if is_own else self._container_name(pid)
                return LibvirtDaemon(pid, pid_namespace, None if is_own else mounts, path, is_root, container), True
        return None, True

    def _open_sockets(self, pid: int) -> set[str] | None:
        """Return the inodes of the sockets that a process has open; None if the agent may not list them."""
        directory = f"{self._proc}/{pid}/fd"
        inodes = set()
        try:
            for name in os.listdir(directory):  # noqa: PTH208 - names, not paths
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(f"{directory}/{name}")  # noqa: PTH115 - one system call per file
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
        except OSError:
            return None
        return inodes

    def _listening_paths(self, pid: int, inodes: Container[str]) -> Iterator[str]:
        """Yield the paths of the listening Unix sockets with these inodes, from the table of the process's network namespace."""
        with contextlib.suppress(OSError), open(f"{self._proc}/{pid}/net/unix", "rb") as table:  # noqa: PTH123 - as above
            for line in table.read(MAX_TABLE_BYTES).splitlines()[1:]:
                # Num RefCount Protocol Flags Type St Inode Path
                fields = line.decode("utf-8", "surrogateescape").split(maxsplit=7)
                if (
                    len(fields) == 8
                    and fields[3] == LISTENING_SOCKET_FLAGS
                    and fields[6] in inodes
                    and fields[7].startswith("/")
                ):
                    yield fields[7]

    def _find_user(self, pid: int) -> tuple[int, bool] | None:
        """Return the user id that a process has in its own user namespace, and whether this user id is root's.

        Return None if the process has ended.
        """
        match = re.search(rb"^Uid:\s+\d+\s+(\d+)", read_file(self._proc / str(pid) / "status"), re.MULTILINE)
        if match is None:
            return None
        uid = int(match[1])
        for line in read_file(self._proc / str(pid) / "uid_map").splitlines():
            inside, outside, count = (int(field) for field in line.split())
            if outside <= uid < outside + count:
                uid = uid - outside + inside
                break
        return uid, uid == 0

    def _container_name(self, pid: int) -> str:
        """Return the pod's name from the process's environment. Return a text with the process ID if the environment names no pod."""
        for entry in read_file(self._proc / str(pid) / "environ").split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name in {b"POD_NAME", b"HOSTNAME"} and re.fullmatch(rb"[a-z0-9][a-z0-9.-]{0,252}", value):
                return value.decode()
        return f"process {pid}"


class QemuPidsByUuid:
    """Finds the QEMU process of a VM by the VM's UUID, where the agent cannot read libvirt's pid files. Thread-safe."""

    def __init__(self, proc: Path = PROC) -> None:
        """Create an empty index."""
        self._proc = proc
        self._lock = threading.Lock()
        self._scanned_at = -MAX_INDEX_AGE_SECONDS
        self._pids: dict[str, list[int]] = {}

    def pid_of_uuid(self, uuid: str) -> int | None:
        """Return the process ID of the only QEMU with this UUID; None if no QEMU or several QEMUs have the UUID.

        Also return None while another thread's scan hangs. The call blocks for some milliseconds.
        """
        called_at = time.monotonic()
        if not self._lock.acquire(timeout=MAX_INDEX_AGE_SECONDS):
            return None  # another thread's scan hangs
        try:
            # The QEMU may have started after the last scan.
            is_missing = uuid.lower() not in self._pids and self._scanned_at < called_at
            if is_missing or called_at - self._scanned_at >= MAX_INDEX_AGE_SECONDS:
                self._scanned_at = time.monotonic()
                self._pids = self._scan()
            pids = self._pids.get(uuid.lower(), [])
        finally:
            self._lock.release()
        return pids[0] if len(pids) == 1 else None

    def _scan(self) -> dict[str, list[int]]:
        pids: dict[str, list[int]] = {}
        for pid in list_pids(self._proc):
            name = read_file(self._proc / str(pid) / "comm")
            if name.startswith((b"qemu", b"kvm")) and (uuid := _uuid_argument(read_command_line(pid, self._proc))):
                pids.setdefault(uuid, []).append(pid)
        return pids


def _namespace_inode(proc: Path, pid: int | str, kind: str) -> int | None:
    """Return the inode of a process's namespace; None if the process has ended or the agent may not read the namespace."""
    with contextlib.suppress(OSError):
        return os.stat(f"{proc}/{pid}/ns/{kind}").st_ino  # noqa: PTH116 - one system call per process
    return None


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def resolve_in_root(root: str, path: str) -> str | None:
    """Resolve the symbolic links in a path below a container's root directory; None if the path does not exist or has too many links.

    Links are resolved inside the container. So the result never leads out of the container.

    Args:
        root: the container's root directory.
        path: an absolute path inside the container.
    """
    remaining, resolved, links = deque(path.split("/")), list[str](), 0
    while remaining:
        name = remaining.popleft()
        if name in {"", "."}:
            continue
        if name == "..":
            del resolved[-1:]
            continue
        inside = "/".join((*resolved, name))
        try:
            target = os.readlink(f"{root}/{inside}")  # noqa: PTH115 - the paths are texts
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: not a link
                return None
            resolved.append(name)
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        if target.startswith("/"):
            resolved.clear()
        remaining.extendleft(reversed(target.split("/")))
    return "/" + "/".join(resolved)


def _uuid_argument(argv: Sequence[str]) -> str:
    """Return the VM's UUID from QEMU's command line; empty if the command line has no UUID or is not QEMU's."""
    if not is_qemu_command_line(list(argv)):
        return ""
    arguments = dict(itertools.pairwise(argv))
    uuid = arguments.get("-uuid", "").lower()
    return uuid if _UUID.fullmatch(uuid) else ""
