"""How to get to Kafka: servers, TLS, SASL, secrets from files; and what to say to a person when it cannot be had."""

import asyncio
import socket
import ssl
from typing import Annotated, Any, Literal

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    CorrelationIdError,
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from pydantic import Field, StringConstraints

from agent.config_types import Address, Secret, Section, expand
from agent.delivery.sink_config import SinkConfig
from agent.record import clean

PROBE_SECONDS = 5.0


class TlsConfig(Section):
    """TLS to the brokers."""

    ca: Secret | None = None
    """Certificates of the authorities to trust; without it, the system's."""
    certificate: Secret | None = None
    """The agent's own certificate, where the brokers want one."""
    key: Secret | None = None
    """The key of that certificate, where it is not in the same file."""

    def context(self) -> ssl.SSLContext:
        """Return the context, reading the files as they are now.

        Raises:
            OSError: a file cannot be read, or does not hold what it should; it names the file.
        """
        ca, certificate, key = (
            expand(file) if file is not None else None for file in (self.ca, self.certificate, self.key)
        )
        file = ca
        try:
            context = ssl.create_default_context(cafile=ca)
            if certificate is not None:
                file = certificate
                context.load_cert_chain(certificate, key)
        except OSError as error:
            why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
            raise OSError(error.errno, why, file) from error
        return context


class SaslConfig(Section):
    """Who the agent is to the brokers."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    """How the password is shown; PLAIN needs TLS to be safe."""
    username: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    """The user."""
    password_file: Secret
    """A file whose first line is the password; read each time the agent connects."""

    def password(self) -> str:
        """Return the password.

        Raises:
            OSError: the file cannot be read.
        """
        return expand(self.password_file).read_text("utf-8").split("\n", 1)[0]


class Access(SinkConfig):
    """How to reach the brokers."""

    servers: Annotated[list[Address], Field(min_length=1)]
    """Some brokers, host:port; the others are learned from them."""
    tls: TlsConfig | None = None
    """TLS; `tls: {}` trusts the system's authorities. Without it, all goes in the clear."""
    sasl: SaslConfig | None = None
    """Who the agent is. Without it, nobody, or whom its TLS certificate names."""
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=249)] = "qmp-agent"
    """How the agent calls itself in the brokers' logs and quotas."""

    def options(self) -> dict[str, Any]:
        """Return it as aiokafka's clients take it.

        Raises:
            OSError: a certificate or the password cannot be read.
        """
        return {"bootstrap_servers": list(self.servers), "client_id": self.client_id, **self.security()}

    def security(self) -> dict[str, Any]:
        """Return what aiokafka has to know of TLS and SASL.

        Raises:
            OSError: a certificate or the password cannot be read.
        """
        protocol = f"{'SASL_' if self.sasl else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
        options: dict[str, Any] = {"security_protocol": protocol}
        if self.tls is not None:
            options["ssl_context"] = self.tls.context()
        if self.sasl is not None:
            options |= {
                "sasl_mechanism": self.sasl.mechanism,
                "sasl_plain_username": self.sasl.username,
                "sasl_plain_password": self.sasl.password(),
            }
        return options


async def explain(error: BaseException, access: Access) -> str:
    """Return why Kafka cannot be had, for a person. A broker is tried once more where the error does not say it."""
    if isinstance(error, KafkaConnectionError):
        return await _diagnose(error, access)
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return _words(error, ", ".join(access.servers), access)


async def _diagnose(error: KafkaConnectionError, access: Access) -> str:
    """Connect to each server by hand: aiokafka only logs why its own attempts failed."""
    said = []
    for server in access.servers:
        host, _, port = server.rpartition(":")
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                connection = await create_conn(
                    host.strip("[]"),
                    int(port),
                    client_id=access.client_id,
                    request_timeout_ms=int(PROBE_SECONDS * 1000),
                    **access.security(),
                )
            connection.close()
        except Exception as reason:  # noqa: BLE001 - what is no Kafka has aiokafka raise what it likes
            said.append(_words(reason, server, access))
        else:  # it knows Kafka's first words, and no more from us
            said.append(_words(ConnectionResetError(), server, access))
    return "; ".join(dict.fromkeys(said)) or clean(f"no broker takes us: {error}", 500)


def _words(error: BaseException, server: str, access: Access) -> str:  # noqa: C901, PLR0911, PLR0912 - a table of errors and words
    user = access.sasl.username if access.sasl is not None else ""
    cause = error.__cause__ if isinstance(error, KafkaConnectionError) and error.__cause__ is not None else error
    match cause:
        case AuthenticationFailedError() | SaslAuthenticationFailed():
            return f"{server} refuses user {user}: the name or the password is wrong, or the mechanism is not the one the user has"
        case UnsupportedSaslMechanismError():
            return f"{server} does not know the SASL mechanism {access.sasl.mechanism if access.sasl else ''}"
        case IllegalSaslStateError():
            return f"{server} wants no user: leave out kafka.sasl, or name a port that has SASL"
        case TopicAuthorizationFailedError() | ClusterAuthorizationFailedError():
            return f"user {user or 'ANONYMOUS'} may not write there: {clean(str(error), 200)}"
        case UnknownTopicOrPartitionError():
            return "a topic is gone"
        case ssl.SSLCertVerificationError():
            return f"{server} shows a certificate that is not trusted: {cause.verify_message}; see kafka.tls.ca"
        case ssl.SSLError() if "ALERT" in (cause.reason or "") and "CERT" in cause.reason:
            return f"{server} does not take our certificate ({cause.reason}); see kafka.tls.certificate"
        case ssl.SSLError():
            return f"TLS with {server} fails: {cause.reason or cause}; does that port speak TLS?"
        case ConnectionResetError() | ConnectionAbortedError() | EOFError() | CorrelationIdError():
            return f"{server} hangs up, or does not speak as Kafka does. {_doubts(access)}"
        case socket.gaierror():
            return f"{server}: the name cannot be resolved ({cause.strerror})"
        case ConnectionRefusedError():
            return f"{server}: nothing listens there"
        case TimeoutError():
            return f"{server}: no answer in time"
        case OSError():
            return f"{cause.filename or server}: {cause.strerror or cause}"
        case _:
            return clean(f"{server}: {type(cause).__name__}: {cause}", 500)


def _doubts(access: Access) -> str:
    """Return what may be wrong with how we come."""
    wants = [
        "TLS (kafka.tls)" if access.tls is None else "",
        "a certificate of ours (kafka.tls.certificate)" if access.tls and not access.tls.certificate else "",
        "a user (kafka.sasl)" if access.sasl is None else "",
    ]
    may = "Does that port speak TLS? " if access.tls else "Is it Kafka? "
    return f"{may}Does it want {' or '.join(filter(None, wants))}?" if any(wants) else may.rstrip()
