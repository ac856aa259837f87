"""What the config says, in the terms of each room: which VMs are reached how, where records go, what may be changed."""

from fnmatch import fnmatchcase
from pathlib import Path

from agent.alerts.levels import parse_level
from agent.alerts.threshold_types import Mode, Plan
from agent.collectors import Intervals
from agent.common.config_types import expand
from agent.common.errors import FailedError
from agent.config.model import Config, WriteThresholdConfig
from agent.delivery.pipeline import DeliveryTerms
from agent.delivery.sinks.base import Sink
from agent.host import device_size
from agent.http.handlers import Sight, application
from agent.http.server import Endpoint
from agent.model.record import Vm
from agent.monitors import Way
from agent.qmp.commands import AllowList, Change
from agent.session.api import Commander, Terms


class StartError(FailedError):
    """The agent cannot start; the text says why, for people."""


VDSM = Path("/run/vdsm")
"""There on hosts of oVirt, whose VDSM sets write thresholds itself and takes any that fires for its own."""


def plan(config: WriteThresholdConfig, vm: Vm, disk: str) -> Plan:
    """Return what the config wants of a VM's disk."""
    mode, levels = config.mode, config.levels
    for entry in config.disks:
        if fnmatchcase(disk, entry.disk) and (fnmatchcase(vm.name, entry.vm) or fnmatchcase(vm.uuid, entry.vm)):
            mode = entry.mode or mode
            levels = entry.levels if entry.levels is not None else levels
            break
    if mode is Mode.ARM and VDSM.exists():
        mode = Mode.OBSERVE
    return Plan(mode, tuple(map(parse_level, levels)), config.hysteresis / 100)


def measure(vm: Vm, path: str) -> int | None:
    """Return how large a VM's block device is by what this host knows; None where the VM may be on another."""
    return None if vm.monitor.startswith("tcp:") else device_size(path)


def terms(config: Config, commander: Commander | None = None) -> Terms:
    """Return what the config says of every session."""
    changes = set()
    thresholds = config.alerts.write_threshold
    if Mode.ARM in (thresholds.mode, *(entry.mode for entry in thresholds.disks)):
        changes.add(Change.WRITE_THRESHOLD)
    if config.allow.guest_stats_interval is not None:
        changes.add(Change.GUEST_STATS_INTERVAL)
    if config.allow.migration_events:
        changes.add(Change.MIGRATION_EVENTS)
    changes.update(*(entry.changes for entry in config.monitors))
    return Terms(
        host=config.host,
        allow=AllowList(changes),
        changes=frozenset(changes),
        intervals=Intervals(**config.intervals.model_dump()),
        reply_seconds=config.timeouts.reply,
        greeting_seconds=config.timeouts.greeting,
        retry_seconds=config.timeouts.retry,
        guest_stats_seconds=round(config.allow.guest_stats_interval or 0),
        commander=commander,
        labels=config.labels,
    )


def ways(config: Config) -> dict[str, Way]:
    """Return the ways of reaching monitors that the config names, each by what the config says of it."""
    return {repr(made): made for made in (entry.way(config.allow) for entry in config.monitors)}


def sink(config: Config) -> Sink:
    """Return where the config sends records.

    Raises:
        StartError: a secret's place cannot be told.
    """
    try:
        return config.sink.sink()
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error


def endpoint(sight: Sight, config: Config) -> Endpoint:
    """Return where and to whom the config shows what there is to see.

    Raises:
        StartError: the web config's place cannot be told.
    """
    to = config.prometheus
    try:
        path = expand(to.web_config) if to.web_config is not None else None
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error
    return Endpoint(application(sight), to.listen, path)


def delivery_terms(config: Config) -> DeliveryTerms:
    """Return how much may wait. There is no journal for JSON lines: they are as safe as one."""
    folder = config.journal.folder if config.sink.journaled else None
    return DeliveryTerms(
        config.memory_budget, folder, config.journal.alerts, config.journal.events, config.journal.samples
    )
