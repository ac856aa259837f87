"""Access control of the endpoint: an aiohttp middleware that refuses each request that the web config does not allow."""

import ipaddress
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from aiohttp import web

from agent.http.basic_auth import TooManyPendingChecksError
from agent.http.connection_limits import ConnectionLimiter
from agent.http.web_config import LoadedWebConfig, RateLimitConfig

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="qmp-agent", charset="UTF-8"'}

ACCESS_CONTROL: web.AppKey["AccessControl"] = web.AppKey("access_control")


class AccessControl:
    """Decides whether a request is allowed.

    Args:
        loopback: whether the endpoint listens on a loopback address, such as 127.0.0.1.
        connections: the limiter of the endpoint's connections; None for a new limiter.
        clock: returns the time in seconds of a monotonic clock.

    Attributes:
        web_config: the web config in use.
        connections: the limiter of the endpoint's connections.
    """

    def __init__(
        self,
        *,
        loopback: bool,
        connections: ConnectionLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.web_config = LoadedWebConfig()
        self.connections = connections if connections is not None else ConnectionLimiter()
        self._loopback = loopback
        self._clock = clock
        self._tokens = inf  # a full bucket; `take_rate_limit_token` reduces the number to the limit's burst
        self._refilled_at = clock()

    async def refuse_if_denied(self, request: web.Request) -> web.Response | None:
        """Return the response that refuses a request; None if the request is allowed."""
        config, users = self.web_config.config, self.web_config.users
        if self._loopback and not config.requires_authentication and not _is_local(request.host):
            # Prevent DNS rebinding: a web site whose host name resolves to a loopback address could read the response.
            return _refusal_response(421, "host name not allowed: use the endpoint's IP address or localhost")
        if not self.take_rate_limit_token(config.rate_limit):
            return _refusal_response(429, "too many requests", {"Retry-After": "1"})
        if not self._has_allowed_san(request):
            return _refusal_response(403, "the client certificate has no allowed subject alternative name")
        if users:
            try:
                if not await users.authenticate(request.headers.get("Authorization", "")):
                    return _refusal_response(401, "authentication required", _CHALLENGE)
            except TooManyPendingChecksError:
                return _refusal_response(503, "too many authentication attempts at once", {"Retry-After": "5"})
        return None

    def take_rate_limit_token(self, limit: RateLimitConfig) -> bool:
        """Take a token from the rate limit's bucket. Return False if the bucket was empty."""
        if not limit.interval:
            return True
        now = self._clock()
        self._tokens = min(limit.burst, self._tokens + (now - self._refilled_at) / limit.interval)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _has_allowed_san(self, request: web.Request) -> bool:
        tls = self.web_config.config.tls_server_config
        if tls is None or not tls.client_allowed_sans:
            return True
        certificate: Mapping[str, Any] = (request.transport and request.transport.get_extra_info("peercert")) or {}
        return any(name in tls.client_allowed_sans for _, name in certificate.get("subjectAltName", ()))


def _refusal_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{reason}\n", headers=headers)


def _is_local(host: str) -> bool:
    """Return whether a Host header names an IP address, localhost or a subdomain of localhost."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True


@web.middleware
async def access_control_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Pass an allowed request to its handler, and refuse other requests.

    The application must store the access control under the key ACCESS_CONTROL and list this middleware first.
    """
    access = request.app[ACCESS_CONTROL]
    transport = request.transport
    access.connections.request_started(transport)
    try:
        refusal = await access.refuse_if_denied(request)
        response: web.StreamResponse = refusal if refusal is not None else await handler(request)
        return response
    finally:
        access.connections.request_finished(transport)


async def set_configured_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set the response headers of the web config. An empty value removes a header."""
    for name, value in request.app[ACCESS_CONTROL].web_config.config.http_server_config.headers.items():
        if value:
            response.headers[name] = value
        else:
            response.headers.pop(name, None)
