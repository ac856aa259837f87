"""Reads the samples in the replies to a collector's commands.

Large replies are read in several turns of the event loop, so that a VM with a thousand disks does not delay other VMs. Pure.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from agent.collectors import Collector, VmFacts
from agent.collectors.base import MAX_SAMPLES
from agent.model.family import Sample
from agent.qmp.errors import CommandError

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""A generator that yields after each step of a few milliseconds, so that the event loop can run between two steps."""

SAMPLES_PER_TURN = 128
"""Maximum number of samples that are read in one turn of the event loop. 128 disks take about two milliseconds."""


class CollectorResult(NamedTuple):
    """The result of a collector that has read its replies.

    Attributes:
        samples: the samples; empty after an error.
        truncated: whether the replies had more samples than `MAX_SAMPLES`.
        error: why the replies cannot be read, which may be a bug of the collector; None if the replies could be read.
    """

    samples: Sequence[Sample] = ()
    truncated: bool = False
    error: Exception | None = None


def parse_replies(collector: Collector, facts: VmFacts, replies: Sequence[Any]) -> CollectorResult:
    """Read a collector's replies in one step."""
    return next(filter(None, parse_in_steps(collector, facts, replies)))


def parse_in_steps(collector: Collector, facts: VmFacts, replies: Sequence[Any]) -> Iterator[CollectorResult | None]:
    """Read a collector's replies in steps of a few milliseconds. Yield None between two steps, and then the result."""
    unsupported = next(filter(is_unsupported, replies), None)
    if unsupported is not None:
        yield CollectorResult(error=unsupported)
        return
    try:
        samples, truncated = yield from collect_in_steps(
            collector, collector.pair_replies_with_subjects(facts, replies)
        )
    except Exception as error:  # noqa: BLE001 - a bug in one collector must not end the session
        yield CollectorResult(error=error)
    else:
        yield CollectorResult(samples, truncated)


def is_unsupported(reply: object) -> bool:
    """Return whether a reply, or an error, shows that QEMU does not know the command."""
    return isinstance(reply, CommandError) and reply.error_class == "CommandNotFound"


def collect_in_steps(collector: Collector, replies: Sequence[Any]) -> Steps[tuple[Sequence[Sample], bool]]:
    """Read the samples in a collector's replies, in steps of `SAMPLES_PER_TURN` samples.

    Returns:
        The samples, and whether the replies had more samples than `MAX_SAMPLES`.

    Raises:
        QmpError: a reply is an error or is unexpected.
    """
    collected = iter(collector.collect(replies))
    samples = list(islice(collected, SAMPLES_PER_TURN))
    turn = len(samples)
    while turn == SAMPLES_PER_TURN and len(samples) < MAX_SAMPLES:
        yield
        before = len(samples)
        samples.extend(islice(collected, min(SAMPLES_PER_TURN, MAX_SAMPLES - before)))
        turn = len(samples) - before
    return tuple(samples), len(samples) == MAX_SAMPLES and next(collected, None) is not None
