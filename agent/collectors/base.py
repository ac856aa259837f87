"""What a collector is. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.catalogue.model import Family, Sample
from agent.qmp.commands import Ask
from agent.qmp.errors import AnswerError, CommandError

Answers = Sequence[Any]
"""QEMU's answers, one for each question, in order; a CommandError where QEMU refused."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often to ask what no event tells, in seconds."""

    poll: float = 10.0
    guest_memory: float = 30.0
    migration: float = 1.0
    resync: float = 300.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about one VM when it was attached and at each resync.

    Attributes:
        balloon: the QOM path of its balloon device, or None.
        guest_stats_seconds: how often its balloon driver is asked for statistics; 0 is never.
        migration_events: whether its MIGRATION events are on, so that nobody need ask.
        version: its QEMU's major and minor version, for what cannot be found out by trying.
    """

    balloon: str | None = None
    guest_stats_seconds: int = 0
    migration_events: bool = False
    version: tuple[int, int] = (0, 0)


T = TypeVar("T")


def expect(answer: Any, kind: type[T]) -> T:
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


def _events_only(_samples: Sequence[Sample], _facts: Facts, _intervals: Intervals) -> float | None:
    return None


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
        from_event: events that carry an answer themselves, and how to read it.
    """

    name: str
    families: tuple[Family, ...]
    asks: Callable[[Facts], Sequence[Ask]]
    collect: Callable[[Answers], Iterable[Sample]]
    again: Callable[[Sequence[Sample], Facts, Intervals], float | None] = _events_only
    shape: Callable[[Sequence[Sample]], object] = lambda _samples: None
    reshapes: tuple[str, ...] = ()
    from_event: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Sample]]] = field(default_factory=dict)
