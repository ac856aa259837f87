"""What a collector is. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from agent.host.types import File, Interface, Task
from agent.model.family import Family, Sample
from agent.model.record import Severity
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError, UnexpectedReplyError

Replies = Sequence[Any]
"""QEMU's replies, one for each question, in order, a CommandError where QEMU refused; then a Text for each file."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often to ask what no event tells, in seconds."""

    poll: float = 10.0
    guest_memory: float = 30.0
    migration: float = 1.0
    kvm: float = 300.0
    resync: float = 300.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about one VM when it was attached and at each resync.

    Attributes:
        balloon: the QOM path of its balloon device, or None.
        hv_balloon: whether it has a Hyper-V balloon.
        guest_stats_seconds: how often its balloon driver is asked for statistics; 0 is never.
        migration_events: whether its MIGRATION events are on, so that nobody need ask.
        version: its QEMU's major and minor version, for what cannot be found out by trying.
        commands: the names of the commands that its QEMU has; empty where it would not say.
        process: its process on this host, or None where that is not known.
        vcpus: the threads of its vCPUs; none where the process is not known.
        iothreads: the threads of its iothreads; none where the process is not known.
        cgroup: the folder of its process' cgroup (version 2), or None.
        interfaces: the host's network interfaces that its process has open.
        hears: whether its events are heard; where not, what they would tell is asked at each poll.
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

    def has_command(self, command: str) -> bool:
        """Return whether its QEMU has a command; where nobody knows, it is worth a try."""
        return not self.commands or command in self.commands


T = TypeVar("T")


def require_type(answer: Any, kind: type[T]) -> T:
    """Return the answer if it is of that kind.

    Raises:
        CommandError: QEMU refused; the error it gave.
        UnexpectedReplyError: it answered with something else.
    """
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, CommandError):
        raise answer
    raise UnexpectedReplyError(f"expected {kind.__name__}, got {type(answer).__name__}")


class Poll(NamedTuple):
    """What one round of questions said.

    Attributes:
        samples: all of them.
        time_ns: the instant before the questions, nanoseconds since the epoch.
        at: the same instant in seconds on the monotonic clock, for what took how long.
    """

    samples: Sequence[Sample] = ()
    time_ns: int = 0
    at: float = 0.0

    def matching(self, sample: Sample) -> Sample | None:
        """Return what it said of a sample's subject."""
        return next((s for s in self.samples if s.family is sample.family and s.labels == sample.labels), None)


@dataclass(frozen=True, slots=True)
class Transition:
    """What two polls together say has come to pass: a record of its own, for it is told once and never polled again.

    Attributes:
        family: whose fields it has; its record's type is `qemu.<the family's name>`.
        values: the fields.
        severity: how much it asks for attention.
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
    """Ask again at the next poll."""
    return intervals.poll


def on_event_only(_samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    """Ask again when an event says that the answer changed, and at each poll where no event is heard."""
    return None if facts.receives_events else intervals.poll


def _never(_samples: Sequence[Sample], _facts: Facts, _intervals: Intervals) -> float | None:
    return None


def _keep_samples(_before: Poll, now: Poll) -> Sequence[Sample]:
    return now.samples


def _no_transitions(_before: Poll, _now: Poll) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Collector:
    """One thing polled.

    Attributes:
        name: its name, by which events ask for it again.
        families: what it makes.
        commands: its questions, given what is known of the VM; none where it does not apply.
        collect: replies to samples. Raises QmpError where an answer makes no sense.
        next_poll_delay: seconds until the next poll, given the samples; None waits for an event or for the next resync.
        topology: what in the samples, when it is not as it was, makes `invalidates` be asked again, since no event tells of it.
        invalidates: the names of those collectors.
        derive: adds to a poll's samples what only two polls together say, such as a rate; the first poll is empty at each attach.
        transitions: what two polls together say has come to pass.
        from_event: events that carry an answer themselves, and how to read it.
        files: its questions to the host's kernel. A collector that asks QEMU nothing is asked while QEMU stalls too.
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
    files: Callable[[Facts], Sequence[File]] = no_files

    def missing_command(self, facts: Facts) -> str:
        """Return a command that it needs and this QEMU does not have, or empty."""
        return next((ask.name for ask in self.commands(facts) if not facts.has_command(ask.name)), "")

    @property
    def needs_previous(self) -> bool:
        """Whether it wants to see a poll again at the next one."""
        return self.derive is not _keep_samples or self.transitions is not _no_transitions

    @property
    def host_only(self) -> bool:
        """Whether QEMU need not answer for it."""
        return self.commands is no_commands
