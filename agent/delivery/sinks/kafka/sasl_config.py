"""The config section of the brokers' credentials (SASL)."""

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import StringConstraints, model_validator

from agent.common.config_types import ConfigSection, SecretPath, expand_credentials_directory
from agent.delivery.sinks.kafka.oauth_config import OauthConfig

if TYPE_CHECKING:
    from aiokafka.abc import AbstractTokenProvider

_Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class SaslConfig(ConfigSection):
    """Credentials for the brokers."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    """SASL mechanism; PLAIN and OAUTHBEARER need TLS to be safe."""
    username: _Name | None = None
    """User name, for PLAIN and SCRAM."""
    password_file: SecretPath | None = None
    """File with the password in its first line; read at each connect."""
    oauth: OauthConfig | None = None
    """Token endpoint, for OAUTHBEARER."""
    token_file: SecretPath | None = None
    """File with a token for OAUTHBEARER in its first line, instead of `oauth`; read at each connect. Another program renews the token."""
    extensions: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+$")], str] = {}
    """SASL extensions for OAUTHBEARER, such as {logicalCluster: lkc-1}."""

    @model_validator(mode="after")
    def _check_mechanism(self) -> "SaslConfig":
        if self.mechanism == "OAUTHBEARER":
            if (self.oauth is None) == (self.token_file is None):
                raise ValueError("OAUTHBEARER needs either oauth or token_file")
            if self.username is not None or self.password_file is not None:
                raise ValueError("OAUTHBEARER takes no username and no password_file: remove them")
        elif self.username is None or self.password_file is None:
            raise ValueError(f"{self.mechanism} needs username and password_file")
        elif self.oauth is not None or self.token_file is not None or self.extensions:
            raise ValueError(f"oauth, token_file and extensions need mechanism OAUTHBEARER, not {self.mechanism}")
        return self

    @property
    def credentials_description(self) -> str:
        """The user, the OAuth client or the token file that the agent authenticates with, for error messages."""
        if self.username is not None:
            return f"user {self.username}"
        return (
            f"the token of client {self.oauth.client_id}"
            if self.oauth is not None
            else f"the token in {self.token_file}"
        )

    @property
    def paths(self) -> list[str]:
        """The paths of all secrets and certificates, as written in the config."""
        paths = [self.password_file, self.token_file]
        if self.oauth is not None:
            paths += [self.oauth.client_secret_file, *(self.oauth.tls.paths if self.oauth.tls is not None else ())]
        return [path for path in paths if path is not None]

    def client_options(self) -> dict[str, Any]:
        """Return aiokafka's keyword arguments for these credentials. The call blocks while it reads the password file.

        Raises:
            OSError: the password file cannot be read.
        """
        options: dict[str, Any] = {"sasl_mechanism": self.mechanism}
        if self.mechanism == "OAUTHBEARER":
            return options | {"sasl_oauth_token_provider": self._token_provider}
        assert self.password_file is not None, "the validator has checked it"
        password = expand_credentials_directory(self.password_file).read_text("utf-8").split("\n", 1)[0]
        return options | {"sasl_plain_username": self.username, "sasl_plain_password": password}

    @cached_property
    def _token_provider(self) -> "AbstractTokenProvider":
        """The token provider of all connections, which therefore share one token."""
        # Import late: an agent without Kafka does not import aiokafka.
        from agent.delivery.sinks.kafka.tokens import FileTokenProvider, OidcTokenProvider  # noqa: PLC0415

        if self.oauth is not None:
            return OidcTokenProvider(self.oauth, self.extensions)
        assert self.token_file is not None, "the validator has checked it"
        return FileTokenProvider(self.token_file, self.extensions)
