"""Who may read the endpoint and how it is encrypted: a file in the format that Prometheus' exporters share (exporter-toolkit).

What Python's TLS cannot do is refused by name instead of being left out: certificates inside the file, curves, and asking for a client's
certificate without verifying it.
"""

import re
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent.common.units import Seconds

MAX_COST = 16
"""A bcrypt cost of 10 takes 50 ms, and each step twice that: with 16 the first request of a user takes 4 s."""

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
"""Those of Go's suites for TLS 1.2 that are not weak, and what OpenSSL calls them. TLS 1.3's are not chosen, there as here."""


def _bcrypt(value: str) -> str:
    found = re.fullmatch(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", value)
    if found is None or not 4 <= int(found[1]) <= MAX_COST:
        raise ValueError(f"should be a bcrypt hash of a cost from 4 to {MAX_COST}, as `htpasswd -nBC 10 ''` makes it")
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
    """TLS, and whether clients show a certificate. Paths are relative to the file's own folder."""

    cert_file: Path
    """The endpoint's certificate, and those between it and its authority."""
    key_file: Path
    """Its key."""
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = "NoClientCert"
    """Whether a client has to show a certificate that `client_ca_file` vouches for."""
    client_ca_file: Path | None = None
    """The authorities that vouch for clients."""
    client_allowed_sans: list[str] = []
    """Names, addresses or URIs of which a client's certificate has to have one as it is written here; empty: any will do."""
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS12"
    """The oldest version that is spoken."""
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS13"
    """The newest."""
    cipher_suites: list[Annotated[str, AfterValidator(_suite)]] = []
    """Suites for TLS 1.2; empty: OpenSSL's own choice."""
    prefer_server_cipher_suites: bool = True
    """Whether the order of `cipher_suites` counts, or the client's."""

    @model_validator(mode="after")
    def _whole(self) -> "TlsServer":
        if (self.client_auth_type == "NoClientCert") != (self.client_ca_file is None):
            raise ValueError("client_ca_file and a client_auth_type that uses it go together")
        if self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert")
        return self


class HttpServer(_WebSection):
    """HTTP itself."""

    http2: bool = True
    """Read and not used: the endpoint speaks HTTP/1.1, which every client falls back to."""
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
    """Headers that are sent instead of the endpoint's own; an empty one is not sent."""


class RateLimit(_WebSection):
    """Requests of all clients together, as a bucket of tokens."""

    interval: Annotated[Seconds, Field(ge=0)] = 0.0
    """How long it takes until one more request may come; 0 is no limit."""
    burst: Annotated[int, Field(ge=1)] = 1
    """How many may come at once."""


class WebConfigFile(_WebSection):
    """The whole file; an empty one asks for nothing."""

    tls_server_config: TlsServer | None = None
    """TLS; without it, all goes in the clear."""
    http_server_config: HttpServer = HttpServer()
    """HTTP itself."""
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt)]] = {}
    """Users and the bcrypt hashes of their passwords; without any, nobody is asked who they are."""
    rate_limit: RateLimit = RateLimit()
    """How many requests are answered."""

    @property
    def asks_who(self) -> bool:
        """Whether only some may read."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


def files(config: WebConfigFile, folder: Path) -> list[Path]:
    """Return the files that a config in this folder names."""
    tls = config.tls_server_config
    named = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls is not None else ()
    return [folder / path for path in named if path is not None]


def tls_context(tls: TlsServer, folder: Path) -> ssl.SSLContext:
    """Return what a server needs to speak TLS so.

    Raises:
        OSError: a file cannot be read, or (ssl.SSLError) is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = _VERSIONS[tls.min_version], _VERSIONS[tls.max_version]
    if tls.cipher_suites:
        context.set_ciphers(":".join(_SUITES[suite] for suite in tls.cipher_suites))
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    # A key with a passphrase would have OpenSSL ask for it on the terminal.
    context.load_cert_chain(folder / tls.cert_file, folder / tls.key_file, password=lambda: "")
    if tls.client_ca_file is not None:
        context.load_verify_locations(folder / tls.client_ca_file)
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context
