"""QEMU connects to us: one Unix socket, or TCP with TLS, for all VMs of a host.

Nothing has to be discovered: a QEMU that was started with `-chardev socket,...,reconnect=N` calls again and again until it is heard, so
the agent may come and go. Who calls is told by the kernel (Unix) or by a certificate (TCP), before a byte is read.
"""

import asyncio
import contextlib
import errno
import grp
import logging
import os
import pwd
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from agent.common.config_types import DialAddress, Id, Secret, Section, expand
from agent.monitors.base import AllowedChanges, DiscovererConfig, DiscoveryListener, Monitor, qmp_opener

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How often to look whether the socket's file is still ours, and to try again where it could not be made."""
TLS_SECONDS = 5.0
BACKLOG = 4096
"""All QEMUs of a host call at once when the agent is back; the kernel cuts this to net.core.somaxconn."""
MOST_OF_ONE_PROCESS = 4
"""A QEMU that was taken over must not take the place of all others."""
USUAL_USERS = ("root", "libvirt-qemu", "qemu")

_SO_PEERGROUPS = 59
"""Linux 4.13; Python's socket module does not name it."""


class ListenTlsConfig(Section):
    """TLS on a TCP address; nobody is let in without a certificate."""

    ca: Secret
    """Certificates of the authorities whose clients are let in."""
    certificate: Secret
    """The agent's own certificate."""
    key: Secret | None = None
    """The key of that certificate, where it is not in the same file."""

    def context(self) -> ssl.SSLContext:
        """Return a context that lets in nobody without a certificate of `ca`.

        Raises:
            OSError: a file cannot be read or is not what it should be.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=expand(self.ca))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(expand(self.certificate), expand(self.key) if self.key is not None else None)
        return context

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when a file does."""
        return tuple(expand(path).stat().st_mtime_ns for path in (self.ca, self.certificate, self.key) if path)


class ListenConfig(DiscovererConfig):
    """An address that QEMU connects to."""

    listen: DialAddress
    """A Unix socket that the agent makes, or tcp:host:port, which needs `tls`. See docs/monitors.md for QEMU's side."""
    users: list[Id] | None = None
    """Users whose processes are let in on a Unix socket; by default root, the agent's own, libvirt-qemu and qemu."""
    groups: list[Id] = []
    """Groups whose members' processes are let in too."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2048
    """How many connections there may be at once."""
    tls: ListenTlsConfig | None = None
    """TLS with client certificates, for TCP."""

    inbound = True

    @model_validator(mode="after")
    def _tls_where_it_belongs(self) -> "ListenConfig":
        if self.listen.startswith("tcp:") != (self.tls is not None):
            raise ValueError("tcp needs tls, with certificates on both sides, and a Unix socket has none")
        return self

    def build(self, _allow: AllowedChanges) -> "ListenDiscoverer":
        """Return the way."""
        return ListenDiscoverer(self)

    @property
    def addresses(self) -> Sequence[str]:
        """Where it leads."""
        return (self.listen,)


@dataclass(eq=False, slots=True)
class _IncomingConnection:
    """One connection that came. `pid` is 0 where it is not known; `transport` is None until somebody takes the call."""

    sock: socket.socket
    name: str
    pid: int = 0
    transport: asyncio.BaseTransport | None = None

    @property
    def over(self) -> bool:
        return self.sock.fileno() < 0 if self.transport is None else self.transport.is_closing()


class _RefusedError(Exception):
    """A caller is not let in; the text is the reason that is counted."""


class ListenDiscoverer:
    """Monitors that connect to `/run/qmp-agent/monitor.sock` or `tcp:0.0.0.0:4445`."""

    def __init__(self, config: ListenConfig) -> None:
        self.address = config.listen
        self.config = config
        self._numbers = count()
        self._calls: list[_IncomingConnection] = []
        self._uids, self._gids = check_peer(self.config, os.geteuid())
        self._strangers: set[int] = set()
        self._tls: tuple[tuple[int, ...], ssl.SSLContext] | None = None

    def __repr__(self) -> str:
        return f"listen {self.config!r}"

    def bind(self) -> socket.socket:
        """Return a socket that listens.

        Raises:
            OSError: it cannot; the text says why.
        """
        if self.address.startswith("tcp:"):
            assert self.config.tls is not None
            self._context(self.config.tls)
            host, _, port = self.address.removeprefix("tcp:").rpartition(":")
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
        else:
            listener = _bind_unix(self.address)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return listener

    async def run(self, found: DiscoveryListener) -> None:
        """Tell `found` of callers until cancelled."""
        told = ""
        try:
            while True:
                try:
                    with contextlib.closing(self.bind()) as listener, self._unlinked():
                        told = ""
                        _log.info("listening on %s", self.address)
                        await self._serve(listener, found)
                except OSError as error:
                    if str(error) != told:
                        told = str(error)
                        _log.error("cannot listen on %s: %s; trying again", self.address, told)
                await asyncio.sleep(CHECK_SECONDS)
        finally:
            for call in self._calls:
                if call.transport is None:
                    call.sock.close()

    async def _serve(self, listener: socket.socket, found: DiscoveryListener) -> None:
        """Take calls until the socket's file is not ours any more."""
        loop = asyncio.get_running_loop()
        inode, failed = self._inode(), loop.create_future()
        loop.add_reader(listener, self._accept, listener, found, failed)
        try:
            while not (await asyncio.wait({failed}, timeout=CHECK_SECONDS))[0]:
                if self._inode() != inode:
                    _log.warning("%s was removed or replaced; making it anew", self.address)
                    return
            raise failed.result()
        finally:
            loop.remove_reader(listener)

    def _accept(self, listener: socket.socket, found: DiscoveryListener, failed: asyncio.Future[OSError]) -> None:
        """Take one call. Not by asyncio's own accept: one that is cancelled may drop a call that it has."""
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # gone again
        except OSError as error:  # no file left to open, most often
            if not failed.done():
                failed.set_result(error)
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._calls = [call for call in self._calls if not call.over]
        try:
            call = self._let_in(sock, address)
        except _RefusedError as refused:
            sock.close()
            found.on_connection_refused(self.address, str(refused))
        else:
            self._calls.append(call)
            found.on_monitor_added(self._monitor(call, found))

    def _let_in(self, sock: socket.socket, address: object) -> _IncomingConnection:
        """Return who calls.

        Raises:
            _RefusedError: it is not to be served.
        """
        if len(self._calls) >= self.config.max_connections:
            raise _RefusedError("limit")
        if sock.family != socket.AF_UNIX:
            host, port = address[:2] if isinstance(address, tuple) else ("", 0)
            return _IncomingConnection(sock, f"{self.address} from {host}:{port}")
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in self._uids and not (self._gids and self._gids & {gid, *_groups(sock)}):
            if uid not in self._strangers:
                self._strangers.add(uid)
                _log.warning(
                    "%s: process %d of user %d is not let in: `users` has not this one", self.address, pid, uid
                )
            raise _RefusedError("user")
        if sum(call.pid == pid for call in self._calls) >= MOST_OF_ONE_PROCESS:
            raise _RefusedError("process")
        return _IncomingConnection(sock, f"{self.address} pid {pid}", pid)

    def _monitor(self, call: _IncomingConnection, found: DiscoveryListener) -> Monitor:
        async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
            found.on_monitor_removed(monitor)  # a call is taken once
            tls = self.config.tls
            try:
                call.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    factory,
                    call.sock,
                    ssl=self._context(tls) if tls is not None else None,
                    ssl_handshake_timeout=TLS_SECONDS if tls is not None else None,
                )
            except BaseException:
                call.sock.close()
                raise
            return call.transport

        monitor = Monitor(call.name, (self.address, next(self._numbers)), qmp_opener(connect), inbound=True)
        return monitor

    def _context(self, tls: ListenTlsConfig) -> ssl.SSLContext:
        """Return the context of the files as they are now: certificates are renewed while the agent runs."""
        stamp = tls.stamp()
        if self._tls is None or self._tls[0] != stamp:
            self._tls = stamp, tls.context()
        return self._tls[1]

    def _inode(self) -> tuple[int, int] | None:
        """Return which file the socket's is now; None for TCP, and where there is none."""
        try:
            info = Path(self.address).stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino

    @contextlib.contextmanager
    def _unlinked(self) -> Iterator[None]:
        """Remove the socket's file in the end, if it is still ours."""
        inode = self._inode()
        try:
            yield
        finally:
            if inode is not None and inode == self._inode():
                Path(self.address).unlink(missing_ok=True)


def _bind_unix(path: str) -> socket.socket:
    """Return a socket that listens at a path, in the place of one that an agent left behind."""
    if _left_behind(path):
        Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        Path(path).chmod(
            0o666
        )  # whoever reaches its folder may call; who is heard is decided by whom the kernel says it is
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _left_behind(path: str) -> bool:
    """Return whether a socket is at a path that nobody listens on.

    Raises:
        OSError: somebody does.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        if Path(path).is_socket() and probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
        return Path(path).is_socket()


def _groups(sock: socket.socket) -> Sequence[int]:
    """Return the supplementary groups of the process at the other end; none where it has more than Python can ask for."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def check_peer(config: ListenConfig, own: int) -> tuple[set[int], set[int]]:
    """Return the numbers of the users, and of the groups, whose processes are let in; `own` is the agent's user."""
    if config.users is not None:
        return _ids(config.users, _uid), _ids(config.groups, _gid)
    known = {user.pw_name: user.pw_uid for user in pwd.getpwall()}
    return {own, *(known[name] for name in USUAL_USERS if name in known)}, _ids(config.groups, _gid)


def _ids(names: Iterable[str], look_up: Callable[[str], int]) -> set[int]:
    """Return the numbers of users or groups; a name that nobody has is told and lets nobody in."""
    numbers = set()
    for name in names:
        try:
            numbers.add(int(name) if name.isdecimal() else look_up(name))
        except KeyError:
            _log.warning("this host has no user or group %s", name)
    return numbers
