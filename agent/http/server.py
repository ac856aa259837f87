"""The endpoint's HTTP server: binds the address, serves HTTP or HTTPS, and reloads the web config when it changes."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.http.access_control import ACCESS_CONTROL, AccessControl, access_control_middleware, set_configured_headers
from agent.http.connection_limits import DEFAULT_CONNECTION_LIMITS, ConnectionLimiter, ConnectionLimits
from agent.http.web_config import EndpointSetupError, LoadedWebConfig

_log = logging.getLogger(__name__)
_request_log = logging.getLogger("agent.http.requests")

RELOAD_SECONDS = 1.0
"""Seconds between two checks whether the web config, or a file that the web config names, has changed."""
HANDSHAKE_SECONDS = 5.0
"""Timeout of a TLS handshake, in seconds."""
MAX_HEADER_LINE_BYTES = 8190
MAX_HEADERS = 64


class _ClientErrorsToDebugFilter(logging.Filter):
    """Logs errors of clients, such as malformed requests and lost connections, at level DEBUG and without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError | HttpProcessingError):
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {error!r}", (), None
            return _request_log.isEnabledFor(logging.DEBUG)
        return True


_request_log.addFilter(_ClientErrorsToDebugFilter())


class HttpEndpoint:
    """Serves an aiohttp application over HTTP or HTTPS, with the access control of a web config.

    Args:
        app: the application.
        listen: the address, `host:port`.
        web_config: path of the web config; None for plain HTTP without authentication.
        limits: limits of the connections.
        reload_seconds: interval of the checks whether the web config has changed.
    """

    def __init__(
        self,
        app: web.Application,
        listen: str,
        web_config: Path | None,
        *,
        limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
        reload_seconds: float = RELOAD_SECONDS,
    ) -> None:
        self.config_error: str | None = None
        """Why the web config file could not be reloaded; None if the file's current content is in use."""
        self._listen = listen
        self._path = web_config
        self._reload_seconds = reload_seconds
        self._connections = ConnectionLimiter(limits)
        self._access = AccessControl(loopback=is_loopback(listen), connections=self._connections)
        app[ACCESS_CONTROL] = self._access
        app.middlewares.insert(0, access_control_middleware)
        app.on_response_prepare.append(set_configured_headers)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_request_log,
            shutdown_timeout=1.0,
            handle_signals=False,
            max_line_size=MAX_HEADER_LINE_BYTES,
            max_field_size=MAX_HEADER_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=1.0,
        )
        self._servers: list[asyncio.Server] = []

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def refused_connections(self) -> int:
        """The number of new connections that were closed, because too many were open."""
        return self._connections.refused

    @contextlib.asynccontextmanager
    async def serve_in_background(self) -> AsyncIterator[str]:
        """Serve while the `with` block runs, and yield the endpoint's URL.

        Raises:
            EndpointSetupError: the address is not available, or the web config is invalid.
        """
        web_config = await asyncio.to_thread(LoadedWebConfig.read, self._path)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(bound) for bound in bind_sockets(self._listen)]
            if not is_loopback(self._listen) and not web_config.config.requires_authentication:
                _log.warning(
                    "endpoint %s: no authentication: every client that can connect can read all data; "
                    "set web.config_file to require authentication",
                    self._listen,
                )
            await self._runner.setup()
            try:
                await self._start_servers(web_config, sockets)
                reloading = asyncio.create_task(self._reload_on_change(sockets), name="web config")
                try:
                    scheme = "https" if web_config.tls is not None else "http"
                    yield f"{scheme}://{self._listen.rpartition(':')[0]}:{sockets[0].getsockname()[1]}"
                finally:
                    reloading.cancel()
                    await asyncio.wait({reloading})
            finally:
                for server in self._servers:
                    server.close()
                await self._runner.cleanup()

    async def _start_servers(self, web_config: LoadedWebConfig, sockets: Sequence[socket.socket]) -> None:
        """Replace the servers, so that new connections use the TLS settings of a new web config.

        Open connections stay open. The access control of the new web config applies to the next requests of open connections.
        """
        loop = asyncio.get_running_loop()
        assert self._runner.server is not None
        factory = self._connections.wrap(self._runner.server)
        previous, self._servers = self._servers, []
        handshake = HANDSHAKE_SECONDS if web_config.tls is not None else None
        for bound in sockets:  # a closing server closes its socket, so pass a duplicate, which shares the accept queue
            server = await loop.create_server(
                factory, sock=bound.dup(), ssl=web_config.tls, backlog=128, ssl_handshake_timeout=handshake
            )
            self._servers.append(server)
        self._access.web_config = web_config
        for server in previous:
            server.close()

    async def _reload_on_change(self, sockets: Sequence[socket.socket]) -> None:
        """Reload the web config when its files change, until cancelled. An invalid new web config is reported and not used."""
        if self._path is None:
            return
        while True:
            await asyncio.sleep(self._reload_seconds)
            current = await asyncio.to_thread(self._access.web_config.read_file_stats, self._path)
            if current == self._access.web_config.file_stats and self.config_error is None:
                continue
            try:
                web_config = await asyncio.to_thread(LoadedWebConfig.read, self._path)
                await self._start_servers(web_config, sockets)
            except (EndpointSetupError, OSError) as error:
                # The next check tries again, because the file that was missing or invalid may be one that only the new config names.
                config_error = f"web config: reload failed: {error}; the previous web config stays in use"
                if config_error != self.config_error:
                    _log.error("%s", config_error)
                self.config_error = config_error
                continue
            self.config_error = None
            _log.info("web config: reloaded")


def is_loopback(listen: str) -> bool:
    """Return whether an address, `host:port`, is a loopback address, which only this host can reach."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind_sockets(listen: str) -> list[socket.socket]:
    """Return a listening socket for each IP address of `host:port`. All sockets have the same port, even if `port` is 0."""
    host, _, port = listen.rpartition(":")
    bound: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
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
        cause = error.strerror or os.strerror(error.errno or 0)
        raise EndpointSetupError(f"cannot listen on {listen}: {cause}; choose another web.listen_address") from error
    return bound
