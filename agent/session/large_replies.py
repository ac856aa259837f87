"""Reads large replies in several turns of the event loop, so that a VM with a thousand disks does not delay other VMs. Pure."""

from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from agent.collectors import Collector
from agent.collectors.base import MAX_SAMPLES
from agent.model.family import Sample

Result = TypeVar("Result")
Turns = Generator[None, None, Result]
"""Work in steps of a few milliseconds. The event loop may run between two steps."""

SAMPLES_PER_TURN = 128
"""Number of samples that are read in one turn of the event loop. 128 disks take about two milliseconds."""


def run_at_once(turns: Turns[Result]) -> Result:
    """Run all steps without a pause, and return their result."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return cast("Result", end.value)


def collect_in_turns(collector: Collector, replies: Sequence[Any]) -> Turns[tuple[Sequence[Sample], bool]]:
    """Return the samples in a collector's replies. Replies with few samples are read in one step.

    Returns:
        The samples, and whether the replies had more of them than `MAX_SAMPLES`.

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
