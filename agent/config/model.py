"""The config file as types: every key with its default and its description. `agent.config.loader` reads the file.

The docstring of a key is its description in config/agent.schema.json.
"""

import operator
import os
import socket
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from agent.alerts.levels import parse_level
from agent.alerts.threshold_types import ThresholdMode
from agent.common.config_types import HostPort, PositiveSeconds, SecretPath, Section
from agent.common.units import Bytes, Seconds
from agent.delivery.sinks.config import SinkConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.host.libvirt_metadata import LabelsConfig
from agent.monitors import ENTRIES, DiscovererConfig

TAG_PREFIX = "discoverer:"
"""Prefix of the tags by which pydantic distinguishes the entries of `monitors`."""

ENTRY_TYPES = {f"{TAG_PREFIX}{entry.key()}": entry for entry in ENTRIES}
"""The types of the entries of `monitors` by tag."""


def _tag(entry: object) -> str:
    """Return the tag of an entry of `monitors` by its keys; the first tag if none of them fits."""
    keys = entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})
    return next((tag for tag in ENTRY_TYPES if tag.removeprefix(TAG_PREFIX) in keys), next(iter(ENTRY_TYPES)))


if TYPE_CHECKING:
    MonitorConfig = DiscovererConfig
else:
    MonitorConfig = Annotated[
        reduce(operator.or_, (Annotated[entry, Tag(tag)] for tag, entry in ENTRY_TYPES.items())), Discriminator(_tag)
    ]


def _level(value: str) -> str:
    return parse_level(value).text


LevelText = Annotated[str, AfterValidator(_level)]
"""A threshold level, such as `90%`, `used 100GiB` or `free 2GiB`."""


class JournalConfig(Section):
    """Stores records on disk until Kafka acknowledges them: all events and alerts, and the samples that do not fit in memory."""

    directory: Path = Field(default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY") or "/var/lib/qmp-agent"))
    """Directory of the journal; by default systemd's state directory, else /var/lib/qmp-agent."""
    alerts: Annotated[Bytes, Field(ge=1 << 20)] = 64 << 20
    """Maximum disk space for alerts. Beyond it, the agent drops the oldest alerts, counts them and reports them."""
    events: Annotated[Bytes, Field(ge=1 << 20)] = 512 << 20
    """The same for events and lifecycle changes."""
    samples: Annotated[Bytes, Field(ge=1 << 20)] = 256 << 20
    """The same for samples."""


class WebConfig(Section):
    """The HTTP endpoint: /metrics, /healthz, /readyz and the page."""

    listen_address: HostPort = "127.0.0.1:9179"
    """Address to listen on. Without `config_file`, every client that reaches it can read the names, disks and events of guests."""
    config_file: SecretPath | None = None
    """TLS, client certificates and users: a web configuration file in the format of Prometheus' exporter-toolkit."""


class IntervalsConfig(Section):
    """How often the agent polls what QEMU does not report by events."""

    poll: Annotated[Seconds, Field(ge=0.1)] = 10.0
    """Block statistics, and migrations if QEMU's migration events are off."""
    guest_memory: Annotated[Seconds, Field(ge=1)] = 30.0
    """Memory statistics of the guest's balloon driver."""
    migration: Annotated[Seconds, Field(ge=0.1)] = 1.0
    """A running migration."""
    kvm: Annotated[Seconds, Field(ge=1)] = 300.0
    """KVM's statistics."""
    resync: Annotated[Seconds, Field(ge=1)] = 300.0
    """Everything, because an event may have been lost."""
    storage: Annotated[Seconds, Field(ge=1)] = 30.0
    """The pools under the images. File systems are checked every five seconds at least, and faster near an alert level."""


class TimeoutsConfig(Section):
    """How long the agent waits for QEMU, and for delivery when it stops."""

    greeting: PositiveSeconds = 3.0
    """A monitor that sends no greeting within this time is busy: another client holds it."""
    response: PositiveSeconds = 5.0
    """A VM that sends no response within this time is stalled. The agent sends no further command until the response arrives."""
    retry: PositiveSeconds = 30.0
    """Maximum time between two attempts to connect."""
    shutdown: PositiveSeconds = 10.0
    """Maximum time to deliver the remaining records at shutdown."""


class AllowConfig(Section):
    """Changes that the agent may make to QEMU. It makes none by default."""

    guest_stats_interval: Annotated[Seconds, Field(ge=1, le=3600)] | None = None
    """Polling interval of the guest's memory statistics to set in QEMU if none is set. Not set when absent."""
    libvirt_passthrough: bool = False
    """Query the QEMUs of libvirt's domains through libvirt for what libvirt does not report. libvirt then marks the domains as tainted."""
    migration_events: bool = False
    """Enable QEMU's MIGRATION events, so that short migrations are reported too. libvirt always enables them."""


class DiskConfig(Section):
    """Write thresholds of some disks."""

    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    disk: str = "*"
    """Device id of the disks; * and ? are wildcards."""
    mode: ThresholdMode | None = None
    """Overrides write_threshold.mode."""
    levels: list[LevelText] | None = None
    """Overrides write_threshold.levels."""


class WriteThresholdConfig(Section):
    """Alerts before a thin disk is full."""

    mode: ThresholdMode = ThresholdMode.OBSERVE
    """`observe` compares levels at each poll. `arm` also sets QEMU's write thresholds, so that QEMU reports the write itself."""
    levels: list[LevelText] = ["80%", "90%", "95%"]
    """Levels in percent of the disk, bytes used or bytes free, in any order."""
    hysteresis: Annotated[float, Field(ge=0, le=50)] = 2.0
    """A level is resolved when usage falls below it by this percentage of the disk's size."""
    disks: list[DiskConfig] = []
    """Overrides for some disks; the first match wins."""


class AlertmanagerConfig(Section):
    """Sends alerts to Prometheus' Alertmanager directly, without Prometheus."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^/]+(/.*)?$")]
    """URL of the Alertmanager, without /api/v2."""
    resend_interval: Annotated[Seconds, Field(ge=1)] = 60.0
    """How often the agent sends firing alerts again. Alertmanager resolves an alert that it does not receive for four intervals."""
    labels: dict[str, str] = {}
    """Labels to add to every alert, such as {cluster: eu1}."""


class AlertsConfig(Section):
    """Alerts. The agent emits each alert as a record and as a metric."""

    write_threshold: WriteThresholdConfig = WriteThresholdConfig()
    """Alerts before a thin disk is full."""
    alertmanager: AlertmanagerConfig | None = None
    """Alertmanager to send alerts to."""


class LimitsConfig(Section):
    """Limits of one VM's series on /metrics, because a guest can choose names in its series.

    Series beyond a limit are left out and counted. Their records are still emitted, up to 4096 subjects per poll.
    """

    series_per_vm: Annotated[int, Field(ge=100, le=1_000_000)] = 5000
    """Maximum series of one VM's disks, vCPUs, jobs and other subjects together."""
    new_subjects_per_hour: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Maximum new subjects of one VM within an hour. Without it, names that change at each poll would fill Prometheus."""


class LogConfig(Section):
    """The agent's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level to log."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto` is text on a terminal and for journald, else JSON."""


class Config(Section):
    """The config file. Only `monitors` is required."""

    monitors: Annotated[list[MonitorConfig], Field(min_length=1)]
    """How the agent reaches the QMP monitors of VMs. docs/monitors.md compares the kinds of entries."""
    host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(default_factory=socket.gethostname)
    """Name of this host in records; by default the system's host name."""
    kafka: KafkaConfig | None = None
    """Sends records to Apache Kafka. Without it, records go to `jsonl`."""
    jsonl: JsonLinesConfig = JsonLinesConfig()
    """Writes records as JSON lines if `kafka` is absent."""
    journal: JournalConfig = JournalConfig()
    """Stores records on disk until Kafka acknowledges them. Without `kafka`, there is no journal."""
    buffer_memory: Annotated[Bytes, Field(ge=1 << 20)] = 32 << 20
    """Maximum memory for records that wait for delivery. Records beyond it are on disk only, in the journal."""
    web: WebConfig = WebConfig()
    """The HTTP endpoint."""
    intervals: IntervalsConfig = IntervalsConfig()
    """How often the agent polls what QEMU does not report by events."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long the agent waits for QEMU, and for delivery when it stops."""
    alerts: AlertsConfig = AlertsConfig()
    """Alerts. The agent emits each alert as a record and as a metric."""
    allow: AllowConfig = AllowConfig()
    """Changes that the agent may make to a QEMU."""
    labels: LabelsConfig = LabelsConfig()
    """Labels of qemu_vm_info from libvirt's files."""
    limits: LimitsConfig = LimitsConfig()
    """Limits of one VM's series on /metrics."""
    log: LogConfig = LogConfig()
    """The agent's own log."""

    @property
    def sink(self) -> SinkConfig:
        """The sink of the records; by default JSON lines on standard output."""
        return next(iter(self._sinks().values()), self.jsonl)

    def _sinks(self) -> dict[str, SinkConfig]:
        """Return the configured sinks by key."""
        sinks = {"kafka": self.kafka, "jsonl.path": self.jsonl if self.jsonl.path is not None else None}
        return {key: sink for key, sink in sinks.items() if sink is not None}

    @model_validator(mode="after")
    def _one_sink(self) -> "Config":
        if len(keys := list(self._sinks())) > 1:
            raise ValueError(f"{' and '.join(keys[:2])} exclude each other: remove one of them")
        if min(self.journal.alerts, self.journal.events, self.journal.samples) < self.buffer_memory:
            raise ValueError("journal.alerts, journal.events and journal.samples should each be at least buffer_memory")
        return self
