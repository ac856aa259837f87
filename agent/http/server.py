"""Where the endpoint listens, who may come in, and that both follow the web config file when it changes."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.config.loader import ConfigError, read
from agent.http.basic_auth import BasicAuthUsers, TooManyGuessesError
from agent.http.connection_limits import ConnectionLimiter
from agent.http.web_config import RateLimit, WebConfigFile, files, tls_context

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the web config and the files that it names are looked at."""
HANDSHAKE_SECONDS = 5.0
MAX_LINE_BYTES = 8190
MAX_HEADERS = 64
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="qmp-agent", charset="UTF-8"'}

ACCESS_CONTROL: web.AppKey["AccessControl"] = web.AppKey("rules")


class EndpointError(Exception):
    """The endpoint cannot be had; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class LoadedWebConfig:
    """A web config, read.

    Attributes:
        config: the file, as types.
        tls: what a server needs to speak TLS; None is in the clear.
        users: who may come in.
        signature: what shows that one of the files has changed since.
    """

    config: WebConfigFile = field(default_factory=WebConfigFile)
    tls: ssl.SSLContext | None = None
    users: BasicAuthUsers = field(default_factory=lambda: BasicAuthUsers({}))
    signature: object = None

    @classmethod
    def read(cls, path: Path | None) -> "LoadedWebConfig":
        """Read a file; to be run in a thread.

        Raises:
            EndpointError: it cannot be used.
        """
        if path is None:
            return cls()
        try:
            config = read(path, WebConfigFile)
            tls = config.tls_server_config
            signature = _signature([path, *files(config, path.parent)])
            context = tls_context(tls, path.parent) if tls is not None else None
        except ConfigError as error:
            raise EndpointError("; ".join(map(str, error.problems))) from error
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            raise EndpointError(f"{path}: TLS cannot be had:{where} {error.strerror or error}") from error
        return cls(config, context, BasicAuthUsers(config.basic_auth_users), signature)


def _signature(paths: Sequence[Path]) -> object:
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            info = path.stat()
            found.append((str(path), info.st_ino, info.st_mtime_ns, info.st_size))
    return found


class AccessControl:
    """Decides on each request, by the door that is open now."""

    def __init__(self, *, loopback: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.door = LoadedWebConfig()
        self.gate = ConnectionLimiter()
        self._loopback = loopback
        self._clock = clock
        self._tokens = inf  # the bucket starts full: on a host that has just booted, the monotonic clock is near 0
        self._counted_at = clock()

    async def refusal(self, request: web.Request) -> web.Response | None:
        """Return why a request is not answered, or None."""
        if self._loopback and not self.door.config.asks_who and not _local(request.host):
            # A page of another site can have its own name lead to this address, and read what a browser on this host may.
            return web.Response(status=421, text="this endpoint is called by its address or as localhost\n")
        if not self.has_token(self.door.config.rate_limit):
            return web.Response(status=429, text="too many requests\n", headers={"Retry-After": "1"})
        if not self._named(request):
            return web.Response(status=403, text="the certificate has none of the names that may come in\n")
        if self.door.users:
            try:
                if not await self.door.users.admit(request.headers.get("Authorization", "")):
                    return web.Response(status=401, text="who are you?\n", headers=_CHALLENGE)
            except TooManyGuessesError:
                return web.Response(status=503, text="too many passwords to look at\n", headers={"Retry-After": "5"})
        return None

    def has_token(self, limit: RateLimit) -> bool:
        """Take a token from the bucket; return whether there was one."""
        if not limit.interval:
            return True
        now = self._clock()
        self._tokens = min(limit.burst, self._tokens + (now - self._counted_at) / limit.interval)
        self._counted_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _named(self, request: web.Request) -> bool:
        tls = self.door.config.tls_server_config
        if tls is None or not tls.client_allowed_sans:
            return True
        shown: Mapping[str, Any] = (request.transport and request.transport.get_extra_info("peercert")) or {}
        return any(name in tls.client_allowed_sans for _, name in shown.get("subjectAltName", ()))


def _local(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True


@web.middleware
async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer a request if it may be; the first middleware of an application that has RULES."""
    rules = request.app[ACCESS_CONTROL]
    transport = request.transport
    rules.gate.begins(transport)
    try:
        refusal = await rules.refusal(request)
        answer: web.StreamResponse = refusal if refusal is not None else await handler(request)
        return answer
    finally:
        rules.gate.ends(transport)


async def prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Give a response the headers that the web config asks for."""
    for name, value in request.app[ACCESS_CONTROL].door.config.http_server_config.headers.items():
        if value:
            response.headers[name] = value
        else:
            response.headers.pop(name, None)


class HttpEndpoint:
    """Serves an application at an address, by a web config."""

    def __init__(self, app: web.Application, listen: str, web_config: Path | None) -> None:
        self.config_error: str | None = None
        """Why the web config as it is now was not taken, or None."""
        self._listen = listen
        self._path = web_config
        self._rules = AccessControl(loopback=is_loopback(listen))
        app[ACCESS_CONTROL] = self._rules
        app.middlewares.insert(0, guard)
        app.on_response_prepare.append(prepare)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=1.0,
            handle_signals=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=1.0,
        )
        self._servers: list[asyncio.Server] = []

    @property
    def refused_connections(self) -> int:
        """Connections that were ended at once, because there were too many."""
        return self._rules.gate.refused

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve for as long as the block runs; yields the URL.

        Raises:
            EndpointError: the address cannot be had, or the web config cannot be used.
        """
        door = await asyncio.to_thread(LoadedWebConfig.read, self._path)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(bound) for bound in _bind(self._listen)]
            if not is_loopback(self._listen) and not door.config.asks_who:
                _log.warning("%s is open to all who reach it: web.config_file can ask them who they are", self._listen)
            await self._runner.setup()
            try:
                await self._open(door, sockets)
                following = asyncio.create_task(self._follow(sockets), name="web config")
                try:
                    scheme = "https" if door.tls is not None else "http"
                    yield f"{scheme}://{self._listen.rpartition(':')[0]}:{sockets[0].getsockname()[1]}"
                finally:
                    following.cancel()
                    await asyncio.wait({following})
            finally:
                for server in self._servers:
                    server.close()
                await self._runner.cleanup()

    async def _open(self, door: LoadedWebConfig, sockets: Sequence[socket.socket]) -> None:
        """Let in by this door those who connect from here on; who is in already stays, and is asked again at each request."""
        loop = asyncio.get_running_loop()
        assert self._runner.server is not None
        factory = self._rules.gate.before(self._runner.server)
        before, self._servers = self._servers, []
        handshake = HANDSHAKE_SECONDS if door.tls is not None else None
        for bound in sockets:  # a copy of each, since a server closes its own; what waits to be accepted is shared
            server = await loop.create_server(
                factory, sock=bound.dup(), ssl=door.tls, backlog=128, ssl_handshake_timeout=handshake
            )
            self._servers.append(server)
        self._rules.door = door
        for server in before:
            server.close()

    async def _follow(self, sockets: Sequence[socket.socket]) -> None:
        """Take the web config anew whenever it changes, until cancelled. A bad one changes nothing."""
        if self._path is None:
            return
        seen = self._rules.door.signature
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            named = [self._path, *files(self._rules.door.config, self._path.parent)]
            now = await asyncio.to_thread(_signature, named)
            if now == seen:
                continue
            try:
                door = await asyncio.to_thread(LoadedWebConfig.read, self._path)
                await self._open(door, sockets)
            except (EndpointError, OSError) as error:
                seen, self.config_error = now, f"the web config was not taken, the one before it stays: {error}"
                _log.error("%s", self.config_error)
                continue
            seen, self.config_error = door.signature, None
            _log.info("the web config was taken anew")


def is_loopback(listen: str) -> bool:
    """Return whether an address, host:port, is reached from this host alone."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(listen: str) -> list[socket.socket]:
    """Return sockets that listen there."""
    host, _, port = listen.rpartition(":")
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], bound[0].getsockname()[1], *address[2:]) if len(bound) > 1 else address)
            sock.listen(128)
    except OSError as error:
        for sock in bound:
            sock.close()
        why = error.strerror or os.strerror(error.errno or 0)
        raise EndpointError(f"cannot listen on {listen}: {why}; choose another web.listen_address") from error
    return bound
