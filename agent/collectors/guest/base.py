"""Types that define a collector of the guest agent. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.collectors.base import T
from agent.model.family import Family, Sample
from agent.qga.errors import GuestAgentError, GuestCommandError, UnreadableGuestReplyError

MAX_SUBJECTS = 64
"""Maximum number of file systems, of interfaces and of disks of one guest."""

MAX_TEXT = 128
"""Maximum length of a text from a guest in characters."""


class Exchange(NamedTuple):
    """A command that was sent to the guest agent.

    Attributes:
        reply: the value, or the error of the guest agent.
        sent_ns: when it was sent, in nanoseconds since the epoch.
        received_ns: when the reply arrived.
    """

    reply: Any
    sent_ns: int = 0
    received_ns: int = 0


@dataclass(frozen=True, slots=True)
class GuestCollector:
    """One collector.

    Attributes:
        name: the name, which is also its key in the config's intervals.
        families: the families of its samples.
        commands: the commands to send, in order. Those that the guest agent lacks are left out.
        collect: returns the samples of the exchanges, one for each command. Raises GuestAgentError for an unexpected reply.
        while_frozen: whether it runs while the guest's file systems are frozen; the guest agent then permits few commands.
    """

    name: str
    families: tuple[Family, ...]
    commands: tuple[str, ...]
    collect: Callable[[Sequence[Exchange]], Iterable[Sample]]
    while_frozen: bool = False


def expect(exchange: Exchange, expected: type[T]) -> T:
    """Return the reply if it has the expected type.

    Raises:
        GuestAgentError: the reply is an error.
        UnreadableGuestReplyError: the reply has another type.
    """
    if isinstance(exchange.reply, expected):
        return exchange.reply
    if isinstance(exchange.reply, GuestAgentError):
        raise exchange.reply
    raise UnreadableGuestReplyError(f"expected {expected.__name__}, got {type(exchange.reply).__name__}")


def value_if_any(exchange: Exchange, expected: type[T]) -> T | None:
    """Return the reply if it has the expected type; None for an error of the guest agent, which lacks the command."""
    return None if isinstance(exchange.reply, GuestCommandError) else expect(exchange, expected)
