"""Monitors that connect to the agent: one Unix socket, or one TCP port with TLS, for all VMs of a host.

A QEMU with `-chardev socket,...,reconnect=N` retries until the agent accepts the connection. So the agent can restart at any time. The
agent authenticates the peer before reading a byte: by the credentials that the kernel reports (Unix socket), or by a certificate (TCP).
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

from agent.common.config_types import ConfigSection, DialAddress, SecretPath, UserOrGroup, expand_credentials_directory
from agent.monitors.base import AllowedChanges, DiscovererConfig, DiscoveryListener, Monitor, qmp_opener

_log = logging.getLogger(__name__)

SOCKET_CHECK_SECONDS = 5.0
"""Seconds between two checks that the agent's socket file still exists, and between two attempts to listen."""
TLS_HANDSHAKE_SECONDS = 5.0
BACKLOG = 4096
"""Maximum number of connections that wait to be accepted. All QEMUs of a host connect at once after a restart of the agent.

The kernel limits this number to net.core.somaxconn.
"""
MAX_CONNECTIONS_PER_PROCESS = 4
"""Maximum number of connections from one process, so that a compromised QEMU cannot occupy all connections."""
DEFAULT_USERS = ("root", "libvirt-qemu", "qemu")

_SO_PEERGROUPS = 59
"""Socket option of Linux 4.13 that Python's socket module lacks."""


class ListenTlsConfig(ConfigSection):
    """TLS on a TCP address; clients without a certificate are refused."""

    ca: SecretPath
    """Certificates of the authorities that sign the clients' certificates."""
    certificate: SecretPath
    """The agent's own certificate."""
    key: SecretPath | None = None
    """The certificate's key, if the certificate's file does not contain it."""

    def make_context(self) -> ssl.SSLContext:
        """Return a context that requires a client certificate signed by `ca`.

        Raises:
            OSError: a file cannot be read, or is not a certificate or key.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=expand_credentials_directory(self.ca))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(
            expand_credentials_directory(self.certificate),
            expand_credentials_directory(self.key) if self.key is not None else None,
        )
        return context

    def modification_times(self) -> tuple[int, ...]:
        """Return the modification times of the files, in nanoseconds since the epoch."""
        return tuple(
            expand_credentials_directory(path).stat().st_mtime_ns
            for path in (self.ca, self.certificate, self.key)
            if path
        )


class ListenConfig(DiscovererConfig):
    """An address that QEMU connects to."""

    listen: DialAddress
    """A Unix socket that the agent creates, or tcp:host:port, which needs `tls`. docs/reference/monitors.md has the QEMU arguments."""
    users: list[UserOrGroup] | None = None
    """Users whose processes may connect to the Unix socket; by default root, the agent's own user, libvirt-qemu and qemu."""
    groups: list[UserOrGroup] = []
    """Groups whose members' processes may also connect."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2048
    """Maximum number of connections at once."""
    tls: ListenTlsConfig | None = None
    """TLS with client certificates, for TCP."""

    inbound = True

    @model_validator(mode="after")
    def _require_tls_for_tcp(self) -> "ListenConfig":
        if self.listen.startswith("tcp:") != (self.tls is not None):
            raise ValueError("tcp:host:port needs `tls`, and a Unix socket must not have `tls`")
        return self

    def build_discoverer(self, _allow: AllowedChanges) -> "ListenDiscoverer":
        """Return the discoverer."""
        return ListenDiscoverer(self)

    @property
    def addresses(self) -> Sequence[str]:
        """Address that QEMU connects to."""
        return (self.listen,)


@dataclass(eq=False, slots=True)
class _IncomingConnection:
    """An accepted connection.

    Attributes:
        sock: the connection's socket.
        name: name of the monitor that the connection leads to.
        shared_address: the name without the parts that differ after a reconnect, such as the process ID.
        pid: process ID of the peer; 0 over TCP.
        transport: the asyncio transport; None until a session opens the monitor.
    """

    sock: socket.socket
    name: str
    shared_address: str
    pid: int = 0
    transport: asyncio.BaseTransport | None = None

    @property
    def is_closed(self) -> bool:
        return self.sock.fileno() < 0 if self.transport is None else self.transport.is_closing()


class _RefusedError(Exception):
    """The agent refuses a connection. The error's text is the value of the metric's label `reason`."""


class ListenDiscoverer:
    """Accepts connections of monitors at an address such as `/run/qmp-agent/monitor.sock` or `tcp:0.0.0.0:4445`."""

    def __init__(self, config: ListenConfig, check_seconds: float = SOCKET_CHECK_SECONDS) -> None:
        """Create a discoverer.

        Args:
            config: the entry of the config's `monitors`.
            check_seconds: seconds between two checks of the socket file, and between two attempts to listen.
        """
        self.address = config.listen
        self.config = config
        self._check_seconds = check_seconds
        self._connection_numbers = count()
        self._connections: list[_IncomingConnection] = []
        self._uids, self._gids = allowed_uids_and_gids(self.config, os.geteuid())
        self._refused_uids: set[int] = set()
        self._tls: tuple[tuple[int, ...], ssl.SSLContext] | None = None

    def __repr__(self) -> str:
        return f"listen {self.config!r}"

    def bind(self) -> socket.socket:
        """Return a listening socket.

        Raises:
            OSError: the agent cannot listen on the address. The error's text is the cause.
        """
        if self.address.startswith("tcp:"):
            assert self.config.tls is not None
            self._current_tls_context(self.config.tls)
            host, _, port = self.address.removeprefix("tcp:").rpartition(":")
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
        else:
            listener = _bind_unix(self.address)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return listener

    async def run(self, listener: DiscoveryListener) -> None:
        """Report incoming connections to `listener` until cancelled."""
        logged = ""
        try:
            while True:
                try:
                    with contextlib.closing(self.bind()) as server, self._removing_socket_file():
                        logged = ""
                        _log.info("%s: listening", self.address)
                        await self._accept_until_file_changes(server, listener)
                except OSError as error:
                    if str(error) != logged:
                        logged = str(error)
                        _log.error(
                            "%s: cannot listen: %s; the agent retries every %g s",
                            self.address,
                            logged,
                            self._check_seconds,
                        )
                await asyncio.sleep(self._check_seconds)
        finally:
            for connection in self._connections:
                if connection.transport is None:
                    connection.sock.close()

    async def _accept_until_file_changes(self, server: socket.socket, listener: DiscoveryListener) -> None:
        """Accept connections until the socket file is removed or replaced.

        Raises:
            OSError: a connection could not be accepted.
        """
        loop = asyncio.get_running_loop()
        inode, failed = self._socket_file_id(), loop.create_future()
        loop.add_reader(server, self._accept_connection, server, listener, failed)
        try:
            while not (await asyncio.wait({failed}, timeout=self._check_seconds))[0]:
                if self._socket_file_id() != inode:
                    _log.warning(
                        "%s: the socket file was removed or replaced; the agent creates it again", self.address
                    )
                    return
            raise failed.result()
        finally:
            loop.remove_reader(server)

    def _accept_connection(
        self, server: socket.socket, listener: DiscoveryListener, failed: asyncio.Future[OSError]
    ) -> None:
        """Accept one connection. asyncio's `sock_accept` is not used, because its cancellation may drop an accepted connection."""
        try:
            sock, address = server.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the peer has disconnected already
        except OSError as error:  # usually, no file descriptor is free
            if not failed.done():
                failed.set_result(error)
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._connections = [connection for connection in self._connections if not connection.is_closed]
        try:
            connection = self._authorise(sock, address)
        except _RefusedError as refused:
            sock.close()
            listener.on_agent_refused_incoming_connection(self.address, str(refused))
        else:
            self._connections.append(connection)
            listener.on_monitor_added(self._make_monitor(connection, listener))

    def _authorise(self, sock: socket.socket, address: object) -> _IncomingConnection:
        """Return the connection if its peer is authorised and no limit is reached. A TLS peer is authenticated later.

        Raises:
            _RefusedError: the peer is not authorised, or a limit is reached.
        """
        if len(self._connections) >= self.config.max_connections:
            raise _RefusedError("limit")
        if sock.family != socket.AF_UNIX:
            host, port = address[:2] if isinstance(address, tuple) else ("", 0)
            return _IncomingConnection(sock, f"{self.address} from {host}:{port}", f"{self.address} from {host}")
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in self._uids and not (self._gids and self._gids & {gid, *_peer_groups(sock)}):
            if uid not in self._refused_uids:
                self._refused_uids.add(uid)
                _log.warning(
                    "%s: connection of process %d refused: user %d is in neither `users` nor `groups`",
                    self.address,
                    pid,
                    uid,
                )
            raise _RefusedError("user")
        if sum(connection.pid == pid for connection in self._connections) >= MAX_CONNECTIONS_PER_PROCESS:
            raise _RefusedError("process")
        return _IncomingConnection(sock, f"{self.address} pid {pid}", self.address, pid)

    def _make_monitor(self, connection: _IncomingConnection, listener: DiscoveryListener) -> Monitor:
        async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
            listener.on_monitor_removed(monitor)  # a connection can be opened only once
            tls = self.config.tls
            try:
                connection.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    factory,
                    connection.sock,
                    ssl=self._current_tls_context(tls) if tls is not None else None,
                    ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if tls is not None else None,
                )
            except BaseException:
                connection.sock.close()
                raise
            return connection.transport

        key = (self.address, next(self._connection_numbers))
        monitor = Monitor(
            connection.name, key, qmp_opener(connect), inbound=True, shared_address=connection.shared_address
        )
        return monitor

    def _current_tls_context(self, tls: ListenTlsConfig) -> ssl.SSLContext:
        """Return the TLS context. Read modified files again, because certificates are renewed while the agent runs."""
        modified = tls.modification_times()
        if self._tls is None or self._tls[0] != modified:
            self._tls = modified, tls.make_context()
        return self._tls[1]

    def _socket_file_id(self) -> tuple[int, int] | None:
        """Return the device and inode numbers of the socket file; None over TCP, or if there is no file."""
        try:
            info = Path(self.address).stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino

    @contextlib.contextmanager
    def _removing_socket_file(self) -> Iterator[None]:
        """Remove the socket file at the end of a `with` block, unless another file has replaced it."""
        inode = self._socket_file_id()
        try:
            yield
        finally:
            if inode is not None and inode == self._socket_file_id():
                Path(self.address).unlink(missing_ok=True)


def _bind_unix(path: str) -> socket.socket:
    """Return a Unix socket that listens at a path. A socket file that no process listens on is replaced."""
    if _is_unused_socket_file(path):
        Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        # Any user that may enter the directory can connect. `_authorise` checks the credentials that the kernel reports.
        Path(path).chmod(0o666)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_unused_socket_file(path: str) -> bool:
    """Return whether the path is a socket file that no process listens on.

    Raises:
        OSError: a process listens on the socket.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        if Path(path).is_socket() and probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens on this socket")
        return Path(path).is_socket()


def _peer_groups(sock: socket.socket) -> Sequence[int]:
    """Return the IDs of the peer's supplementary groups; empty for more than 256 groups, which exceed the buffer of `getsockopt`."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _uid_of_user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid_of_group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def allowed_uids_and_gids(config: ListenConfig, agent_uid: int) -> tuple[set[int], set[int]]:
    """Return the IDs of the users and of the groups whose processes may connect to a Unix socket.

    Args:
        config: the entry of the config's `monitors`.
        agent_uid: user ID of the agent. The agent's user may connect if `users` is not set.
    """
    if config.users is not None:
        return _ids_of_names(config.users, _uid_of_user), _ids_of_names(config.groups, _gid_of_group)
    uids_by_name = {user.pw_name: user.pw_uid for user in pwd.getpwall()}
    return {agent_uid, *(uids_by_name[name] for name in DEFAULT_USERS if name in uids_by_name)}, _ids_of_names(
        config.groups, _gid_of_group
    )


def _ids_of_names(names: Iterable[str], look_up: Callable[[str], int]) -> set[int]:
    """Return the IDs of users or groups. Log and skip names that do not exist."""
    numbers = set()
    for name in names:
        try:
            numbers.add(int(name) if name.isdecimal() else look_up(name))
        except KeyError:
            _log.warning("listen: user or group %s ignored: it does not exist on this host", name)
    return numbers
