"""The web config: TLS, authentication and rate limit of the endpoint, in the file format of Prometheus' exporter-toolkit.

The agent rejects files with three features that Python's ssl module does not support: inline certificates, curve preferences, and client
certificates that are not verified. The error names the feature.
"""

import contextlib
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent.common.config_types import Seconds
from agent.config.errors import ConfigError
from agent.config.loader import read_yaml_file
from agent.http.basic_auth import BasicAuthUsers

MAX_BCRYPT_COST = 16
"""Maximum cost of a bcrypt hash. A password check takes 50 ms at cost 10, and twice as long for each further step."""

_TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}

_CIPHER_SUITES = {
    f"TLS_ECDHE_{key}_WITH_{cipher}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for cipher, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}
"""Secure cipher suites of TLS 1.2: OpenSSL's names by Go's names. The cipher suites of TLS 1.3 cannot be configured."""


def _check_bcrypt_hash(value: str) -> str:
    match = re.fullmatch(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", value)
    if match is None or not 4 <= int(match[1]) <= MAX_BCRYPT_COST:
        raise ValueError(
            f"should be a bcrypt hash of cost 4 to {MAX_BCRYPT_COST}, such as `htpasswd -nBC 10 ''` prints"
        )
    return value


def _check_header_value(value: str) -> str:
    if not re.fullmatch(r"[\x20-\x7e]*", value):
        raise ValueError("should be printable ASCII")
    return value


def _check_cipher_suite(value: str) -> str:
    if value not in _CIPHER_SUITES:
        raise ValueError(f"should be one of {', '.join(_CIPHER_SUITES)}")
    return value


class _WebSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsServerConfig(_WebSection):
    """TLS and client certificates. A relative path begins at the web config's directory."""

    cert_file: Path
    """The endpoint's certificate chain (PEM)."""
    key_file: Path
    """The certificate's private key (PEM)."""
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = "NoClientCert"
    """Policy for client certificates. Their issuer must be in `client_ca_file`."""
    client_ca_file: Path | None = None
    """Certificate authorities that issue the clients' certificates (PEM)."""
    client_allowed_sans: list[str] = []
    """A client's certificate must have one of these subject alternative names. An empty list allows all clients."""
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS12"
    """The oldest accepted TLS version."""
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS13"
    """The newest accepted TLS version."""
    cipher_suites: list[Annotated[str, AfterValidator(_check_cipher_suite)]] = []
    """Cipher suites of TLS 1.2, in Go's names; an empty list means OpenSSL's defaults."""
    prefer_server_cipher_suites: bool = True
    """If true, the order of `cipher_suites` has precedence over the client's order."""

    @model_validator(mode="after")
    def _check_client_auth(self) -> "TlsServerConfig":
        if (self.client_auth_type == "NoClientCert") != (self.client_ca_file is None):
            raise ValueError(
                "client_ca_file needs a client_auth_type other than NoClientCert, and such a type needs client_ca_file"
            )
        if self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert")
        return self


class HttpServerConfig(_WebSection):
    """HTTP settings."""

    http2: bool = True
    """Accepted for compatibility and ignored. The endpoint speaks HTTP/1.1 only."""
    headers: dict[
        Literal[
            "Content-Security-Policy",
            "X-Frame-Options",
            "X-Content-Type-Options",
            "X-XSS-Protection",
            "Strict-Transport-Security",
            "Cache-Control",
        ],
        Annotated[str, AfterValidator(_check_header_value)],
    ] = {}
    """Response headers that replace the endpoint's own; an empty value removes the header."""


class RateLimitConfig(_WebSection):
    """Rate limit of the requests of all clients together (a token bucket)."""

    interval: Annotated[Seconds, Field(ge=0)] = 0.0
    """Time after which the bucket gets one more token. Each request takes a token. 0 means no limit."""
    burst: Annotated[int, Field(ge=1)] = 1
    """Size of the bucket: the maximum number of requests at once."""


class WebConfigFile(_WebSection):
    """The content of a web config file. An empty file sets no restriction."""

    tls_server_config: TlsServerConfig | None = None
    """TLS; without it the endpoint speaks plain HTTP."""
    http_server_config: HttpServerConfig = HttpServerConfig()
    """HTTP settings."""
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_check_bcrypt_hash)]] = {}
    """The bcrypt hash of each user's password, by user name. Without users, no password is required."""
    rate_limit: RateLimitConfig = RateLimitConfig()
    """Rate limit of requests."""

    @property
    def requires_authentication(self) -> bool:
        """True if every client must authenticate, by password or by certificate."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


def referenced_files(config: WebConfigFile, directory: Path) -> list[Path]:
    """Return the paths of the files that a web config names. Relative paths begin at `directory`."""
    tls = config.tls_server_config
    paths = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls is not None else ()
    return [directory / path for path in paths if path is not None]


def tls_context(tls: TlsServerConfig, directory: Path) -> ssl.SSLContext:
    """Return the TLS context of the server. Relative paths begin at `directory`.

    Raises:
        OSError: a file cannot be read, or its content is invalid (the subclass ssl.SSLError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = _TLS_VERSIONS[tls.min_version], _TLS_VERSIONS[tls.max_version]
    if tls.cipher_suites:
        context.set_ciphers(":".join(_CIPHER_SUITES[suite] for suite in tls.cipher_suites))
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    # Pass a callback, because OpenSSL would otherwise ask for a key's passphrase on the terminal.
    context.load_cert_chain(directory / tls.cert_file, directory / tls.key_file, password=lambda: "")
    if tls.client_ca_file is not None:
        context.load_verify_locations(directory / tls.client_ca_file)
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


class EndpointSetupError(Exception):
    """The endpoint cannot start, or cannot load its web config. The text is the message for the user."""


@dataclass(frozen=True, slots=True)
class LoadedWebConfig:
    """A web config, with the TLS context and the users that were loaded from its files.

    Attributes:
        config: the content of the web config file.
        tls: the server's TLS context; None for plain HTTP.
        users: the users that can authenticate by password.
        file_stats: inode, modification time and size of each file, to detect that a file changed.
    """

    config: WebConfigFile = field(default_factory=WebConfigFile)
    tls: ssl.SSLContext | None = None
    users: BasicAuthUsers = field(default_factory=lambda: BasicAuthUsers({}))
    file_stats: object = None

    @classmethod
    def read(cls, path: Path | None) -> "LoadedWebConfig":
        """Read a web config. Blocks, so call this method in a thread.

        Args:
            path: the web config file; None for an empty web config.

        Raises:
            EndpointSetupError: the web config or a file that it names is invalid.
        """
        if path is None:
            return cls()
        try:
            stats = _read_file_stats([path])  # before the content, so that a later change is noticed
            config = read_yaml_file(path, WebConfigFile)
            tls = config.tls_server_config
            named_files = referenced_files(config, path.parent)
            stats += _read_file_stats(named_files)
            for file in named_files:
                file.open("rb").close()  # OpenSSL's errors do not name the file
            context = tls_context(tls, path.parent) if tls is not None else None
        except ConfigError as error:
            raise EndpointSetupError("; ".join(map(str, error.problems))) from error
        except OSError as error:
            where = f" {error.filename}:" if error.filename else ""
            raise EndpointSetupError(f"{path}: TLS setup failed:{where} {error.strerror or error}") from error
        return cls(config, context, BasicAuthUsers(config.basic_auth_users), stats)

    def read_file_stats(self, path: Path) -> object:
        """Return the current inode, modification time and size of the web config's files. Blocks, so call this method in a thread."""
        return _read_file_stats([path, *referenced_files(self.config, path.parent)])


def _read_file_stats(paths: Sequence[Path]) -> list[tuple[str, int, int, int]]:
    stats = []
    for path in paths:
        with contextlib.suppress(OSError):
            info = path.stat()
            stats.append((str(path), info.st_ino, info.st_mtime_ns, info.st_size))
    return stats
