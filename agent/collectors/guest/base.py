"""Types that define a collector of values from the guest agent. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.collectors.base import T
from agent.model.family import Family, Sample
from agent.qga.errors import GuestAgentCommandError, GuestAgentError, UnreadableGuestReplyError

MAX_SUBJECTS = 64
"""Maximum number of samples of one family from one guest, such as file systems, interfaces or disks."""

MAX_TEXT = 128
"""Maximum length of a text from a guest in characters."""


class TimedGuestReply(NamedTuple):
    """A command to the guest agent and its reply.

    Attributes:
        reply: the value, or the error that the guest agent returned.
        sent_ns: when the command was sent, in nanoseconds since the epoch.
        received_ns: when the reply arrived, in nanoseconds since the epoch.
    """

    reply: Any
    sent_ns: int = 0
    received_ns: int = 0


@dataclass(frozen=True, slots=True)
class GuestCollector:
    """A collector of values from the guest agent.

    Attributes:
        name: name of the collector, and key of its interval in the config.
        families: the families of the samples that the collector returns.
        commands: the commands to send, in order. A command that the guest agent lacks is not sent.
        collect: returns the samples in the replies, given one `TimedGuestReply` for each command. Raises GuestAgentError for an unexpected
            reply.
        while_frozen: whether the collector also runs while the guest's file systems are frozen. The guest agent then permits few commands.
    """

    name: str
    families: tuple[Family, ...]
    commands: tuple[str, ...]
    collect: Callable[[Sequence[TimedGuestReply]], Iterable[Sample]]
    while_frozen: bool = False


def require_value(exchange: TimedGuestReply, expected: type[T]) -> T:
    """Return the value that the guest agent returned, if the value has the expected type.

    Raises:
        GuestAgentError: the error that the guest agent returned.
        UnreadableGuestReplyError: the value has another type.
    """
    if isinstance(exchange.reply, expected):
        return exchange.reply
    if isinstance(exchange.reply, GuestAgentError):
        raise exchange.reply
    raise UnreadableGuestReplyError(f"expected {expected.__name__}, got {type(exchange.reply).__name__}")


def value_unless_error(exchange: TimedGuestReply, expected: type[T]) -> T | None:
    """Return the value like `require_value`; None if the guest agent returned an error, for example for an unknown command."""
    return None if isinstance(exchange.reply, GuestAgentCommandError) else require_value(exchange, expected)
