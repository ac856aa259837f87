"""Interfaces of a session: its states, its settings, and the callbacks that report its results. Pure."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from agent.collectors import ALL, Collector, Intervals
from agent.host import LabelsConfig
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.qmp.commands import AllowList, Change, Command
from agent.session.collector_failures import Degraded
from agent.session.identity import Build
from agent.session.scheduler import Pacer
from agent.session.uuid_clash import GRACE_SECONDS

FIRST_POLL_SPACING_SECONDS = 0.0015
"""Time between the first polls of two VMs. A first poll takes 1.3 ms, and 15 KiB of memory until its records are sent."""
FIRST_POLL_MAX_DELAY_SECONDS = 5.0
"""Maximum delay of a VM's first poll."""

MAIN_LOOP_STALLED = "QEMU's monitor thread answers but its main loop does not: it hangs, on storage most often"
PROCESS_STALLED = "no thread of QEMU answers: the process is stopped or starved"
"""Causes of a stall; the out-of-band probe distinguishes them."""


class MonitorState(StrEnum):
    """State of one monitor's session."""

    CONNECTING = "connecting"
    BUSY = "busy"
    """The monitor accepts connections but does not greet, because another client holds it. The VM is alive."""
    NEGOTIATING = "negotiating"
    UP = "up"
    STALLED = "stalled"
    """A reply is overdue. The VM is alive."""
    DENIED = "denied"
    """The agent's user lacks permission to connect."""
    STANDBY = "standby"
    """A monitor of better priority reaches the same VM. This monitor takes over when the better one is lost."""
    GONE = "gone"
    """No process listens on the monitor's address: the VM has ended, or has not started yet."""


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """State of one monitor, as it is displayed and logged.

    Attributes:
        monitor: the monitor.
        state: its state.
        reason: cause of the state, for people; may be empty.
        vm: the VM, once identified.
        build: the VM's QEMU, once known.
        since_ns: when the state began, in nanoseconds since the epoch.
        degraded: the failing collectors and their causes. The VM is watched, but without the figures of these collectors.
        clash: names of all monitors whose VMs run with this VM's UUID, this monitor included; empty if no other VM has the UUID.
    """

    monitor: Monitor
    state: MonitorState
    reason: str
    vm: Vm | None
    build: Build | None
    since_ns: int
    degraded: Degraded = ()
    clash: tuple[str, ...] = ()


class PollOutcome(StrEnum):
    """Outcome of one run of a collector."""

    OK = "ok"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    """The answer had more subjects than the agent accepts."""


class VmChange(StrEnum):
    """A change in a VM's lifecycle."""

    ATTACHED = "attached"
    DETACHED = "detached"
    """The agent stops watching a VM that keeps running."""
    GONE = "gone"
    MIGRATED_IN = "migrated_in"
    MIGRATED_OUT = "migrated_out"
    BUSY = "busy"
    STALLED = "stalled"
    RECOVERED = "recovered"

    @property
    def type(self) -> str:
        """The type of its records."""
        return f"qemu.vm.{self.value}"


def reported_change(before: MonitorState | None, after: MonitorState) -> VmChange | None:
    """Return the lifecycle change that a session reports when a monitor's state changes; None if it reports none."""
    match before, after:
        case _, MonitorState.BUSY:
            return VmChange.BUSY
        case _, MonitorState.STALLED:
            return VmChange.STALLED
        case (MonitorState.STALLED, _) | (MonitorState.BUSY, MonitorState.UP):
            return VmChange.RECOVERED
        case _:
            return None


class SessionObserver(Protocol):
    """Callbacks invoked by sessions. Implementations must not block or raise."""

    def on_event(self, record: Record) -> None:
        """Handle the record of a QEMU event, which may stand for several coalesced ones."""

    def on_event_read(self, event: Record) -> None:
        """Handle an event at the moment it is read. Alerts are decided here, because coalesced events reach `on_event` later."""

    def on_lifecycle(self, change: VmChange, record: Record) -> None:
        """Handle the record of a change in a VM's lifecycle."""

    def on_transition(self, record: Record) -> None:
        """Handle the record of a transition that a collector derived from two polls, such as the end of a migration."""

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Handle all samples of these families at one instant. A subject without a sample no longer exists."""

    def on_status(self, status: MonitorStatus) -> None:
        """Handle a change of a monitor's state."""

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Handle a monitor that is no longer supervised."""

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Handle a refused incoming connection."""

    def on_response(self, seconds: float) -> None:
        """Handle the response time in seconds of the commands of one write; after a timeout, the time waited."""

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        """Handle the outcome of one run of a collector."""

    def on_messages_skipped(self, vm: Vm, reason: str, messages: int) -> None:
        """Handle skipped messages of QEMU; the reason is `unreadable`, `oversized` or `stray` (a reply without a command)."""

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        """Handle the drop of this many events."""


class ThresholdController(Protocol):
    """Source of the write thresholds to set."""

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the names of the collectors to poll now."""

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Return the commands to execute on this VM now, each with its disk."""

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the outcome of a command; `done` says whether QEMU executed it."""


class CollectorIndex:
    """Collectors, indexed for lookup by a session.

    Attributes:
        by_name: the collectors by name.
        host_only: names of the collectors that send no command to QEMU, in order.
        by_event: by the name of an event, the collector that reads samples from it.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.by_name = {collector.name: collector for collector in collectors}
        self.host_only = [collector.name for collector in collectors if collector.host_only]
        self.by_event = {event: collector for collector in collectors for event in collector.from_event}


_ALL_COLLECTORS = CollectorIndex(ALL)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of all sessions. A config reload replaces the whole object.

    Attributes:
        host: this host's name.
        changes: changes to QEMU that the operator allows.
        intervals: polling intervals.
        response_seconds: time after which a VM without a reply is stalled.
        greeting_seconds: time after which a monitor without a greeting is busy.
        max_retry_seconds: maximum time between two connection attempts.
        probe_seconds: interval and timeout of the out-of-band probes of a stalled QEMU.
        uuid_clash_seconds: time for which two VMs must run with one UUID before it is a clash.
        max_collector_off_seconds: maximum time for which a collector is off after an answer that cannot be read.
        guest_stats_seconds: polling interval of the guest's memory statistics to set in QEMU if none is set; needs
            Change.GUEST_STATS_INTERVAL.
        labels: labels to read from libvirt's files.
    """

    host: str
    changes: frozenset[Change] = frozenset()
    intervals: Intervals = field(default_factory=Intervals)
    response_seconds: float = 5.0
    greeting_seconds: float = 3.0
    max_retry_seconds: float = 30.0
    probe_seconds: float = 2.0
    uuid_clash_seconds: float = GRACE_SECONDS
    max_collector_off_seconds: float = 600.0
    guest_stats_seconds: int = 10
    labels: LabelsConfig = field(default_factory=lambda: LabelsConfig(libvirt_xml_dirs=[]))


class SessionContext:
    """State that all sessions share.

    Attributes:
        settings: the current settings; sessions read them at each use.
        allow: commands that may be sent, on open connections too.
        collectors: collectors of new sessions.
        thresholds: source of write thresholds, or None.
        root: the directory that holds /proc and /sys.
        random: returns a number from 0 to 1, to spread polls.
        build_commands: command names of each known QEMU build; sessions add to it.
        first_polls: paces the first polls of newly attached VMs.
        attached_vms: number of VMs that are attached now; sessions count themselves.
    """

    __slots__ = (
        "allow",
        "attached_vms",
        "build_commands",
        "collectors",
        "first_polls",
        "random",
        "root",
        "settings",
        "thresholds",
    )

    def __init__(
        self,
        settings: SessionSettings,
        *,
        thresholds: ThresholdController | None = None,
        collectors: CollectorIndex = _ALL_COLLECTORS,
        first_polls: Pacer | None = None,
        root: Path = Path("/"),
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.allow = AllowList(settings.changes)
        self.collectors = collectors
        self.thresholds = thresholds
        self.root = root
        self.random = random
        self.build_commands: dict[Build, frozenset[str]] = {}
        self.first_polls = first_polls or Pacer(FIRST_POLL_SPACING_SECONDS, FIRST_POLL_MAX_DELAY_SECONDS)
        self.attached_vms = 0

    def apply(self, settings: SessionSettings) -> None:
        """Replace the settings, for attached VMs too."""
        self.allow.allow(settings.changes)
        self.settings = settings
