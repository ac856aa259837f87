"""We connect: Unix sockets by path or glob, and TCP addresses.

The file system is scanned every few seconds, which is what can be relied on; inotify on the patterns' folders only makes a scan come
at once. A socket file that was made anew (other inode) is another monitor, since another QEMU made it.
"""

import asyncio
import contextlib
import glob
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from asyncinotify import Inotify, Mask

from agent.common.config_types import DialAddress
from agent.monitors.base import AllowedChanges, DiscovererConfig, DiscoveryListener, Monitor, qmp_opener
from agent.qmp.client import Connect

_log = logging.getLogger(__name__)

SCAN_SECONDS = 5.0
SETTLE_SECONDS = 0.02
"""A manager that starts many VMs makes many sockets; what comes this close together is one scan."""

_HINTS = Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.ONLYDIR


class DialConfig(DiscovererConfig):
    """Monitors that the agent connects to."""

    dial: DialAddress
    """A Unix socket, a pattern of them, or tcp:host:port. One QMP socket serves one client: `qmp-agent doctor` says which are free."""

    def build(self, _allow: AllowedChanges) -> "DialDiscoverer":
        """Return the way."""
        return DialDiscoverer(self.dial)

    @property
    def addresses(self) -> Sequence[str]:
        """Where it leads."""
        return (self.dial,)


class DialDiscoverer:
    """Monitors at addresses: `/run/qemu/*.qmp`, `/run/vm1.sock`, `tcp:127.0.0.1:4444`."""

    def __init__(self, pattern: str, scan_seconds: float = SCAN_SECONDS) -> None:
        self.pattern = pattern
        self._scan_seconds = scan_seconds

    def __repr__(self) -> str:
        return f"dial {self.pattern}"

    def monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor that there is at an address."""
        return Monitor(name, key, qmp_opener(connect))

    def scan(self) -> dict[tuple[object, ...], Monitor]:
        """Return the monitors there are now, by key."""
        if self.pattern.startswith("tcp:"):
            host, _, port = self.pattern.removeprefix("tcp:").rpartition(":")
            monitor = self.monitor(self.pattern, (self.pattern,), tcp(host.strip("[]"), int(port)))
            return {monitor.key: monitor}
        found = {}
        for path in glob.iglob(self.pattern):  # noqa: PTH207 - Path.glob takes no absolute pattern
            try:
                info = os.stat(path)  # noqa: PTH116 - one system call a socket, hundreds of sockets
            except OSError:
                continue  # gone since it was listed
            if stat.S_ISSOCK(info.st_mode):
                name = os.fsencode(path).decode("utf-8", "backslashreplace")  # a file's name need not be text
                monitor = self.monitor(name, (path, info.st_dev, info.st_ino, info.st_ctime_ns), unix(path))
                found[monitor.key] = monitor
        return found

    def _can_look(self) -> bool:
        """Return whether there is a file descriptor to look with: where there is none, glob says of every folder that it is empty."""
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            _log.warning("%s: monitors that come and go are not seen: %s", self.pattern, error.strerror)
            return False
        return True

    async def run(self, found: DiscoveryListener) -> None:
        """Tell `found` of sockets as they come and go, until cancelled."""
        known: dict[tuple[object, ...], Monitor] = {}
        with _DirectoryWatcher(self.pattern) as hints:
            while True:
                if self._can_look():
                    self._look(known, found)
                await hints.wait(self._scan_seconds)

    def _look(self, known: dict[tuple[object, ...], Monitor], found: DiscoveryListener) -> None:
        """Look once; what it makes anew of monitors that are known is not kept until the next look."""
        now = self.scan()
        for key in known.keys() - now.keys():
            found.on_monitor_removed(known.pop(key))
        for key in now.keys() - known.keys():
            known[key] = now[key]
            found.on_monitor_added(now[key])


class _DirectoryWatcher:
    """Waits for the next scan: for a time, or less where inotify says that something changed.

    inotify may be missing (its instances are limited for each user) and its folders may not exist yet; then there is just the time.
    """

    def __init__(self, pattern: str) -> None:
        self._folders = [] if pattern.startswith("tcp:") else list(_folders(pattern))
        self._inotify: Inotify | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._inotify = Inotify(sync_timeout=0) if self._folders else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    async def wait(self, seconds: float) -> None:
        if self._inotify is None:
            await asyncio.sleep(seconds)
            return
        if self._look(self._inotify):
            return  # what was made between the scan and the watch would go unseen
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._inotify.get()
                await asyncio.sleep(SETTLE_SECONDS)
        while self._inotify.sync_get() is not None:
            pass

    def _look(self, inotify: Inotify) -> bool:
        """Watch the folders that are there; return whether one is new."""
        before = len(inotify.watches)
        for folder in self._folders:
            with contextlib.suppress(OSError):
                inotify.add_watch(folder, _HINTS)  # the same watch, where there is one
        return len(inotify.watches) > before


def _folders(pattern: str) -> Iterable[Path]:
    """Yield the folders to watch: that of the last part, or where folders are patterns too, the last one that is not."""
    folder = Path(pattern).parent
    while glob.has_magic(str(folder)):
        folder = folder.parent
    yield folder


def unix(path: str) -> Connect:
    """Return how a Unix socket is connected to."""
    return partial(_connect_unix, path)


async def _connect_unix(path: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
    # Connected here and not by asyncio, which takes the EAGAIN of a full backlog for success.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    transport, _ = await asyncio.get_running_loop().create_unix_connection(factory, sock=sock)
    return transport


def tcp(host: str, port: int) -> Connect:
    """Return how a TCP address is connected to."""
    return partial(_connect_tcp, host, port)


async def _connect_tcp(host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
    transport, _ = await asyncio.get_running_loop().create_connection(factory, host, port)
    return transport
