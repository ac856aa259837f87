"""What the config says of Kafka: how to get there, and where each kind of record goes."""

import ssl
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from agent.common.config_types import Address, Positive, Secret, Section, Topic, expand
from agent.common.units import Bytes
from agent.delivery.sinks.base import Sink
from agent.delivery.sinks.config import SinkConfig


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


class KafkaConnectionConfig(SinkConfig):
    """How to reach the brokers."""

    bootstrap_servers: Annotated[list[Address], Field(min_length=1)]
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
        return {"bootstrap_servers": list(self.bootstrap_servers), "client_id": self.client_id, **self.security()}

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


class RouteConfig(Section):
    """A topic for some types of records."""

    type: Annotated[str, StringConstraints(pattern=r"^qemu\.[a-z_.]*$")]
    """How the types begin, such as qemu.event.vnc_ or qemu.sample.migration."""
    topic: Topic
    """Where they go."""


class KafkaTopicsConfig(Section):
    """Where each kind of record goes."""

    events: Topic = "qemu.events"
    """Events, and changes in a VM's life."""
    samples: Topic = "qemu.samples"
    """What polls say."""
    alerts: Topic = "qemu.alerts"
    """Alerts."""
    routes: list[RouteConfig] = []
    """Types with a topic of their own; the first that fits wins."""

    def of(self, record_type: str) -> str:
        """Return the topic for a record of this type."""
        for route in self.routes:
            if record_type.startswith(route.type):
                return route.topic
        if record_type.startswith("qemu.sample."):
            return self.samples
        return self.alerts if record_type.startswith("qemu.alert.") else self.events

    def all(self) -> set[str]:
        """Return every topic."""
        return {self.events, self.samples, self.alerts, *(route.topic for route in self.routes)}


class KafkaCreateConfig(Section):
    """How topics that are missing are made."""

    partitions: Annotated[int, Field(ge=1, le=100_000)] = 12
    """Partitions of each. A VM's records are all in one; adding partitions later moves VMs between them."""
    replication_factor: Annotated[int, Field(ge=-1, le=32767)] = -1
    """Replicas of each; -1 is as the brokers have it."""


class KafkaConfig(KafkaConnectionConfig):
    """Apache Kafka, or what speaks its protocol."""

    topics: KafkaTopicsConfig = KafkaTopicsConfig()
    """Where each kind of record goes."""
    create_topics: KafkaCreateConfig | None = None
    """How topics that are missing are made. Without it, a missing topic is waited for."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    """The codec. zstd is both small and quick; gzip holds up the agent for some 20 ms a batch."""
    max_message_bytes: Annotated[Bytes, Field(ge=1024, le=1 << 30)] = 1_000_000
    """The largest record that is sent; what is larger goes to the dead letters. The topics' max.message.bytes has to allow it."""
    request_timeout: Positive = 10.0
    """How long a broker may take to answer one request."""

    def build(self) -> Sink:
        """Return the sink.

        Raises:
            OSError: a secret's place cannot be told.
        """
        tls, sasl = self.tls, self.sasl
        secrets = (*((tls.ca, tls.certificate, tls.key) if tls else ()), *((sasl.password_file,) if sasl else ()))
        for secret in filter(None, secrets):
            expand(secret)  # a folder of secrets that is not given is said before anything is begun
        from agent.delivery.sinks.kafka.sink import KafkaSink  # noqa: PLC0415 - aiokafka is 5 MiB, and for those who have a Kafka

        return KafkaSink(self)
