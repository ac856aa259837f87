"""What the config says, in the terms of each room: which VMs are reached how, where records go, what may be changed."""

from fnmatch import fnmatchcase
from pathlib import Path

from agent.alerts.levels import parse_level
from agent.alerts.threshold_types import ThresholdMode, ThresholdPolicy
from agent.collectors import Intervals
from agent.common.config_types import expand
from agent.common.errors import CommandFailedError
from agent.config.model import Config, WriteThresholdConfig
from agent.delivery.pipeline import DeliverySettings
from agent.delivery.sinks.base import Sink
from agent.host import device_size
from agent.http.handlers import AgentView, create_application
from agent.http.server import HttpEndpoint
from agent.model.record import Vm
from agent.monitors import Discoverer
from agent.qmp.commands import Change
from agent.session.api import SessionSettings


class StartError(CommandFailedError):
    """The agent cannot start; the text says why, for people."""


VDSM = Path("/run/vdsm")
"""There on hosts of oVirt, whose VDSM sets write thresholds itself and takes any that fires for its own."""


def threshold_policy(config: WriteThresholdConfig, vm: Vm, disk: str) -> ThresholdPolicy:
    """Return what the config wants of a VM's disk."""
    mode, levels = config.mode, config.levels
    for entry in config.disks:
        if fnmatchcase(disk, entry.disk) and (fnmatchcase(vm.name, entry.vm) or fnmatchcase(vm.uuid, entry.vm)):
            mode = entry.mode or mode
            levels = entry.levels if entry.levels is not None else levels
            break
    if mode is ThresholdMode.ARM and VDSM.exists():
        mode = ThresholdMode.OBSERVE
    return ThresholdPolicy(mode, tuple(map(parse_level, levels)), config.hysteresis / 100)


def device_size_of(vm: Vm, path: str) -> int | None:
    """Return how large a VM's block device is by what this host knows; None where the VM may be on another."""
    return None if vm.monitor.startswith("tcp:") else device_size(path)


def session_settings(config: Config) -> SessionSettings:
    """Return the config's settings for all sessions."""
    changes = set()
    thresholds = config.alerts.write_threshold
    if ThresholdMode.ARM in (thresholds.mode, *(entry.mode for entry in thresholds.disks)):
        changes.add(Change.WRITE_THRESHOLD)
    if config.allow.guest_stats_interval is not None:
        changes.add(Change.GUEST_STATS_INTERVAL)
    if config.allow.migration_events:
        changes.add(Change.MIGRATION_EVENTS)
    changes.update(*(entry.changes for entry in config.monitors))
    return SessionSettings(
        host=config.host,
        changes=frozenset(changes),
        intervals=Intervals(**config.intervals.model_dump()),
        response_seconds=config.timeouts.response,
        greeting_seconds=config.timeouts.greeting,
        max_retry_seconds=config.timeouts.retry,
        guest_stats_seconds=round(config.allow.guest_stats_interval or 0),
        labels=config.labels,
    )


def discoverers(config: Config) -> dict[str, Discoverer]:
    """Return the ways of reaching monitors that the config names, each by what the config says of it."""
    return {repr(made): made for made in (entry.build(config.allow) for entry in config.monitors)}


def build_sink(config: Config) -> Sink:
    """Return where the config sends records.

    Raises:
        StartError: a secret's place cannot be told.
    """
    try:
        return config.sink.build()
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error


def build_endpoint(view: AgentView, config: Config) -> HttpEndpoint:
    """Return where and to whom the config shows what there is to see.

    Raises:
        StartError: the web config's place cannot be told.
    """
    to = config.web
    try:
        path = expand(to.config_file) if to.config_file is not None else None
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error
    return HttpEndpoint(create_application(view), to.listen_address, path)


def delivery_settings(config: Config) -> DeliverySettings:
    """Return how much may wait. There is no journal for JSON lines: they are as safe as one."""
    folder = config.journal.directory if config.sink.journaled else None
    return DeliverySettings(
        config.buffer_memory, folder, config.journal.alerts, config.journal.events, config.journal.samples
    )
