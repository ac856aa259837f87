"""Types that define a collector. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from agent.host.types import FileRequest, Interface, Task
from agent.model.family import Family, Sample
from agent.model.record import Severity
from agent.qmp.commands import Command
from agent.qmp.errors import QmpError, UnexpectedReplyError, UnreadableReplyError

Replies = Sequence[Any]
"""QEMU's replies in the order of the commands, with a QmpError for each command that failed. One FileReply for each file follows."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of polls that no event replaces, in seconds."""

    poll: float = 10.0
    guest_memory: float = 30.0
    migration: float = 1.0
    kvm: float = 300.0
    resync: float = 300.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one VM, discovered at attach and at each resync.

    Attributes:
        balloon: the QOM path of its balloon device, or None.
        hv_balloon: whether it has a Hyper-V balloon.
        guest_stats_seconds: the polling interval of its balloon driver's statistics; 0 if they are off.
        migration_events: whether its MIGRATION events are on; if they are, migrations need no polling.
        version: its QEMU's major and minor version, for features that cannot be detected otherwise.
        commands: the names of the commands that its QEMU supports; empty if they are unknown.
        process: its process on this host, or None if it is unknown.
        vcpus: the threads of its vCPUs; empty if the process is unknown.
        iothreads: the threads of its iothreads; empty if the process is unknown.
        cgroup: the directory of its process' cgroup (version 2), or None.
        interfaces: the host's network interfaces that its process has open.
        receives_events: whether the connection receives its events; without them, their collectors poll at the poll interval.
        guest_agent_port: the QOM path of its guest agent's virtio serial port, or None.
        repeated_images: how many images query-named-block-nodes lists without `flat`: it repeats each node's chain. 0 with `flat`.
    """

    balloon: str | None = None
    guest_stats_seconds: int = 0
    migration_events: bool = False
    version: tuple[int, int] = (0, 0)
    commands: frozenset[str] = frozenset()
    process: Task | None = None
    vcpus: tuple[Task, ...] = ()
    iothreads: tuple[Task, ...] = ()
    cgroup: str | None = None
    interfaces: tuple[Interface, ...] = ()
    hv_balloon: bool = False
    receives_events: bool = True
    guest_agent_port: str | None = None
    repeated_images: int = 0

    def has_command(self, command: str) -> bool:
        """Return whether its QEMU supports a command; true if its commands are unknown."""
        return not self.commands or command in self.commands


T = TypeVar("T")


def require_type(reply: Any, expected: type[T]) -> T:
    """Return the reply if it has the expected type.

    Raises:
        QmpError: the reply is an error.
        UnexpectedReplyError: the reply has another type.
    """
    if isinstance(reply, expected):
        return reply
    if isinstance(reply, QmpError):
        raise reply
    raise UnexpectedReplyError(f"expected {expected.__name__}, got {type(reply).__name__}")


def optional(reply: Any, expected: type[T]) -> T | None:
    """Return the reply if it has the expected type; None for an error of QEMU, which means that the VM lacks the feature.

    Raises:
        UnreadableReplyError: the reply cannot be read.
    """
    if isinstance(reply, UnreadableReplyError):
        raise reply
    return reply if isinstance(reply, expected) else None


class Poll(NamedTuple):
    """The result of one poll.

    Attributes:
        samples: the samples.
        time_ns: the instant before the commands were sent, in nanoseconds since the epoch.
        at: the same instant in seconds on the monotonic clock, for rates.
    """

    samples: Sequence[Sample] = ()
    time_ns: int = 0
    at: float = 0.0

    def matching(self, sample: Sample) -> Sample | None:
        """Return this poll's sample of the same family and labels, or None."""
        return next((s for s in self.samples if s.family is sample.family and s.labels == sample.labels), None)


@dataclass(frozen=True, slots=True)
class Transition:
    """A change between two polls, emitted once as a separate record.

    Attributes:
        family: the family of its fields; the record's type is `qemu.<the family's name>`.
        values: the fields.
        severity: the record's severity.
    """

    family: Family
    values: Mapping[str, Any]
    severity: Severity = Severity.INFO


def no_commands(_facts: Facts) -> tuple[()]:
    """Send no command."""
    return ()


def no_files(_facts: Facts) -> tuple[()]:
    """Read no file."""
    return ()


def at_poll_interval(_samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    """Poll again after the poll interval."""
    return intervals.poll


def on_event_only(_samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    """Poll again after an event; without events, after the poll interval."""
    return None if facts.receives_events else intervals.poll


def _never(_samples: Sequence[Sample], _facts: Facts, _intervals: Intervals) -> float | None:
    return None


def _keep_samples(_before: Poll, now: Poll) -> Sequence[Sample]:
    return now.samples


def _no_transitions(_before: Poll, _now: Poll) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Collector:
    """One collector: the commands to send, and functions from their replies to samples.

    Attributes:
        name: the name, which events refer to.
        families: the families of its samples.
        commands: the commands to send, given the facts about the VM; empty if the collector does not apply.
        collect: returns the samples of the replies. Raises QmpError for an error or an unexpected reply.
        next_poll_delay: seconds until the next poll, given the samples; None waits for an event or the next resync.
        topology: the part of the samples that, if it changes, invalidates other collectors; for changes that no event reports.
        invalidates: the names of those collectors.
        derive: adds values that need two polls, such as a rate; for the first poll after an attach, the previous poll is empty.
        transitions: the changes between two polls that become separate records.
        from_event: events that contain a reply's data, each with the function that reads it.
        files: files of the host's kernel to read. A collector without commands runs while QEMU is stalled, too.
    """

    name: str
    families: tuple[Family, ...]
    commands: Callable[[Facts], Sequence[Command]]
    collect: Callable[[Replies], Iterable[Sample]]
    next_poll_delay: Callable[[Sequence[Sample], Facts, Intervals], float | None] = _never
    topology: Callable[[Sequence[Sample]], object] = lambda _samples: None
    invalidates: tuple[str, ...] = ()
    derive: Callable[[Poll, Poll], Sequence[Sample]] = _keep_samples
    transitions: Callable[[Poll, Poll], Iterable[Transition]] = _no_transitions
    from_event: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Sample]]] = field(default_factory=dict)
    files: Callable[[Facts], Sequence[FileRequest]] = no_files

    def missing_command(self, facts: Facts) -> str:
        """Return the first of its commands that this QEMU does not support, or an empty string."""
        return next((command.name for command in self.commands(facts) if not facts.has_command(command.name)), "")

    @property
    def needs_previous(self) -> bool:
        """True if its samples depend on the previous poll."""
        return self.derive is not _keep_samples or self.transitions is not _no_transitions

    @property
    def host_only(self) -> bool:
        """True if it sends no command to QEMU."""
        return self.commands is no_commands
