"""Explains to the operator why the agent cannot use Kafka."""

import asyncio
import socket
import ssl

from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    CorrelationIdError,
    IllegalSaslStateError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import ApiVersionRequest

from agent.delivery.sinks.kafka.config import KafkaConnectionConfig
from agent.delivery.sinks.kafka.tokens import TokenError
from agent.model.record import sanitize

PROBE_SECONDS = 5.0
"""Deadline in seconds of a test connection that finds out why aiokafka could not connect."""


async def explain_error(
    error: BaseException, config: KafkaConnectionConfig, probe_seconds: float = PROBE_SECONDS
) -> str:
    """Return a text for the operator that explains an error of aiokafka. If the cause is unknown, connect to the brokers to find the cause.

    Args:
        error: the error.
        config: how to connect to the brokers.
        probe_seconds: deadline of each test connection, in seconds.
    """
    if isinstance(error, KafkaConnectionError) or (isinstance(error, TimeoutError) and _uses_tokens(config)):
        return await _explain_connection_failure(error, config, probe_seconds)
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return _describe_error(error, ", ".join(config.bootstrap_servers), config)


def _uses_tokens(config: KafkaConnectionConfig) -> bool:
    return config.sasl is not None and config.sasl.mechanism == "OAUTHBEARER"


async def _explain_connection_failure(error: BaseException, config: KafkaConnectionConfig, probe_seconds: float) -> str:
    """Connect to each bootstrap server, and return why the connections fail. aiokafka logs the causes, but does not return them."""
    # A server that completes Kafka's handshake is too slow afterwards (TimeoutError), or closes the connection.
    error_after_handshake = error if isinstance(error, TimeoutError) else ConnectionResetError()
    causes = []
    for server in config.bootstrap_servers:
        host, _, port = server.rpartition(":")
        try:
            async with asyncio.timeout(probe_seconds):
                connection = await create_conn(
                    host.strip("[]"),
                    int(port),
                    client_id=config.client_id,
                    request_timeout_ms=int(probe_seconds * 1000),
                    **config.security_options(),
                )
                try:
                    if _uses_tokens(config):
                        await _check_token_accepted(connection)
                finally:
                    connection.close()
        except Exception as cause:  # noqa: BLE001 - aiokafka raises anything at a server that is not Kafka
            causes.append(_describe_error(cause, server, config))
        else:
            causes.append(_describe_error(error_after_handshake, server, config))
    return "; ".join(dict.fromkeys(causes)) or sanitize(f"no broker accepts the connection: {error}", 500)


class _TokenRejectedError(Exception):
    """The broker did not accept the OAUTHBEARER token."""


async def _check_token_accepted(connection: AIOKafkaConnection) -> None:
    """Send a request to check that the broker has accepted the token. aiokafka ignores the broker's response to the token.

    Raises:
        _TokenRejectedError: the broker still waits for a token, or closes the connection.
    """
    try:
        response = await connection.send(ApiVersionRequest())
    except KafkaConnectionError as error:
        raise _TokenRejectedError from error
    if response.error_code:
        raise _TokenRejectedError


def _describe_error(error: BaseException, server: str, config: KafkaConnectionConfig) -> str:  # noqa: C901, PLR0911, PLR0912 - a table of errors and texts
    user = config.sasl.credentials_description if config.sasl is not None else "user ANONYMOUS"
    cause = error.__cause__ if isinstance(error, KafkaConnectionError) and error.__cause__ is not None else error
    match cause:
        case TokenError():
            return str(cause.args[0])
        case _TokenRejectedError():
            return f"{server} rejects {user}: {_REJECTION_HINT}"
        case AuthenticationFailedError() | SaslAuthenticationFailed():
            return f"{server} rejects {user}: wrong user name, password or mechanism; check kafka.sasl"
        case UnsupportedSaslMechanismError():
            mechanism = config.sasl.mechanism if config.sasl else ""
            return f"{server} does not support SASL mechanism {mechanism}; change kafka.sasl.mechanism"
        case IllegalSaslStateError():
            return f"{server} does not offer SASL on this port: remove kafka.sasl, or use a SASL listener"
        case TopicAuthorizationFailedError() | ClusterAuthorizationFailedError():
            return f"{user} is not authorized: {sanitize(str(error), 200)}: grant it Describe and Write on the topics"
        case UnknownTopicOrPartitionError():
            return "a topic was deleted: create it again, or set kafka.create_topics"
        case InvalidProducerEpoch() | OutOfOrderSequenceNumber() | ProducerFenced() | UnknownProducerId():
            return f"the brokers fenced the producer: {type(cause).__name__}; the agent connects again"
        case ssl.SSLCertVerificationError():
            return f"{server} has a certificate that is not trusted: {cause.verify_message}; check kafka.tls.ca"
        case ssl.SSLError() if "ALERT" in (cause.reason or "") and "CERT" in cause.reason:
            return f"{server} rejects the client certificate: {cause.reason}; check kafka.tls.certificate"
        case ssl.SSLError():
            return f"TLS with {server} fails: {cause.reason or cause}; check that the port is a TLS listener"
        case ConnectionResetError() | ConnectionAbortedError() | EOFError() | CorrelationIdError():
            return f"{server} closes the connection or does not speak Kafka's protocol; {_listener_hint(config)}"
        case socket.gaierror():
            return f"{server}: name resolution fails: {cause.strerror}"
        case ConnectionRefusedError():
            return f"{server}: connection refused"
        case TimeoutError():
            return f"{server}: no answer in time"
        case OSError():
            return f"{cause.filename or server}: {cause.strerror or cause}"
        case _:
            return sanitize(f"{server}: {type(cause).__name__}: {cause}", 500)


_REJECTION_HINT = (
    "check the scope and the audience, and the brokers' config of issuer, audience and keys; "
    "the brokers' log has the reason"
)


def _listener_hint(config: KafkaConnectionConfig) -> str:
    """Return what the operator should check if a server closes connections."""
    port = "a TLS listener" if config.tls else "a Kafka listener"
    missing = [
        "TLS (kafka.tls)" if config.tls is None else "",
        "a client certificate (kafka.tls.certificate)" if config.tls and not config.tls.certificate else "",
        "a user (kafka.sasl)" if config.sasl is None else "",
    ]
    required = " or ".join(filter(None, missing))
    return f"check that the port is {port}" + (f", and whether it requires {required}" if required else "")
