"""The web config: TLS, authentication and rate limit of the endpoint, in the file format of Prometheus' exporter-toolkit.

Python's TLS does not support three features of that format: certificates inside the file, curve preferences, and unverified client
certificates. A file that uses one of them is rejected, and the error names the feature.
"""

import contextlib
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent.common.units import Seconds
from agent.config.loader import ConfigError, read
from agent.http.basic_auth import BasicAuthUsers

MAX_COST = 16
"""Maximum bcrypt cost. A check of cost 10 takes 50 ms, and each step doubles the time. With cost 16, a user's first request takes 4 s."""

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}

_SUITES = {
    f"TLS_ECDHE_{key}_WITH_{cipher}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for cipher, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}
"""OpenSSL's name by Go's name of the TLS 1.2 suites that are not weak. Neither Go nor OpenSSL here can choose suites of TLS 1.3."""


def _bcrypt(value: str) -> str:
    match = re.fullmatch(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", value)
    if match is None or not 4 <= int(match[1]) <= MAX_COST:
        raise ValueError(f"should be a bcrypt hash of cost 4 to {MAX_COST}, as `htpasswd -nBC 10 ''` prints it")
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[\x20-\x7e]*", value):
        raise ValueError("should be printable ASCII")
    return value


def _suite(value: str) -> str:
    if value not in _SUITES:
        raise ValueError(f"should be one of {', '.join(_SUITES)}")
    return value


class _WebSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TlsServer(_WebSection):
    """TLS and client certificates. Paths are relative to the web config's directory."""

    cert_file: Path
    """The endpoint's certificate chain (PEM)."""
    key_file: Path
    """The certificate's private key (PEM)."""
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = "NoClientCert"
    """Policy for client certificates, which `client_ca_file` must have issued."""
    client_ca_file: Path | None = None
    """Certificate authorities of the clients (PEM)."""
    client_allowed_sans: list[str] = []
    """Subject alternative names, compared literally. A client's certificate needs one of them. An empty list allows all."""
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS12"
    """The oldest accepted TLS version."""
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS13"
    """The newest accepted TLS version."""
    cipher_suites: list[Annotated[str, AfterValidator(_suite)]] = []
    """Cipher suites of TLS 1.2; empty uses OpenSSL's defaults."""
    prefer_server_cipher_suites: bool = True
    """Prefer the order of `cipher_suites` to the client's."""

    @model_validator(mode="after")
    def _check_client_auth(self) -> "TlsServer":
        if (self.client_auth_type == "NoClientCert") != (self.client_ca_file is None):
            raise ValueError("client_ca_file and a client_auth_type that uses it go together")
        if self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert")
        return self


class HttpServer(_WebSection):
    """HTTP settings."""

    http2: bool = True
    """Accepted and ignored. The endpoint speaks HTTP/1.1, and every client can use it."""
    headers: dict[
        Literal[
            "Content-Security-Policy",
            "X-Frame-Options",
            "X-Content-Type-Options",
            "X-XSS-Protection",
            "Strict-Transport-Security",
            "Cache-Control",
        ],
        Annotated[str, AfterValidator(_header)],
    ] = {}
    """Response headers that replace the endpoint's own; an empty value removes the header."""


class RateLimit(_WebSection):
    """Rate limit of all clients together, as a token bucket."""

    interval: Annotated[Seconds, Field(ge=0)] = 0.0
    """Time after which one more request is allowed; 0 means no limit."""
    burst: Annotated[int, Field(ge=1)] = 1
    """Requests that are allowed at once."""


class WebConfigFile(_WebSection):
    """The web config file. An empty file sets no restriction."""

    tls_server_config: TlsServer | None = None
    """TLS; without it the endpoint speaks plain HTTP."""
    http_server_config: HttpServer = HttpServer()
    """HTTP settings."""
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt)]] = {}
    """Users and the bcrypt hashes of their passwords; if there are none, no password is required."""
    rate_limit: RateLimit = RateLimit()
    """Rate limit of requests."""

    @property
    def authenticates(self) -> bool:
        """True if clients must authenticate, by password or by certificate."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


def referenced_files(config: WebConfigFile, directory: Path) -> list[Path]:
    """Return the paths of the files that a web config refers to; relative ones start at `directory`."""
    tls = config.tls_server_config
    paths = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls is not None else ()
    return [directory / path for path in paths if path is not None]


def tls_context(tls: TlsServer, directory: Path) -> ssl.SSLContext:
    """Return the server's TLS context.

    Raises:
        OSError: a file cannot be read; its subclass ssl.SSLError if a file is not valid.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = _VERSIONS[tls.min_version], _VERSIONS[tls.max_version]
    if tls.cipher_suites:
        context.set_ciphers(":".join(_SUITES[suite] for suite in tls.cipher_suites))
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    # Without a callback, OpenSSL asks for a key's passphrase on the terminal.
    context.load_cert_chain(directory / tls.cert_file, directory / tls.key_file, password=lambda: "")
    if tls.client_ca_file is not None:
        context.load_verify_locations(directory / tls.client_ca_file)
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


class EndpointError(Exception):
    """The endpoint cannot be served; the text is for people."""


@dataclass(frozen=True, slots=True)
class LoadedWebConfig:
    """A web config with its TLS context and users.

    Attributes:
        config: the file.
        tls: the server's TLS context; None is plain HTTP.
        users: the users that may authenticate.
        signature: identity of the files' contents, to detect changes.
    """

    config: WebConfigFile = field(default_factory=WebConfigFile)
    tls: ssl.SSLContext | None = None
    users: BasicAuthUsers = field(default_factory=lambda: BasicAuthUsers({}))
    signature: object = None

    @classmethod
    def read(cls, path: Path | None) -> "LoadedWebConfig":
        """Read a web config; blocks, so call it in a thread.

        Args:
            path: the file; None is an empty web config.

        Raises:
            EndpointError: the web config or a file that it names is invalid.
        """
        if path is None:
            return cls()
        try:
            config = read(path, WebConfigFile)
            tls = config.tls_server_config
            signature = _signature([path, *referenced_files(config, path.parent)])
            context = tls_context(tls, path.parent) if tls is not None else None
        except ConfigError as error:
            raise EndpointError("; ".join(map(str, error.problems))) from error
        except OSError as error:
            where = f" {error.filename}:" if error.filename else ""
            raise EndpointError(f"{path}: TLS setup failed:{where} {error.strerror or error}") from error
        return cls(config, context, BasicAuthUsers(config.basic_auth_users), signature)

    def sign(self, path: Path) -> object:
        """Return the present signature of the files; blocks, so call it in a thread."""
        return _signature([path, *referenced_files(self.config, path.parent)])


def _signature(paths: Sequence[Path]) -> object:
    signatures = []
    for path in paths:
        with contextlib.suppress(OSError):
            info = path.stat()
            signatures.append((str(path), info.st_ino, info.st_mtime_ns, info.st_size))
    return signatures
