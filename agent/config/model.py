"""The sections of the config file as types. Each key has its default and its description. `agent.config.loader` reads the file.

The text below a key is the key's description in agent/config/agent.schema.json.
"""

import operator
import os
import socket
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from agent.alerts.alertmanager_config import AlertmanagerConfig
from agent.alerts.disk_levels import parse_disk_level
from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.pool_levels import parse_pool_level
from agent.common.config_types import Bytes, ConfigSection, PositiveSeconds, Seconds
from agent.config.alert_rules import (
    MAX_CUSTOM_ALERTS,
    AlertOverrideConfig,
    CustomAlertConfig,
    check_override_names,
)
from agent.config.latency_boundaries import LatencyBoundaries
from agent.config.web import WebSectionConfig
from agent.delivery.sinks.base_config import SinkConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.guest.config import GuestAgentConfig
from agent.host.libvirt_metadata import LabelsConfig
from agent.monitors import MONITOR_CONFIG_TYPES, DiscovererConfig

MONITOR_TAG_PREFIX = "discoverer:"
"""Prefix of the tags that pydantic uses to distinguish the types of entries in `monitors`."""

MONITOR_CONFIG_TYPE_BY_TAG = {
    f"{MONITOR_TAG_PREFIX}{entry.transport_config_key()}": entry for entry in MONITOR_CONFIG_TYPES
}
"""The types of entries in `monitors`, by pydantic's tag."""


def _tag_of_entry(entry: object) -> str:
    """Return pydantic's tag for an entry in `monitors`: the key that names the transport.

    An entry that names no transport gets the first tag, so that the error lists the valid keys.
    """
    keys = entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})
    return next(
        (tag for tag in MONITOR_CONFIG_TYPE_BY_TAG if tag.removeprefix(MONITOR_TAG_PREFIX) in keys),
        next(iter(MONITOR_CONFIG_TYPE_BY_TAG)),
    )


if TYPE_CHECKING:
    MonitorConfig = DiscovererConfig
else:
    MonitorConfig = Annotated[
        reduce(operator.or_, (Annotated[entry, Tag(tag)] for tag, entry in MONITOR_CONFIG_TYPE_BY_TAG.items())),
        Discriminator(_tag_of_entry),
    ]


def _normalize_level(value: str) -> str:
    return parse_disk_level(value).text


LevelText = Annotated[str, AfterValidator(_normalize_level)]
"""An alert level of a disk, such as `90%`, `used 100GiB` or `free 2GiB`."""


class JournalSizeConfig(ConfigSection):
    """Maximum disk space of each queue. Beyond this size, the agent drops the queue's oldest records, counts them and reports them."""

    alerts: Annotated[Bytes, Field(ge=1 << 20)] = 64 << 20
    """Maximum disk space for alerts."""
    events: Annotated[Bytes, Field(ge=1 << 20)] = 512 << 20
    """Maximum disk space for events and lifecycle changes."""
    samples: Annotated[Bytes, Field(ge=1 << 20)] = 256 << 20
    """Maximum disk space for samples."""


class JournalConfig(ConfigSection):
    """Stores records on disk until Kafka acknowledges them: all events and alerts, and the samples that do not fit in memory."""

    directory: Path = Field(default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY") or "/var/lib/qmp-agent"))
    """Directory of the journal; by default systemd's state directory, else /var/lib/qmp-agent."""
    max_size: JournalSizeConfig = JournalSizeConfig()
    """Maximum disk space of each queue."""


class IntervalsConfig(ConfigSection):
    """Intervals at which the agent polls data that QEMU does not report by events."""

    poll: Annotated[Seconds, Field(ge=0.1)] = 10.0
    """Interval for block statistics and for the kernel's statistics of the VM. If QEMU emits no MIGRATION events, also for migrations."""
    guest_memory: Annotated[Seconds, Field(ge=1)] = 30.0
    """Interval for memory statistics of the guest's balloon driver."""
    migrations_and_jobs: Annotated[Seconds, Field(ge=0.1)] = 1.0
    """Interval for migrations, jobs and memory dumps while they run."""
    kvm: Annotated[Seconds, Field(ge=1)] = 300.0
    """Interval for KVM's statistics."""
    resync: Annotated[Seconds, Field(ge=1)] = 300.0
    """Interval at which the agent polls all data again, because an event may have been lost."""
    storage: Annotated[Seconds, Field(ge=1)] = 30.0
    """Interval for the pools under the images. Network file systems, and pools near an alert level, are read more often."""
    host: Annotated[Seconds, Field(ge=1)] = 15.0
    """Interval for the host's CPUs, memory and pressure, and for the sums over its VMs."""


class TimeoutsConfig(ConfigSection):
    """How long the agent waits for QEMU, and for delivery when it stops."""

    greeting: PositiveSeconds = 3.0
    """How long a monitor may take to send its greeting. A monitor that takes longer is busy, because another client holds it."""
    response: PositiveSeconds = 5.0
    """How long QEMU may take to respond. After that, the VM is stalled, and the agent sends no command until the response arrives."""
    max_retry_delay: PositiveSeconds = 30.0
    """Maximum time between two attempts to connect."""
    shutdown: PositiveSeconds = 10.0
    """Maximum time to deliver the remaining records at shutdown."""


class AllowedQemuChangesConfig(ConfigSection):
    """Changes to QEMU that the agent may make, and unstable commands that it may send. By default, there are none."""

    guest_stats_interval: Annotated[Seconds, Field(ge=1, le=3600)] | None = None
    """Interval at which QEMU polls the guest's memory statistics. The agent sets this interval in a QEMU that has none."""
    latency_histograms: LatencyBoundaries = ()
    """Set latency histograms in disks that have none: `true` for bins from 100us to 10s, or a list of the boundaries between the bins,
    such as [1ms, 10ms, 100ms]. A histogram stays until the disk is unplugged or QEMU ends."""
    libvirt_passthrough: bool = False
    """Query the QEMUs of libvirt's domains for data that libvirt does not report. libvirt then marks the domains as tainted."""
    migration_events: bool = False
    """Enable QEMU's MIGRATION events, so that short migrations are also reported. libvirt always enables them."""
    virtio_queues: bool = False
    """Query the queues of virtio disks that complete no request, except vhost devices. The command is unstable in QEMU."""


class DiskOverrideConfig(ConfigSection):
    """Another mode or other levels for some disks."""

    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    disk: str = "*"
    """Device id of the disks; * and ? are wildcards."""
    mode: ThresholdMode | None = None
    """Mode of these disks; by default alerts.disks.mode."""
    levels: list[LevelText] | None = None
    """Levels of these disks; by default alerts.disks.levels."""


class DiskAlertsConfig(ConfigSection):
    """Alerts for a thin disk whose usage exceeds a level, before the disk is full."""

    mode: ThresholdMode = ThresholdMode.OBSERVE
    """`off`: no alerts. `observe`: compare levels at each poll. `arm`: also let QEMU report a write above a level (write threshold)."""
    levels: list[LevelText] = ["80%", "90%", "95%"]
    """Levels in percent of the disk's size, in bytes used or in bytes free, in any order."""
    hysteresis: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Percentage of the disk's size by which the usage has to fall below a level before the level's alert is resolved."""
    overrides: list[DiskOverrideConfig] = []
    """Another mode or other levels for some disks. The first entry that matches a disk applies."""


class GuestFilesystemOverrideConfig(ConfigSection):
    """Other levels for some file systems of guests."""

    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    mountpoint: str = "*"
    """Mountpoint of the file systems in the guest; * and ? are wildcards."""
    levels: list[LevelText]
    """Levels of these file systems; an empty list turns their alerts off."""


class GuestFilesystemAlertsConfig(ConfigSection):
    """Alerts when the usage of a guest's file system exceeds a level. These alerts need `guest_agent.enabled`."""

    levels: list[LevelText] = ["90%", "95%"]
    """Levels of the guests' file systems, in percent of the size, in bytes used or in bytes free, in any order."""
    hysteresis: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Percentage of the file system's size by which the usage has to fall below a level before the level's alert is resolved."""
    overrides: list[GuestFilesystemOverrideConfig] = []
    """Other levels for some file systems. The first entry that matches a file system applies."""


class GuestAlertsConfig(ConfigSection):
    """Alerts about frozen file systems and wrong clocks of guests, which need `guest_agent.enabled`."""

    max_frozen_time: PositiveSeconds = 120.0
    """How long the file systems of a guest may stay frozen, as during a snapshot."""
    max_clock_offset: PositiveSeconds = 10.0
    """How far the guest's clock may differ from the host's clock. The alert fires if two consecutive polls show more."""


def _normalize_pool_level(value: str) -> str:
    return parse_pool_level(value).text


PoolLevelText = Annotated[str, AfterValidator(_normalize_pool_level)]
"""A level of a pool, such as `85%`, `free 20GiB`, `full in 2h`, `inodes 90%` or `metadata 75%`."""


class PoolOverrideConfig(ConfigSection):
    """Other levels for some pools."""

    pool: str
    """Name of the pools, such as a mount point; * and ? are wildcards."""
    levels: list[PoolLevelText]
    """Levels of these pools. An empty list turns their alerts off; each disk on these pools then has its own alert."""


class PoolAlertsConfig(ConfigSection):
    """Alerts when the storage that images share fills up: one alert for all VMs on a pool."""

    levels: list[PoolLevelText] = ["85%", "95%", "full in 2h", "inodes 90%", "metadata 75%", "metadata 85%"]
    """Levels: percent in use, free bytes, time until the pool is full, percent of inodes in use, percent of LVM metadata in use."""
    hysteresis: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Percentage of the size by which the usage has to fall below a level before its alert is resolved."""
    overrides: list[PoolOverrideConfig] = []
    """Other levels for some pools; the first entry that matches a pool applies."""


class AlertsConfig(ConfigSection):
    """Alerts. The agent emits each alert as a record and as a metric."""

    disks: DiskAlertsConfig = DiskAlertsConfig()
    """Alerts for a thin disk whose usage exceeds a level, before the disk is full."""
    pools: PoolAlertsConfig = PoolAlertsConfig()
    """Alerts when the storage that images share fills up."""
    guest_filesystems: GuestFilesystemAlertsConfig = GuestFilesystemAlertsConfig()
    """Alerts when the usage of a guest's file system exceeds a level. These alerts need `guest_agent.enabled`."""
    guests: GuestAlertsConfig = GuestAlertsConfig()
    """Alerts about frozen file systems and wrong clocks of guests, which need `guest_agent.enabled`."""
    overrides: list[AlertOverrideConfig] = []
    """Changes of alerts: off, or another severity, limit or duration. The first entry that matches an alert applies."""
    custom: Annotated[list[CustomAlertConfig], Field(max_length=MAX_CUSTOM_ALERTS)] = []
    """Alerts of your own, on any event or any field of a sample."""
    alertmanager: AlertmanagerConfig | None = None
    """Alertmanager that receives the alerts."""

    @field_validator("custom")
    @classmethod
    def _check_custom_names(cls, value: list[CustomAlertConfig]) -> list[CustomAlertConfig]:
        names = [alert.name for alert in value]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"should have each name once: {repeated[0]} occurs several times")
        return value

    @model_validator(mode="after")
    def _check_overrides(self) -> "AlertsConfig":
        check_override_names(self.overrides, [alert.name for alert in self.custom])
        return self


class LimitsConfig(ConfigSection):
    """Limits on the number of one VM's series on /metrics, because a guest can choose some names in them.

    Series beyond a limit are omitted and counted. Their records are still emitted, for up to 4096 subjects per poll.
    """

    series_per_vm: Annotated[int, Field(ge=100, le=1_000_000)] = 5000
    """Maximum number of series about one VM's subjects: its disks, vCPUs, jobs and other parts."""
    new_subjects_per_vm_per_hour: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Maximum number of new subjects of one VM within an hour. Without this limit, names that change at each poll would fill Prometheus."""


class LogConfig(ConfigSection):
    """The agent's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level to log."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto` is text on a terminal and for journald, else JSON."""


class Config(ConfigSection):
    """The config file. Only `monitors` is required."""

    monitors: Annotated[list[MonitorConfig], Field(min_length=1)]
    """How the agent reaches the QMP monitors of VMs. docs/reference/monitors.md compares the kinds of entries."""
    host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(default_factory=socket.gethostname)
    """Name of this host in records; by default the system's host name."""
    kafka: KafkaConfig | None = None
    """Sends records to Apache Kafka. Without it, records go to `jsonl`."""
    jsonl: JsonLinesConfig = JsonLinesConfig()
    """Writes records as JSON lines if `kafka` is absent."""
    journal: JournalConfig = JournalConfig()
    """Stores records on disk until Kafka acknowledges them. Without `kafka`, there is no journal."""
    buffer_memory: Annotated[Bytes, Field(ge=1 << 20)] = 32 << 20
    """Maximum memory for records that wait for delivery. The agent keeps further records only on disk, in the journal."""
    web: WebSectionConfig = WebSectionConfig()
    """The HTTP endpoint."""
    guest_agent: GuestAgentConfig = GuestAgentConfig()
    """Queries guest agents, read-only, for data that only the guest has."""
    intervals: IntervalsConfig = IntervalsConfig()
    """Intervals at which the agent polls data that QEMU does not report by events."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long the agent waits for QEMU, and for delivery when it stops."""
    alerts: AlertsConfig = AlertsConfig()
    """Alerts. The agent emits each alert as a record and as a metric."""
    allow: AllowedQemuChangesConfig = AllowedQemuChangesConfig()
    """Changes to QEMU that the agent may make, and unstable commands that it may send. By default, there are none."""
    labels: LabelsConfig = LabelsConfig()
    """Labels of the series qemu_vm_info, from libvirt's XML."""
    limits: LimitsConfig = LimitsConfig()
    """Limits on the number of one VM's series on /metrics, because a guest can choose some names in them."""
    log: LogConfig = LogConfig()
    """The agent's own log."""

    @property
    def configured_sink_section(self) -> SinkConfig:
        """The section of the configured sink; by default JSON lines on standard output."""
        return next(iter(self._configured_sinks().values()), self.jsonl)

    def _configured_sinks(self) -> dict[str, SinkConfig]:
        """Return the sections of the configured sinks, by key."""
        sinks = {"kafka": self.kafka, "jsonl.path": self.jsonl if self.jsonl.path is not None else None}
        return {key: sink for key, sink in sinks.items() if sink is not None}

    @model_validator(mode="after")
    def _check_sections_together(self) -> "Config":
        if len(keys := list(self._configured_sinks())) > 1:
            raise ValueError(f"{' and '.join(keys[:2])} exclude each other: remove one of them")
        sizes = self.journal.max_size
        if min(sizes.alerts, sizes.events, sizes.samples) < self.buffer_memory:
            raise ValueError("each size in journal.max_size should be at least buffer_memory")
        return self
