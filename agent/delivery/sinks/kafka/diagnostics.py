"""What to say to a person when Kafka cannot be had."""

import asyncio
import socket
import ssl

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

from agent.delivery.sinks.kafka.config import KafkaConnectionConfig
from agent.model.record import sanitize

PROBE_SECONDS = 5.0


async def explain(error: BaseException, access: KafkaConnectionConfig) -> str:
    """Return why Kafka cannot be had, for a person. A broker is tried once more where the error does not say it."""
    if isinstance(error, KafkaConnectionError):
        return await _diagnose(error, access)
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return _words(error, ", ".join(access.bootstrap_servers), access)


async def _diagnose(error: KafkaConnectionError, access: KafkaConnectionConfig) -> str:
    """Connect to each server by hand: aiokafka only logs why its own attempts failed."""
    said = []
    for server in access.bootstrap_servers:
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
    return "; ".join(dict.fromkeys(said)) or sanitize(f"no broker takes us: {error}", 500)


def _words(error: BaseException, server: str, access: KafkaConnectionConfig) -> str:  # noqa: C901, PLR0911, PLR0912 - a table of errors and words
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
            return f"user {user or 'ANONYMOUS'} may not write there: {sanitize(str(error), 200)}"
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
            return sanitize(f"{server}: {type(cause).__name__}: {cause}", 500)


def _doubts(access: KafkaConnectionConfig) -> str:
    """Return what may be wrong with how we come."""
    wants = [
        "TLS (kafka.tls)" if access.tls is None else "",
        "a certificate of ours (kafka.tls.certificate)" if access.tls and not access.tls.certificate else "",
        "a user (kafka.sasl)" if access.sasl is None else "",
    ]
    may = "Does that port speak TLS? " if access.tls else "Is it Kafka? "
    return f"{may}Does it want {' or '.join(filter(None, wants))}?" if any(wants) else may.rstrip()
