"""Gets tokens for SASL OAUTHBEARER from an OAuth 2.0 token endpoint, or from a file that another program updates."""

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import orjson
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from agent.common.http_credentials import SECRET_READ_SECONDS, HttpClientConfig, HttpCredentials, read_secret
from agent.delivery.sinks.kafka.oauth_config import OauthConfig
from agent.model.record import sanitize

_log = logging.getLogger(__name__)

FETCH_SECONDS = 10.0
"""Timeout in seconds of a request to the token endpoint."""
REFRESH_AFTER = 0.8
"""Share of a token's lifetime after which the agent replaces the token, as in Kafka's Java client (sasl.login.refresh.window.factor)."""
MAX_RESPONSE_BYTES = 1 << 18
"""Maximum bytes of the token endpoint's response."""


class TokenError(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """The agent has no valid token. aiokafka retries, because this class is a KafkaError. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token from the token endpoint.

    Attributes:
        text: the token itself.
        fetched_at: when the token was requested, in seconds of a monotonic clock.
        lifetime_seconds: seconds from `fetched_at` until the token expires; None if the endpoint does not report the lifetime.
    """

    text: str
    fetched_at: float
    lifetime_seconds: float | None

    def is_fresh(self, now: float) -> bool:
        """Return whether the token needs no replacement yet; False if its lifetime is unknown."""
        return self.lifetime_seconds is not None and now < self.fetched_at + REFRESH_AFTER * self.lifetime_seconds

    def is_valid(self, now: float) -> bool:
        """Return whether the token has not expired; False if its lifetime is unknown."""
        return self.lifetime_seconds is not None and now < self.fetched_at + self.lifetime_seconds


class OidcTokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Fetches tokens by OAuth 2.0 client credentials (RFC 6749, section 4.4). Connections share a token while it is fresh.

    If the agent cannot refresh the token, connections use the last token until it expires.
    """

    def __init__(
        self, config: OauthConfig, extensions: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._extensions = dict(extensions)
        self._clock = clock
        self._tls = HttpCredentials(HttpClientConfig(tls=config.tls))
        self._token: Token | None = None
        self._lock: asyncio.Lock = asyncio.Lock()

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions."""
        return self._extensions

    async def token(self) -> str:
        """Return a token that has not expired.

        Raises:
            TokenError: the endpoint returns no token, and no earlier token is still valid.
        """
        async with self._lock:
            if self._token is None or not self._token.is_fresh(self._clock()):
                try:
                    self._token = await self._fetch_token()
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    text = f"{self._config.token_url}: {_describe_error_cause(error)}"
                    if self._token is None or not self._token.is_valid(self._clock()):
                        raise TokenError(f"no token: {text}; check kafka.sasl.oauth") from error
                    _log.warning("Kafka token: refresh failed, the present token is still valid: %s", text)
            return self._token.text

    async def _fetch_token(self) -> Token:
        fetched_at = self._clock()
        form = {"grant_type": "client_credentials"}
        if self._config.scope is not None:
            form["scope"] = self._config.scope
        options = await self._tls.request_options()
        if self._config.client_secret_file is None:
            form["client_id"] = self._config.client_id
        else:
            async with asyncio.timeout(SECRET_READ_SECONDS):
                secret = await asyncio.to_thread(read_secret, self._config.client_secret_file)
            pair = f"{quote_plus(self._config.client_id)}:{quote_plus(secret)}".encode()
            options["headers"] = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS)) as session,
            session.post(self._config.token_url, data=form, allow_redirects=False, **options) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 14):
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    raise ValueError("the response is too large")
            return parse_token_response(response.status, bytes(body), fetched_at)


def parse_token_response(status: int, body: bytes, fetched_at: float) -> Token:
    """Return the token in a response of a token endpoint.

    Args:
        status: the HTTP status.
        body: the body of the response.
        fetched_at: when the token was requested, in seconds of a monotonic clock.

    Raises:
        ValueError: the response has no token. The text contains the endpoint's error, and never a token.
    """
    try:
        values: Any = orjson.loads(body)
    except ValueError:
        values = None
    values = values if isinstance(values, dict) else {}
    if status != 200:
        causes = [
            sanitize(values[name]) for name in ("error", "error_description") if isinstance(values.get(name), str)
        ]
        raise ValueError(": ".join([f"HTTP {status}", *causes]))
    text, lifetime = values.get("access_token"), values.get("expires_in")
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
        raise ValueError("the response has no access_token")
    if isinstance(lifetime, str) and lifetime.isdecimal():  # some endpoints send the number as a string
        lifetime = int(lifetime)
    known = isinstance(lifetime, int | float) and not isinstance(lifetime, bool)
    return Token(text, fetched_at, float(lifetime) if known else None)


class FileTokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Reads the token from a file at each connect. Another program writes the file, for example the token signer of a cloud provider."""

    def __init__(self, path: str, extensions: Mapping[str, str]) -> None:
        self._path = path
        self._extensions = dict(extensions)

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions."""
        return self._extensions

    async def token(self) -> str:
        """Return the token in the first line of the file.

        Raises:
            TokenError: the file cannot be read or is empty.
        """
        try:
            async with asyncio.timeout(SECRET_READ_SECONDS):
                text = (await asyncio.to_thread(read_secret, self._path)).strip()
        except (OSError, TimeoutError) as error:
            raise TokenError(f"no token: {_describe_error_cause(error)}; check kafka.sasl.token_file") from error
        if not text:
            raise TokenError(f"no token: {self._path}: the first line is empty; check kafka.sasl.token_file")
        return text


def _describe_error_cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and not isinstance(error, aiohttp.ClientError):
        return f"{error.filename}: {error.strerror}"
    return str(error) or "no response in time"
