"""Monitors that the agent connects to: Unix sockets by path or glob pattern, and TCP addresses.

Discovery scans the file system every few seconds, and at once when inotify reports a change of the directory.
A new socket file at the same path has another inode. The agent treats the new file as another monitor, because another QEMU created it.
"""

import asyncio
import contextlib
import glob
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from asyncinotify import Inotify, Mask

from agent.common.config_types import DialAddress
from agent.monitors.base import AllowedChanges, DiscovererConfig, DiscoveryListener, Monitor, qmp_opener
from agent.qmp.client import Connect

_log = logging.getLogger(__name__)

SCAN_INTERVAL_SECONDS = 5.0
SCAN_DELAY_SECONDS = 0.02
"""Seconds between a change of the directory and the scan. After this delay, one scan finds many sockets that a manager creates at once."""

_INOTIFY_MASK = Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.ONLYDIR


class DialConfig(DiscovererConfig):
    """Monitors that the agent connects to."""

    dial: DialAddress
    """A Unix socket, a pattern of sockets, or tcp:host:port. A QMP socket serves one client: `qmp-agent doctor` lists the free sockets."""

    def build_discoverer(self, _allow: AllowedChanges) -> "DialDiscoverer":
        """Return the discoverer."""
        return DialDiscoverer(self.dial)

    @property
    def addresses(self) -> Sequence[str]:
        """Address of the monitors."""
        return (self.dial,)


class DialDiscoverer:
    """Finds monitors at an address such as `/run/qemu/*.qmp`, `/run/vm1.sock` or `tcp:127.0.0.1:4444`. The agent stays connected."""

    def __init__(self, pattern: str, scan_seconds: float = SCAN_INTERVAL_SECONDS) -> None:
        self.pattern = pattern
        self._scan_seconds = scan_seconds

    def __repr__(self) -> str:
        return f"dial {self.pattern}"

    def make_monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor at an address; `key` identifies its socket."""
        return Monitor(name, key, qmp_opener(connect))

    def scan(self) -> dict[tuple[object, ...], Monitor]:
        """Return the monitors that exist now, by key."""
        if self.pattern.startswith("tcp:"):
            host, _, port = self.pattern.removeprefix("tcp:").rpartition(":")
            monitor = self.make_monitor(self.pattern, (self.pattern,), tcp_connector(host.strip("[]"), int(port)))
            return {monitor.key: monitor}
        monitors = {}
        for path in glob.iglob(self.pattern):  # noqa: PTH207 - Path.glob takes no absolute pattern
            try:
                info = os.stat(path)  # noqa: PTH116 - one system call for each of hundreds of sockets
            except OSError:
                continue  # removed after the listing
            if stat.S_ISSOCK(info.st_mode):
                # A file name may contain bytes that are not UTF-8.
                name = os.fsencode(path).decode("utf-8", "backslashreplace")
                key = (path, info.st_dev, info.st_ino, info.st_mtime_ns)  # not the ctime, which chmod changes
                monitor = self.make_monitor(name, key, unix_connector(path))
                monitors[monitor.key] = monitor
        return monitors

    def path_problem(self) -> str:
        """Return why no socket can match the pattern, such as a missing directory; empty if a socket may appear at any time."""
        if self.pattern.startswith("tcp:"):
            return ""
        path = Path(self.pattern)
        if not glob.has_magic(str(path.parent)):
            try:
                os.listdir(path.parent)  # noqa: PTH208 - only the error matters
                os.stat(path.parent / ".")  # noqa: PTH116 - needs the permission to enter the directory
            except OSError as error:
                return f"the directory {path.parent} cannot be searched: {error.strerror}"
        if not glob.has_magic(self.pattern) and path.exists() and not path.is_socket():
            return "this is not a socket"
        return ""

    def _has_free_descriptor(self) -> bool:
        """Return whether a file descriptor is free for a scan. Without a free descriptor, glob reports every directory as empty."""
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            _log.warning(
                "%s: scan for monitors skipped: %s; the agent retries every %g s",
                self.pattern,
                error.strerror,
                self._scan_seconds,
            )
            return False
        return True

    async def run(self, listener: DiscoveryListener) -> None:
        """Report new and removed monitors to `listener` until cancelled."""
        reported: dict[tuple[object, ...], Monitor] = {}
        logged = ""
        is_first = True
        with _DirectoryWatcher(self.pattern) as watcher:
            while True:
                if self._has_free_descriptor():
                    self._report_changes(reported, listener)
                problem = "" if reported else self.path_problem()
                if is_first and not reported and not problem:
                    _log.info("%s: no socket matches yet; the agent watches for new sockets", self.pattern)
                is_first = False
                if problem and problem != logged:
                    _log.warning("%s: %s; the agent retries every %g s", self.pattern, problem, self._scan_seconds)
                logged = problem
                await watcher.wait_for_change(self._scan_seconds)

    def _report_changes(self, reported: dict[tuple[object, ...], Monitor], listener: DiscoveryListener) -> None:
        """Scan once and report new and removed monitors.

        This code is a separate method, so that Python frees the memory of the scan when the method returns.
        """
        current = self.scan()
        for key in reported.keys() - current.keys():
            listener.on_monitor_removed(reported.pop(key))
        for key in current.keys() - reported.keys():
            reported[key] = current[key]
            listener.on_monitor_added(current[key])


class _DirectoryWatcher:
    """Waits until the next scan is due: an interval has passed, or inotify has reported a change of the directory.

    The wait lasts the whole interval if there is no directory or no inotify. inotify fails if the user has too many inotify instances.
    """

    def __init__(self, pattern: str) -> None:
        self._directory = None if pattern.startswith("tcp:") else _directory_to_watch(pattern)
        self._inotify: Inotify | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._inotify = Inotify(sync_timeout=0) if self._directory is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    async def wait_for_change(self, seconds: float) -> None:
        """Return after a change of the directory, or after the interval `seconds`."""
        if self._inotify is None:
            await asyncio.sleep(seconds)
            return
        if self._add_watch(self._inotify):
            return  # scan again, because a socket may have been created between the scan and the watch
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._inotify.get()
                await asyncio.sleep(SCAN_DELAY_SECONDS)
        while self._inotify.sync_get() is not None:
            pass

    def _add_watch(self, inotify: Inotify) -> bool:
        """Watch the directory if it exists; return whether the watch is new."""
        before = len(inotify.watches)
        with contextlib.suppress(OSError):
            # If the directory is watched already, `add_watch` returns the existing watch.
            inotify.add_watch(str(self._directory), _INOTIFY_MASK)
        return len(inotify.watches) > before


def _directory_to_watch(pattern: str) -> Path:
    """Return the directory to watch: the innermost parent directory in the pattern that has no wildcard in its path."""
    directory = Path(pattern).parent
    while glob.has_magic(str(directory)):
        directory = directory.parent
    return directory


def unix_connector(path: str) -> Connect:
    """Return a function that opens a transport to a Unix socket."""
    return partial(_connect_unix, path)


async def _connect_unix(path: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
    # Do not use asyncio's own connect. If the backlog is full, connect fails with EAGAIN, and asyncio treats EAGAIN as success.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    transport, _ = await asyncio.get_running_loop().create_unix_connection(factory, sock=sock)
    return transport


def tcp_connector(host: str, port: int) -> Connect:
    """Return a function that opens a transport to a TCP address."""
    return partial(_connect_tcp, host, port)


async def _connect_tcp(host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
    transport, _ = await asyncio.get_running_loop().create_connection(factory, host, port)
    return transport
