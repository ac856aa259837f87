"""Builds the parts of the agent and their settings from the config."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from agent.alerts.disk_levels import DiskAlertLevel, parse_disk_level
from agent.alerts.disk_threshold_types import DiskThresholdPolicy, ThresholdMode
from agent.alerts.guest_policy import GuestAlertPolicy
from agent.alerts.pool_levels import PoolPolicy, parse_pool_level
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.rules.overrides import AlertOverrides
from agent.collectors import PollIntervals
from agent.common.config_types import expand_credentials_directory
from agent.common.errors import SubcommandError
from agent.common.vm_patterns import matches_vm
from agent.config.model import AlertsConfig, Config, DiskAlertsConfig, PoolAlertsConfig
from agent.delivery.pipeline import DeliverySettings
from agent.delivery.sinks import factory
from agent.delivery.sinks.base import Sink
from agent.host.block_device import block_device_size_bytes, persistent_block_device_id
from agent.host.qemu_processes import pid_if_qemu
from agent.http.handlers import EndpointSource, create_application
from agent.http.server import HttpEndpoint
from agent.model.record import Vm
from agent.monitors import Discoverer
from agent.qmp.commands import OptInQemuChange
from agent.session.shared_types import SessionSettings


class StartError(SubcommandError):
    """The agent cannot start."""


VDSM_DIRECTORY = Path("/run/vdsm")
"""A directory that exists on oVirt hosts only. oVirt's host agent VDSM sets write thresholds and treats each threshold event as its own."""


def disk_threshold_policy(config: DiskAlertsConfig, vm: Vm, disk: str) -> DiskThresholdPolicy:
    """Return the threshold policy of a VM's disk from the first entry of `overrides` that matches, or the defaults.

    On oVirt hosts, `observe` replaces the mode `arm`, because oVirt's host agent VDSM sets the thresholds.
    """
    mode, levels = config.mode, config.levels
    for entry in config.overrides:
        if fnmatchcase(disk, entry.disk) and matches_vm(entry.vm, vm.name, vm.uuid):
            mode = entry.mode or mode
            levels = entry.levels if entry.levels is not None else levels
            break
    if mode is ThresholdMode.ARM and VDSM_DIRECTORY.exists():
        mode = ThresholdMode.OBSERVE
    return DiskThresholdPolicy(mode, tuple(map(parse_disk_level, levels)), config.hysteresis / 100)


def guest_alert_policy(config: AlertsConfig) -> GuestAlertPolicy:
    """Return the limits of the guest-agent alerts."""

    def levels(vm: Vm, mountpoint: str) -> Sequence[DiskAlertLevel]:
        for entry in filesystems.overrides:
            if fnmatchcase(mountpoint, entry.mountpoint) and matches_vm(entry.vm, vm.name, vm.uuid):
                return tuple(map(parse_disk_level, entry.levels))
        return defaults

    filesystems, guests = config.guest_filesystems, config.guests
    defaults = tuple(map(parse_disk_level, filesystems.levels))
    return GuestAlertPolicy(levels, filesystems.hysteresis / 100, guests.max_frozen_time, guests.max_clock_offset)


def alert_overrides(config: AlertsConfig) -> AlertOverrides:
    """Return the config's overrides of alerts."""
    return AlertOverrides(override.to_override() for override in config.overrides)


def pool_policy(config: PoolAlertsConfig, usage: PoolUsage) -> PoolPolicy:
    """Return the alert policy of a pool from the first entry of `overrides` that matches, or the defaults."""
    levels = next((entry.levels for entry in config.overrides if fnmatchcase(usage.name, entry.pool)), config.levels)
    return PoolPolicy(tuple(map(parse_pool_level, levels)), config.hysteresis / 100)


def is_qemu_process(pid: int) -> bool:
    """Return whether a process of this host runs QEMU."""
    return pid_if_qemu(pid) is not None


def device_size_of_local_vm(vm: Vm, path: str) -> int | None:
    """Return the size of a VM's block device in bytes.

    Return None if the size is unknown, or if the VM may run on another host (TCP monitor).
    """
    return None if vm.has_tcp_monitor else block_device_size_bytes(path)


def device_identity_of_local_vm(vm: Vm, path: str) -> str:
    """Return the identity of a VM's block device; empty if it is unknown, or if the VM may run on another host."""
    return "" if vm.has_tcp_monitor else persistent_block_device_id(path)


def session_settings(config: Config) -> SessionSettings:
    """Return the settings of all sessions."""
    changes = set()
    disks = config.alerts.disks
    if ThresholdMode.ARM in (disks.mode, *(entry.mode for entry in disks.overrides)):
        changes.add(OptInQemuChange.WRITE_THRESHOLD)
    if config.allow.guest_stats_interval is not None:
        changes.add(OptInQemuChange.GUEST_STATS_INTERVAL)
    if config.allow.latency_histograms:
        changes.add(OptInQemuChange.LATENCY_HISTOGRAMS)
    if config.allow.migration_events:
        changes.add(OptInQemuChange.MIGRATION_EVENTS)
    if config.allow.virtio_queues:
        changes.add(OptInQemuChange.VIRTIO_QUEUES)
    changes.update(*(entry.required_qemu_changes for entry in config.monitors))
    return SessionSettings(
        host=config.host,
        changes=frozenset(changes),
        intervals=PollIntervals(**config.intervals.model_dump(exclude={"storage", "host"})),
        response_seconds=config.timeouts.response,
        greeting_seconds=config.timeouts.greeting,
        max_retry_seconds=config.timeouts.max_retry_delay,
        guest_stats_seconds=round(config.allow.guest_stats_interval or 0),
        labels=config.labels,
    )


def build_discoverers(config: Config) -> dict[str, Discoverer]:
    """Return a discoverer for each `monitors` entry of the config. The key of a discoverer changes if its entry changes."""
    return {
        repr(discoverer): discoverer
        for discoverer in (entry.build_discoverer(config.allow) for entry in config.monitors)
    }


def build_sink(config: Config) -> Sink:
    """Return the sink that the config chooses: Kafka if there is a `kafka` section, else JSON lines.

    Raises:
        StartError: the path of a secret cannot be resolved.
    """
    try:
        return factory.build_sink(config.configured_sink_section)
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error


def build_endpoint(source: EndpointSource, config: Config) -> HttpEndpoint:
    """Return the HTTP endpoint.

    Raises:
        StartError: the path of the web config file cannot be resolved.
    """
    web = config.web
    try:
        path = expand_credentials_directory(web.config_file) if web.config_file is not None else None
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error
    return HttpEndpoint(create_application(source), web.listen_address, path)


def delivery_settings(config: Config) -> DeliverySettings:
    """Return the delivery settings. A JSON lines sink needs no journal, because the sink's file is as durable as a journal."""
    directory = config.journal.directory if config.configured_sink_section.journaled else None
    sizes = config.journal.max_size
    return DeliverySettings(config.buffer_memory, directory, sizes.alerts, sizes.events, sizes.samples)
