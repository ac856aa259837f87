"""Large replies are read in several turns of the event loop, and other replies in one."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from agent.collectors import Collector
from agent.collectors.base import MAX_SAMPLES
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.qmp.commands import Command
from agent.qmp.errors import UnexpectedReplyTypeError
from agent.session.reply_parser import SAMPLES_PER_TURN, collect_in_steps
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised


def numbered(replies: Any) -> Iterator[Sample]:
    """Yield as many samples as the reply says."""
    for number in range(replies[0]):
        yield Sample(BLOCK, (f"disk{number}",), {"reads_total": number})


COLLECTOR = Collector("numbered", (BLOCK,), lambda _facts: (Command("query-blockstats"),), numbered)


def collected(count: int) -> tuple[int, int, bool]:
    """Return the number of turns and of samples, and whether there were too many samples."""
    steps, turns = collect_in_steps(COLLECTOR, [count]), 1
    while True:
        try:
            next(steps)
            turns += 1
        except StopIteration as end:
            samples, truncated = end.value
            assert [sample.values["reads_total"] for sample in samples] == list(range(len(samples)))
            return turns, len(samples), truncated


@pytest.mark.parametrize(
    ("count", "turns", "truncated"),
    [
        (0, 1, False),
        (2, 1, False),
        (SAMPLES_PER_TURN - 1, 1, False),
        (SAMPLES_PER_TURN + 1, 2, False),
        (10 * SAMPLES_PER_TURN - 1, 10, False),
        (MAX_SAMPLES, MAX_SAMPLES // SAMPLES_PER_TURN, False),
        (MAX_SAMPLES + 1, MAX_SAMPLES // SAMPLES_PER_TURN, True),
    ],
)
def test_samples_are_read_in_turns_up_to_the_maximum(count: int, turns: int, truncated: bool) -> None:  # noqa: FBT001 - a table
    assert collected(count) == (turns, min(count, MAX_SAMPLES), truncated)


def test_an_error_in_a_later_turn_is_raised() -> None:
    def failing(_replies: Any) -> Iterator[Sample]:
        yield from numbered([SAMPLES_PER_TURN])
        raise UnexpectedReplyTypeError("broken")

    steps = collect_in_steps(Collector("failing", (BLOCK,), lambda _facts: (), failing), [0])
    next(steps)
    with pytest.raises(UnexpectedReplyTypeError, match="broken"):
        next(steps)


async def test_a_vm_with_many_disks_is_polled_in_several_turns_of_the_loop(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, pauses, sleep = 3 * SAMPLES_PER_TURN, [0], asyncio.sleep

    async def counted_sleep(seconds: float) -> None:
        pauses[0] += seconds == 0
        await sleep(seconds)

    monkeypatch.setattr("agent.session.poller.asyncio.sleep", counted_sleep)
    fake.replies["query-blockstats"] = [{"qdev": f"disk{number}", "stats": {"rd_bytes": 1}} for number in range(count)]
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(3)
    polls = [samples for _, families, samples, _ in observer.calls_of("on_samples") if BLOCK in families]
    assert {len(samples) for samples in polls} == {count}
    assert pauses[0] >= 2 * len(polls)
