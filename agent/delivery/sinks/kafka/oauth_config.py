"""The config section of the OAuth 2.0 token endpoint for the brokers' credentials."""

from typing import Annotated

from pydantic import StringConstraints

from agent.common.client_tls import ClientTlsConfig
from agent.common.config_types import ConfigSection, SecretPath


class OauthConfig(ConfigSection):
    """How to fetch tokens for OAUTHBEARER from an OAuth 2.0 token endpoint, with OIDC client credentials."""

    token_url: Annotated[str, StringConstraints(pattern=r"^https?://[^/@]+(/.*)?$")]
    """URL of the token endpoint."""
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    """Client id of the agent at the token endpoint."""
    client_secret_file: SecretPath | None = None
    """File with the client secret in its first line; read for each token. Without it, the agent authenticates by its client certificate."""
    scope: str | None = None
    """Scope of the token, if the token endpoint or the brokers require one."""
    tls: ClientTlsConfig | None = None
    """TLS for the token endpoint. By default, the system's CA certificates are trusted. Changed files are read again."""
