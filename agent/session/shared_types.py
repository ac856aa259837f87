"""Types that sessions share with other packages: states, settings, and the callbacks that receive a session's results. Pure."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from agent.collectors import ALL_COLLECTORS, Collector, PollIntervals
from agent.host.libvirt_metadata import LabelsConfig
from agent.host.virtual_function_counters import VirtualFunctionCounters
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.qmp.commands import AllowList, Command, OptInQemuChange
from agent.session.collector_failures import DegradedCollectors
from agent.session.identity_and_features import QemuBuild
from agent.session.scheduler import FIRST_POLL_MAX_DELAY_SECONDS, FIRST_POLL_SPACING_SECONDS, Pacer
from agent.session.shared_timers import SharedDeadlines, WakeTimers

MAIN_LOOP_STALLED = (
    "QEMU's monitor thread answers but its main loop does not: the main loop hangs, most often on storage"
)
"""Cause of a stall if QEMU answers the out-of-band probe."""
PROCESS_STALLED = "no thread of QEMU answers: the process is stopped or gets no CPU time"
"""Cause of a stall if QEMU does not answer the out-of-band probe."""


class MonitorState(StrEnum):
    """State of one monitor's session."""

    CONNECTING = "connecting"
    BUSY = "busy"
    """The monitor accepts connections but sends no greeting, because another client holds the monitor. The VM is alive."""
    NEGOTIATING = "negotiating"
    UP = "up"
    STALLED = "stalled"
    """A reply is overdue. The VM is alive."""
    DENIED = "denied"
    """The agent's user lacks permission to connect."""
    STANDBY = "standby"
    """The agent watches the VM over another monitor of better priority. The monitor takes over if the better monitor is lost."""
    GONE = "gone"
    """No process listens on the monitor's address: the VM has ended, or has not started yet."""


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """State of one monitor, for display and logs.

    Attributes:
        monitor: the monitor.
        state: the monitor's state.
        reason: cause of the state, for people; may be empty.
        vm: the VM; None until the VM is identified.
        build: the version of the VM's QEMU; None until known.
        since_ns: when the state began, in nanoseconds since the epoch.
        degraded: the failing collectors and their causes. The VM has no samples of these collectors.
    """

    monitor: Monitor
    state: MonitorState
    reason: str
    vm: Vm | None
    build: QemuBuild | None
    since_ns: int
    degraded: DegradedCollectors = ()


class PollOutcome(StrEnum):
    """Outcome of one run of a collector."""

    OK = "ok"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"
    DEFERRED = "deferred"
    """The collector waits until the storage of the VM answers."""
    TRUNCATED = "truncated"
    """The reply had more subjects (such as disks) than the agent accepts. The agent emits samples of the first subjects only."""


class VmLifecycleChange(StrEnum):
    """A change in a VM's lifecycle."""

    ATTACHED = "attached"
    DETACHED = "detached"
    """The agent stops watching a VM that may still run."""
    GONE = "gone"
    MIGRATED_IN = "migrated_in"
    MIGRATED_OUT = "migrated_out"
    BUSY = "busy"
    STALLED = "stalled"
    RECOVERED = "recovered"

    @property
    def record_type(self) -> str:
        """Type of the record that reports the change, such as `qemu.vm.attached`."""
        return f"qemu.vm.{self.value}"


def lifecycle_change_between_states(before: MonitorState | None, after: MonitorState) -> VmLifecycleChange | None:
    """Return the lifecycle change to report for a change of a monitor's state; None if nothing is to be reported."""
    match before, after:
        case _, MonitorState.BUSY:
            return VmLifecycleChange.BUSY
        case _, MonitorState.STALLED:
            return VmLifecycleChange.STALLED
        case (MonitorState.STALLED, _) | (MonitorState.BUSY, MonitorState.UP):
            return VmLifecycleChange.RECOVERED
        case _:
            return None


class SessionObserver(Protocol):
    """Callbacks invoked by sessions. Implementations must not block or raise."""

    def on_event(self, record: Record) -> None:
        """Handle the record of a QEMU event. The record of coalesced events is up to a second late."""

    def on_event_before_coalescing(self, event: Record) -> None:
        """Handle each QEMU event as soon as it is read, because alerts must not wait until events are coalesced."""

    def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
        """Handle the record of a change in a VM's lifecycle."""

    def on_transition_between_polls(self, record: Record) -> None:
        """Handle the record of a transition that a collector derived from two polls, such as the end of a migration."""

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Handle all samples that a poll returned for these families.

        A subject of the families, such as a disk, no longer exists if the subject has no sample.

        Args:
            vm: the VM.
            families: the polled families, including families without a sample.
            samples: the samples.
            time_ns: time of the poll, in nanoseconds since the epoch.
        """

    def on_poll_failed(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        """Handle a failed poll at `time_ns`: the earlier samples of these families are out of date."""

    def on_monitor_status(self, status: MonitorStatus) -> None:
        """Handle a change of a monitor's status."""

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Handle the end of a monitor's supervision."""

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        """Handle an incoming connection that the agent refused; `address` is the address that the agent listens on."""

    def on_response_time(self, seconds: float) -> None:
        """Handle a response time: the seconds between sending commands and their last reply.

        After a timeout, the response time is the length of the timeout.
        """

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        """Handle the outcome of one run of a collector."""

    def on_messages_skipped(self, vm: Vm, reason: str, messages: int) -> None:
        """Handle messages of QEMU that the agent skipped.

        Args:
            vm: the VM.
            reason: `unreadable`, `oversized` or `stray` (a reply without a command).
            messages: number of skipped messages.
        """

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        """Handle events that the agent dropped.

        Args:
            vm: the VM.
            reason: `before_attach`: the buffer was full before the VM was identified.
            events: number of dropped events.
        """


class DiskCommandController(Protocol):
    """Decides which commands the sessions send to change disks in QEMU."""

    def has_pending_commands(self, vm: Vm) -> bool:
        """Return whether `pop_pending_commands` may return commands. Each poll calls this method, so implementations must be fast."""

    async def pop_pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Return the commands to send to this VM now, each with its disk."""

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the outcome of the command for a disk. `done` is whether QEMU confirmed the command."""


class ThresholdController(DiskCommandController, Protocol):
    """Decides which write thresholds the sessions set in QEMU."""

    def pop_collectors_to_poll(self, vm: Vm) -> frozenset[str]:
        """Return and remove the names of the collectors to poll now."""


class StorageAccessPolicy(Protocol):
    """Decides whether the storage of a VM may be accessed."""

    async def may_query(self, vm: Vm, pid: int | None) -> bool:
        """Return whether commands that access the storage of this VM may be sent now. The call takes less than a second.

        After a refusal, the implementation calls `SessionContext.schedule_vm_collectors_now` once the storage answers again.

        Args:
            vm: the VM.
            pid: pid of the VM's process; None if unknown.
        """


class CollectorsByNameAndEvent:
    """Collectors by name and by event.

    Attributes:
        by_name: the collectors by name.
        host_file_collectors: names of the collectors that send no command to QEMU, in the order of polls.
        by_event: the collectors that read samples from an event's data, by the event's name.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.by_name = {collector.name: collector for collector in collectors}
        self.host_file_collectors = [collector.name for collector in collectors if collector.reads_only_host_files]
        self.by_event = {event: collector for collector in collectors for event in collector.from_event}


_ALL_COLLECTORS = CollectorsByNameAndEvent(ALL_COLLECTORS)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of all sessions. A config reload replaces the whole object.

    Attributes:
        host: this host's name.
        changes: changes to QEMU that the operator allows.
        intervals: polling intervals.
        response_seconds: time after which a VM that sends no reply is stalled.
        greeting_seconds: time after which a monitor that sends no greeting is busy.
        max_retry_seconds: maximum time between two connection attempts.
        probe_seconds: interval and timeout of the out-of-band probes of a stalled QEMU.
        max_collector_off_seconds: maximum time that a failing collector is off.
        guest_stats_seconds: interval at which QEMU polls the guest's memory statistics. The agent sets this interval if QEMU has
            none and OptInQemuChange.GUEST_STATS_INTERVAL is allowed.
        labels: labels to read from libvirt's files.
    """

    host: str
    changes: frozenset[OptInQemuChange] = frozenset()
    intervals: PollIntervals = field(default_factory=PollIntervals)
    response_seconds: float = 5.0
    greeting_seconds: float = 3.0
    max_retry_seconds: float = 30.0
    probe_seconds: float = 2.0
    max_collector_off_seconds: float = 600.0
    guest_stats_seconds: int = 10
    labels: LabelsConfig = field(default_factory=lambda: LabelsConfig(libvirt_xml_dirs=[]))


class SessionContext:
    """State that all sessions share.

    Attributes:
        settings: the current settings. A reload replaces the object, so keep no reference to it.
        allow: the commands that may be sent.
        collectors: the collectors that sessions run.
        thresholds: decides which write thresholds to set; None if none are set.
        histograms: decides which latency histograms to set; None if none are set.
        storage: decides whether commands that access storage may be sent; None if such commands are always sent.
        root: the directory that contains /proc and /sys.
        random: returns a number from 0 to 1, to spread polls over time.
        build_commands: the command names of each known QEMU build; sessions add builds.
        first_polls: spreads the first polls of newly attached VMs over time.
        attached_vms: number of attached VMs; each session counts its VM while the VM is attached.
        wake_timers: wakes sessions for their next polls.
        deadlines: deadlines of the replies to callback polls.
        virtual_function_counters: the last counters of virtual functions of network devices.
        schedule_by_vm: for each attached VM, a function that makes the collectors with the given names due.
    """

    __slots__ = (
        "allow",
        "attached_vms",
        "build_commands",
        "collectors",
        "deadlines",
        "first_polls",
        "histograms",
        "random",
        "root",
        "schedule_by_vm",
        "settings",
        "storage",
        "thresholds",
        "virtual_function_counters",
        "wake_timers",
    )

    def __init__(
        self,
        settings: SessionSettings,
        *,
        thresholds: ThresholdController | None = None,
        histograms: DiskCommandController | None = None,
        storage: StorageAccessPolicy | None = None,
        collectors: CollectorsByNameAndEvent = _ALL_COLLECTORS,
        first_polls: Pacer | None = None,
        root: Path = Path("/"),
        random: Callable[[], float] = random.random,
        virtual_function_counters: VirtualFunctionCounters | None = None,
    ) -> None:
        self.settings = settings
        self.allow = AllowList(settings.changes)
        self.collectors = collectors
        self.thresholds = thresholds
        self.histograms = histograms
        self.storage = storage
        self.root = root
        self.random = random
        self.build_commands: dict[QemuBuild, frozenset[str]] = {}
        self.first_polls = first_polls or Pacer(FIRST_POLL_SPACING_SECONDS, FIRST_POLL_MAX_DELAY_SECONDS)
        self.attached_vms = 0
        self.wake_timers = WakeTimers()
        self.deadlines = SharedDeadlines()
        self.virtual_function_counters = virtual_function_counters or VirtualFunctionCounters()
        self.schedule_by_vm: dict[Vm, Callable[[Sequence[str]], None]] = {}

    def schedule_vm_collectors_now(self, vm: Vm, names: Sequence[str]) -> None:
        """Make collectors of a VM due now. A VM that is not attached is ignored."""
        if (schedule := self.schedule_by_vm.get(vm)) is not None:
            schedule(names)

    def replace_settings(self, settings: SessionSettings) -> None:
        """Replace the settings, also for VMs that are already attached."""
        self.allow.permit_only(settings.changes)
        self.settings = settings
