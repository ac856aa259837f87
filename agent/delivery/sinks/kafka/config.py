"""The config section of Kafka: how to connect, and the topic of each type of record."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from agent.common.client_tls import ClientTlsConfig
from agent.common.config_types import (
    Bytes,
    ConfigSection,
    HostPort,
    PositiveSeconds,
    Topic,
    expand_credentials_directory,
)
from agent.delivery.sinks.base_config import SinkConfig
from agent.delivery.sinks.kafka.message import DEFAULT_HEADER_ATTRIBUTES, ContentMode, HeaderAttribute
from agent.delivery.sinks.kafka.sasl_config import SaslConfig
from agent.model.state_topic_records import STATE_PREFIX


class KafkaConnectionConfig(SinkConfig):
    """How to connect to the brokers."""

    bootstrap_servers: Annotated[list[HostPort], Field(min_length=1)]
    """Addresses of some brokers, host:port. These brokers report the addresses of the others."""
    tls: ClientTlsConfig | None = None
    """TLS. `tls: {}` trusts the system's CA certificates. Without `tls`, connections are not encrypted."""
    sasl: SaslConfig | None = None
    """SASL credentials. Without them, the agent is anonymous, or identified by its client certificate."""
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=249)] = "qmp-agent"
    """Client id, for the logs and quotas of the brokers."""

    def client_options(self) -> dict[str, Any]:
        """Return aiokafka's keyword arguments for the connection.

        Raises:
            OSError: a certificate or the password file cannot be read.
        """
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "client_id": self.client_id,
            **self.security_options(),
        }

    def security_options(self) -> dict[str, Any]:
        """Return aiokafka's keyword arguments for TLS and SASL.

        Raises:
            OSError: a certificate or the password file cannot be read.
        """
        protocol = f"{'SASL_' if self.sasl else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
        options: dict[str, Any] = {"security_protocol": protocol}
        if self.tls is not None:
            options["ssl_context"] = self.tls.ssl_context()
        if self.sasl is not None:
            options |= self.sasl.client_options()
        return options

    def check_secret_paths_expand(self) -> None:
        """Check that the paths of the certificates and of the files with secrets can be expanded.

        Raises:
            OSError: a path starts with `$CREDENTIALS_DIRECTORY`, which is not set.
        """
        paths = list(self.tls.paths) if self.tls is not None else []
        paths += self.sasl.paths if self.sasl is not None else []
        for path in paths:
            expand_credentials_directory(path)


class TopicRouteConfig(ConfigSection):
    """A topic for some types of records."""

    type: Annotated[str, StringConstraints(pattern=r"^qemu\.[a-z_.]*$")]
    """Prefix of the record types, such as qemu.event.vnc_ or qemu.sample.migration."""
    topic: Topic
    """Topic of the record types with this prefix."""


class KafkaTopicsConfig(ConfigSection):
    """Topic of each kind of record."""

    events: Topic = "qemu.events"
    """Topic of events and lifecycle records."""
    samples: Topic = "qemu.samples"
    """Topic of samples."""
    alerts: Topic = "qemu.alerts"
    """Topic of alerts."""
    dead_letters: Topic | None = None
    """Topic of records that their own topic rejects as too large. By default, only the journal stores dead letters."""
    state: Topic | None = "qemu.state"
    """Compacted topic of the current state of VMs, alerts and hosts; null for no such topic."""
    routes: list[TopicRouteConfig] = []
    """Topics of some record types; the first match wins."""

    def topic_for(self, record_type: str) -> str:
        """Return the topic of a record type."""
        if record_type.startswith(STATE_PREFIX) and self.state is not None:
            return self.state
        for route in self.routes:
            if record_type.startswith(route.type):
                return route.topic
        if record_type.startswith("qemu.sample."):
            return self.samples
        return self.alerts if record_type.startswith("qemu.alert.") else self.events

    def all_topics(self) -> set[str]:
        """Return the names of all topics that records are sent to."""
        optional = [topic for topic in (self.state, self.dead_letters) if topic is not None]
        return {self.events, self.samples, self.alerts, *optional, *(route.topic for route in self.routes)}


class KafkaTopicCreationConfig(ConfigSection):
    """How missing topics are created."""

    partitions: Annotated[int, Field(ge=1, le=100_000)] = 12
    """Partitions of each topic. All records of a VM are in one partition. If you add partitions later, VMs move to other partitions."""
    replication_factor: Annotated[int, Field(ge=-1, le=32767)] = -1
    """Replicas of each topic; -1 is the default of the brokers."""


class KafkaConfig(KafkaConnectionConfig):
    """Apache Kafka, or a service that speaks its protocol."""

    topics: KafkaTopicsConfig = KafkaTopicsConfig()
    """Topic of each kind of record."""
    create_topics: KafkaTopicCreationConfig | None = None
    """Create missing topics. Without `create_topics`, records wait until the topic exists."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    """Compression codec. zstd compresses well and is fast; gzip blocks the agent for about 20 ms per batch."""
    content_mode: ContentMode = ContentMode.STRUCTURED
    """Content mode of the CloudEvents Kafka binding. structured: the message value is the whole record, and message headers repeat the
    attributes in `headers`. binary: the message value is the record's `data`, and message headers have all attributes."""
    headers: list[HeaderAttribute] = list(DEFAULT_HEADER_ATTRIBUTES)
    """Attributes that structured mode repeats as message headers, with the prefix `ce_`.

    Each additional header adds 1 to 5 % to compressed batches.
    """
    max_message_bytes: Annotated[Bytes, Field(ge=8192, le=1 << 30)] = 1_000_000
    """Maximum size of a record. Larger records become dead letters. The topics' max.message.bytes must allow this size."""
    request_timeout: PositiveSeconds = 10.0
    """Time limit of one request to a broker."""

    def topic_for(self, record_type: str) -> str:
        """Return the topic of a record type."""
        return self.topics.topic_for(record_type)
