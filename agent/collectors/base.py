"""What a collector is. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from agent.host.types import File, Interface, Task
from agent.model.family import Family, Sample
from agent.model.record import Severity
from agent.qmp.commands import Command
from agent.qmp.errors import AnswerError, CommandError

Answers = Sequence[Any]
"""QEMU's answers, one for each question, in order, a CommandError where QEMU refused; then a Text for each file."""


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
    hears: bool = True

    def has(self, command: str) -> bool:
        """Return whether its QEMU has a command; where nobody knows, it is worth a try."""
        return not self.commands or command in self.commands


T = TypeVar("T")


def require_type(answer: Any, kind: type[T]) -> T:
    """Return the answer if it is of that kind.

    Raises:
        CommandError: QEMU refused; the error it gave.
        AnswerError: it answered with something else.
    """
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, CommandError):
        raise answer
    raise AnswerError(f"expected {kind.__name__}, got {type(answer).__name__}")


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

    def of(self, sample: Sample) -> Sample | None:
        """Return what it said of a sample's subject."""
        return next((s for s in self.samples if s.family is sample.family and s.labels == sample.labels), None)


@dataclass(frozen=True, slots=True)
class Notice:
    """What two polls together say has come to pass: a record of its own, for it is told once and never polled again.

    Attributes:
        family: whose fields it has; its record's type is `qemu.<the family's name>`.
        values: the fields.
        severity: how much it asks for attention.
    """

    family: Family
    values: Mapping[str, Any]
    severity: Severity = Severity.INFO


def nothing(_facts: Facts) -> tuple[()]:
    """Ask nothing."""
    return ()


def each_poll(_samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    """Ask again at the next poll."""
    return intervals.poll


def on_event_only(_samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    """Ask again when an event says that the answer changed, and at each poll where no event is heard."""
    return None if facts.hears else intervals.poll


def _events_only(_samples: Sequence[Sample], _facts: Facts, _intervals: Intervals) -> float | None:
    return None


def _as_it_is(_before: Poll, now: Poll) -> Sequence[Sample]:
    return now.samples


def _unnoticed(_before: Poll, _now: Poll) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Collector:
    """One thing polled.

    Attributes:
        name: its name, by which events ask for it again.
        families: what it makes.
        asks: its questions, given what is known of the VM; none where it does not apply.
        collect: answers to samples. Raises QmpError where an answer makes no sense.
        again: seconds until it has to ask again although no event said so, given the samples just made; None is at the next resync.
        shape: what in the samples, when it is not as it was, makes `reshapes` be asked again, since no event tells of it.
        reshapes: the names of those collectors.
        follow: adds to a poll's samples what only two polls together say, such as a rate; the first poll is empty at each attach.
        notices: what two polls together say has come to pass.
        from_event: events that carry an answer themselves, and how to read it.
        files: its questions to the host's kernel. A collector that asks QEMU nothing is asked while QEMU stalls too.
    """

    name: str
    families: tuple[Family, ...]
    asks: Callable[[Facts], Sequence[Command]]
    collect: Callable[[Answers], Iterable[Sample]]
    again: Callable[[Sequence[Sample], Facts, Intervals], float | None] = _events_only
    shape: Callable[[Sequence[Sample]], object] = lambda _samples: None
    reshapes: tuple[str, ...] = ()
    follow: Callable[[Poll, Poll], Sequence[Sample]] = _as_it_is
    notices: Callable[[Poll, Poll], Iterable[Notice]] = _unnoticed
    from_event: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Sample]]] = field(default_factory=dict)
    files: Callable[[Facts], Sequence[File]] = nothing

    def lacks(self, facts: Facts) -> str:
        """Return a command that it needs and this QEMU does not have, or empty."""
        return next((ask.command for ask in self.asks(facts) if not facts.has(ask.command)), "")

    @property
    def looks_back(self) -> bool:
        """Whether it wants to see a poll again at the next one."""
        return self.follow is not _as_it_is or self.notices is not _unnoticed

    @property
    def beside(self) -> bool:
        """Whether QEMU need not answer for it."""
        return self.asks is nothing
