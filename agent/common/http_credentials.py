"""Credentials of an HTTP client: TLS certificates, a password or a bearer token. Each request reads the files again."""

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import StringConstraints, model_validator

from agent.common.client_tls import ClientTlsConfig
from agent.common.config_types import ConfigSection, SecretPath, expand_credentials_directory

if TYPE_CHECKING:
    import ssl

SECRET_READ_SECONDS = 5.0
"""Maximum time to read the files, because the storage of the files may hang."""
MAX_SECRET_BYTES = 64 * 1024
"""Maximum size of a file with a password or a token."""


class BasicAuthConfig(ConfigSection):
    """User and password of HTTP basic authentication."""

    username: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^:]+$")]
    """User name."""
    password_file: SecretPath
    """File with the password in its first line; read for each request."""


class HttpClientConfig(ConfigSection):
    """TLS and authentication of an HTTP client."""

    tls: ClientTlsConfig | None = None
    """Certificates for https; without it, the client trusts the system's CA certificates. Changed files are read again."""
    basic_auth: BasicAuthConfig | None = None
    """User and password."""
    bearer_token_file: SecretPath | None = None
    """File with a bearer token in its first line; read for each request."""

    @model_validator(mode="after")
    def _check_one_method(self) -> "HttpClientConfig":
        if self.basic_auth is not None and self.bearer_token_file is not None:
            raise ValueError("basic_auth and bearer_token_file exclude each other: remove one of them")
        return self


def read_secret(path: str) -> str:
    """Return the first line of a file with a secret. The call blocks.

    Args:
        path: the path, which may begin with `${CREDENTIALS_DIRECTORY}`.

    Raises:
        OSError: the file cannot be read; the error names the file.
    """
    file = expand_credentials_directory(path)
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_SECRET_BYTES).split("\n", 1)[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise OSError(0, "is not UTF-8 text", str(file)) from error


class HttpCredentials:
    """Reads the files of an `HttpClientConfig` for each request. A new TLS context is created only if a certificate file has changed."""

    def __init__(self, config: HttpClientConfig) -> None:
        self._config = config
        self._context: ssl.SSLContext | None = None
        self._tls_file_stats: object = None

    async def request_options(self) -> dict[str, Any]:
        """Read the files, and return aiohttp's keyword arguments for a request.

        Raises:
            OSError: a file cannot be read; the error names the file.
            TimeoutError: the files could not be read within `SECRET_READ_SECONDS`.
        """
        async with asyncio.timeout(SECRET_READ_SECONDS):
            return await asyncio.to_thread(self._read_files)

    def _read_files(self) -> dict[str, Any]:
        config = self._config
        options: dict[str, Any] = {}
        if (tls := config.tls) is not None:
            stats = [expand_credentials_directory(path).stat() for path in tls.paths]
            file_stats = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]
            if self._context is None or file_stats != self._tls_file_stats:
                self._context, self._tls_file_stats = tls.ssl_context(), file_stats
            options["ssl"] = self._context
        if (user := config.basic_auth) is not None:
            # aiohttp's encode_basic_auth does the same, but older releases of aiohttp lack it.
            pair = f"{user.username}:{read_secret(user.password_file)}".encode()
            options["headers"] = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        elif config.bearer_token_file is not None:
            options["headers"] = {"Authorization": f"Bearer {read_secret(config.bearer_token_file).strip()}"}
        return options
