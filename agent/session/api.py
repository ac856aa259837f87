"""What a session with one monitor tells the rest of the agent. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from agent.collectors import ALL, Collector, Intervals
from agent.host import LabelsConfig
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.qmp.commands import AllowList, Change, Command
from agent.session.identity import Build
from agent.session.scheduler import Pacer

FIRST_LOOK_SECONDS = 0.0015
"""How far apart VMs that are met together are first looked at: each takes 1.3 ms, and 15 KiB until what it said was sent."""
FIRST_LOOK_MOST_SECONDS = 5.0
"""How long a VM waits for that at most, however many there are and however often they come."""


MAIN_LOOP = "QEMU's monitor thread answers but its main loop does not: it hangs, on storage most often"
PROCESS = "no thread of QEMU answers: the process is stopped or starved"
"""Why a VM is stalled, as a probe out of band tells."""


class MonitorState(StrEnum):
    """Where a session stands, as a person sees it."""

    CONNECTING = "connecting"
    BUSY = "busy"
    """Something accepts but does not greet: another client holds this monitor. Not a dead VM."""
    NEGOTIATING = "negotiating"
    UP = "up"
    STALLED = "stalled"
    """A reply is overdue. Not a dead VM either."""
    DENIED = "denied"
    """We may not connect: permissions."""
    STANDBY = "standby"
    """Its VM is watched over a better monitor; this one takes over when that one is lost."""
    GONE = "gone"
    """Nothing listens there: no VM, or not yet."""


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """A session's state.

    Attributes:
        monitor: which monitor.
        state: where it stands.
        reason: why, in words for people; empty where there is nothing to say.
        vm: who is there, once known.
        build: its QEMU, once known.
        since_ns: since when it is in this state, nanoseconds since the epoch.
    """

    monitor: Monitor
    state: MonitorState
    reason: str
    vm: Vm | None
    build: Build | None
    since_ns: int


class PollOutcome(StrEnum):
    """What became of one question."""

    OK = "ok"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    """It told of more subjects than are taken."""


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


class SessionObserver(Protocol):
    """Callbacks invoked by a session. Implementations must not block or raise."""

    def on_event(self, record: Record) -> None:
        """Receive the record of a QEMU event, which may stand for several coalesced ones."""

    def on_lifecycle(self, change: VmChange, record: Record) -> None:
        """Receive the record of a change in a VM's lifecycle."""

    def on_transition(self, record: Record) -> None:
        """Receive the record of a transition that a collector derived from two polls, such as the end of a migration."""

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Receive the complete samples of these families at that instant; a subject without a sample no longer exists."""

    def on_status(self, status: MonitorStatus) -> None:
        """Receive the new state of a monitor."""

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Forget a monitor that is no longer watched."""

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Count a connection to a `listen` address that was refused."""

    def on_response(self, seconds: float) -> None:
        """Observe how long QEMU took to answer one write; after a timeout, how long the session waited."""

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        """Count one run of a collector."""

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        """Count events that were dropped before they became records."""


class ThresholdController(Protocol):
    """Who has thresholds set, and wants to know what came of it."""

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the collectors that should be asked again now."""

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Return the changes to be made to this VM now, each with the disk it is for."""

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Take note whether a change was made."""


class CollectorIndex:
    """What may be asked, as every session looks it up.

    Attributes:
        by_name: the collectors.
        beside: the names of those that ask QEMU nothing, in their order.
        carriers: by event, the collector that takes its answer from it.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.by_name = {collector.name: collector for collector in collectors}
        self.beside = [collector.name for collector in collectors if collector.host_only]
        self.carriers = {event: collector for collector in collectors for event in collector.from_event}


_EVERYTHING = CollectorIndex(ALL)


@dataclass(slots=True)
class SessionSettings:
    """What all sessions have in common; one object for all of them, so that what is renewed holds for those that are up.

    Attributes:
        host: this host's name.
        allow: what may be sent.
        changes: the changes that the operator turned on.
        intervals: how often to ask.
        reply_seconds: how long a reply may take before the VM counts as stalled.
        greeting_seconds: how long a greeting may take before the monitor counts as busy.
        retry_seconds: the longest wait between two attempts.
        guest_stats_seconds: the guest statistics interval to set where nobody has set one; only with GUEST_STATS_INTERVAL.
        menu: what to ask.
        commander: who has thresholds set; None has none.
        commands: what each build of QEMU that was met understands; sessions fill it.
        first_looks: when a VM that was just met is asked all that there is.
        root: the folder that has this host's /proc and /sys.
        labels: what is taken out of libvirt's files for people.
        asked: how many VMs are asked at this moment; sessions count themselves.
    """

    host: str
    allow: AllowList
    changes: frozenset[Change] = frozenset()
    intervals: Intervals = field(default_factory=Intervals)
    reply_seconds: float = 5.0
    greeting_seconds: float = 3.0
    retry_seconds: float = 30.0
    guest_stats_seconds: int = 10
    menu: CollectorIndex = _EVERYTHING
    commander: ThresholdController | None = None
    commands: dict[Build, frozenset[str]] = field(default_factory=dict)
    first_looks: Pacer = field(default_factory=lambda: Pacer(FIRST_LOOK_SECONDS, FIRST_LOOK_MOST_SECONDS))
    root: Path = Path("/")
    labels: LabelsConfig = field(default_factory=lambda: LabelsConfig(libvirt_xml_dirs=[]))
    asked: int = 0

    def renew(self, other: "SessionSettings") -> None:
        """Take what other terms say, but for what to ask, which a session takes when it begins, and what sessions put in."""
        self.allow.allow(other.changes)
        for one in fields(self):
            if one.name not in ("allow", "menu", "commands", "first_looks", "root", "asked"):
                setattr(self, one.name, getattr(other, one.name))
