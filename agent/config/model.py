"""The config file as types: every key, its default and what it is for. Reading and explaining files is config_file's.

The help of a key is its `description`: config/agent.yaml, agent.schema.json and `qmp-agent check` all speak from here.
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
from agent.common.config_types import Address, Positive, Secret, Section
from agent.common.units import Bytes, Seconds
from agent.delivery.sinks.config import SinkConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.host.libvirt_metadata import LabelsConfig
from agent.monitors import ENTRIES, DiscovererConfig

WAY = "way:"
"""How the names of the kinds of entries begin, by which pydantic tells them apart."""

WAYS = {f"{WAY}{kind.key()}": kind for kind in ENTRIES}
"""The kinds of entries, each by the key that says it."""


def _way(entry: object) -> str:
    """Return which kind of entry one is, by the keys that it has; one that has none is taken for the simplest."""
    given = entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})
    return next((way for way in WAYS if way.removeprefix(WAY) in given), next(iter(WAYS)))


if TYPE_CHECKING:
    MonitorConfig = DiscovererConfig
else:
    MonitorConfig = Annotated[
        reduce(operator.or_, (Annotated[kind, Tag(way)] for way, kind in WAYS.items())), Discriminator(_way)
    ]


def _level(value: str) -> str:
    return parse_level(value).text


LevelText = Annotated[str, AfterValidator(_level)]
"""A threshold level, as the config writes it."""


class JournalConfig(Section):
    """Records on disk until Kafka has them: events and alerts always, samples only what memory cannot hold."""

    directory: Path = Field(default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY") or "/var/lib/qmp-agent"))
    """Where the journal lies; by default systemd's state directory, or else /var/lib/qmp-agent."""
    alerts: Annotated[Bytes, Field(ge=1 << 20)] = 64 << 20
    """How much disk alerts may take. Past it the oldest are dropped, counted and told."""
    events: Annotated[Bytes, Field(ge=1 << 20)] = 512 << 20
    """The same for events and changes in VMs' lives."""
    samples: Annotated[Bytes, Field(ge=1 << 20)] = 256 << 20
    """The same for samples."""


class WebConfig(Section):
    """The HTTP endpoint: /metrics, /healthz, /readyz and the page."""

    listen_address: Address = "127.0.0.1:9179"
    """Where to listen. Without `config_file`, anyone who reaches it can read the names, disks and events of guests."""
    config_file: Secret | None = None
    """TLS, client certificates, users and their passwords: a web configuration file as Prometheus' own exporters have it."""


class IntervalsConfig(Section):
    """How often to ask what no event tells."""

    poll: Annotated[Seconds, Field(ge=0.1)] = 10.0
    """Block statistics; and migration where QEMU's migration events are off."""
    guest_memory: Annotated[Seconds, Field(ge=1)] = 30.0
    """The guest's own memory statistics, where its balloon driver tells them."""
    migration: Annotated[Seconds, Field(ge=0.1)] = 1.0
    """A migration that is under way."""
    kvm: Annotated[Seconds, Field(ge=1)] = 300.0
    """KVM's statistics, where KVM runs the VM."""
    resync: Annotated[Seconds, Field(ge=1)] = 300.0
    """Everything, to mend what a lost event left wrong."""


class TimeoutsConfig(Section):
    """How long to wait before a VM is called something else than up."""

    greeting: Positive = 3.0
    """A monitor that does not greet by then is busy: another client holds it."""
    response: Positive = 5.0
    """A VM that does not answer by then is stalled. Nothing more is asked until the answer comes."""
    retry: Positive = 30.0
    """The longest wait between two attempts to connect."""
    shutdown: Positive = 10.0
    """How long stopping may take to deliver what is left."""


class AllowConfig(Section):
    """Changes that the agent may make to a QEMU. None is made unless it is asked for here."""

    guest_stats_interval: Annotated[Seconds, Field(ge=1, le=3600)] | None = None
    """Have guests tell their memory statistics this often, where nobody has set it. Off when absent."""
    libvirt_passthrough: bool = False
    """Ask the QEMUs of libvirt's domains themselves, through libvirt, for what it does not tell. libvirt then marks them as tainted."""
    migration_events: bool = False
    """Switch on QEMU's MIGRATION events, so that short migrations are seen whole. libvirt always does."""


class DiskConfig(Section):
    """What is wanted of some disks."""

    vm: str = "*"
    """The VMs, by name or UUID; * and ? stand for any."""
    disk: str = "*"
    """The disks, by their guest-visible device's id; * and ? stand for any."""
    mode: ThresholdMode | None = None
    """As write_threshold.mode, for these."""
    levels: list[LevelText] | None = None
    """As write_threshold.levels, for these."""


class WriteThresholdConfig(Section):
    """Warnings before a thin disk is full."""

    mode: ThresholdMode = ThresholdMode.OBSERVE
    """`observe` compares levels at each poll and sets nothing; `arm` sets QEMU's write thresholds, so that it tells at the write."""
    levels: list[LevelText] = ["80%", "90%", "95%"]
    """The ladder: percent of the disk, bytes used or bytes free, in any order."""
    hysteresis: Annotated[float, Field(ge=0, le=50)] = 2.0
    """By how many percent of its size a disk has to come down before a level is resolved."""
    disks: list[DiskConfig] = []
    """Disks for which something else is wanted; the first that fits wins."""


class AlertmanagerConfig(Section):
    """Prometheus' Alertmanager, told directly; it needs no Prometheus for that."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^/]+(/.*)?$")]
    """Its address, without /api/v2."""
    resend_interval: Annotated[Seconds, Field(ge=1)] = 60.0
    """How often firing alerts are sent again; Alertmanager forgets those that it does not hear of four times."""
    labels: dict[str, str] = {}
    """Labels added to every alert, such as {cluster: eu1}."""


class AlertsConfig(Section):
    """What is worth waking somebody for."""

    write_threshold: WriteThresholdConfig = WriteThresholdConfig()
    """Warnings before a thin disk is full."""
    alertmanager: AlertmanagerConfig | None = None
    """Alertmanager, told directly. Without it, alerts are records and metrics."""


class LimitsConfig(Section):
    """What one VM may take of /metrics, since the names in it are the VM's to choose. Records have all; what is left out is counted."""

    series_per_vm: Annotated[int, Field(ge=100, le=1_000_000)] = 5000
    """Series of one VM's disks, vCPUs, jobs and the like, all together."""
    new_subjects_per_hour: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Disks, vCPUs, jobs and the like that are new to one VM within an hour: names that change at each poll would fill Prometheus."""


class LogConfig(Section):
    """The agent's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe line that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto` is text on a terminal and under systemd's journal, JSON elsewhere."""


class Config(Section):
    """The whole file. Only `monitors` is needed."""

    monitors: Annotated[list[MonitorConfig], Field(min_length=1)]
    """Ways of reaching the VMs' monitors; several at once. See docs/monitors.md for what each needs and costs."""
    host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(default_factory=socket.gethostname)
    """This host's name in records; by default what the system calls itself."""
    kafka: KafkaConfig | None = None
    """Apache Kafka. Without it, records go to `jsonl`."""
    jsonl: JsonLinesConfig = JsonLinesConfig()
    """Records as JSON lines, where there is no Kafka."""
    journal: JournalConfig = JournalConfig()
    """Records on disk until Kafka has them; without `kafka`, there is none."""
    buffer_memory: Annotated[Bytes, Field(ge=1 << 20)] = 32 << 20
    """How much memory records may take that wait to be delivered. Past it they lie in the journal alone."""
    web: WebConfig = WebConfig()
    """The HTTP endpoint."""
    intervals: IntervalsConfig = IntervalsConfig()
    """How often to ask what no event tells."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long to wait."""
    alerts: AlertsConfig = AlertsConfig()
    """What is worth waking somebody for."""
    allow: AllowConfig = AllowConfig()
    """Changes that the agent may make to a QEMU."""
    labels: LabelsConfig = LabelsConfig()
    """Labels of qemu_vm_info that are read out of libvirt's files."""
    limits: LimitsConfig = LimitsConfig()
    """What one VM may take of /metrics."""
    log: LogConfig = LogConfig()
    """The agent's own log."""

    @property
    def sink(self) -> SinkConfig:
        """Where records go: standard output where nothing says it."""
        return next(iter(self._sinks().values()), self.jsonl)

    def _sinks(self) -> dict[str, SinkConfig]:
        """Return the sections that say where records go, each by the key that does."""
        sinks = {"kafka": self.kafka, "jsonl.path": self.jsonl if self.jsonl.path is not None else None}
        return {key: sink for key, sink in sinks.items() if sink is not None}

    @model_validator(mode="after")
    def _one_sink(self) -> "Config":
        if len(given := list(self._sinks())) > 1:
            raise ValueError(f"{' and '.join(given[:2])} are both given; records go to one of them: remove the other")
        if min(self.journal.alerts, self.journal.events, self.journal.samples) < self.buffer_memory:
            raise ValueError("journal.alerts, journal.events and journal.samples should each be at least buffer_memory")
        return self
