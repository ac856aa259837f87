"""Blocking calls in daemon threads: the timeout, and callers that wait for the same call."""

import asyncio
import threading

import pytest

from agent.common.daemon_thread import BlockingCallWithTimeout


async def test_callers_of_one_call_get_the_same_result() -> None:
    calls: list[int] = []
    may_return = threading.Event()

    def work() -> int:
        calls.append(1)
        may_return.wait()
        return 7

    call = BlockingCallWithTimeout(work, 60.0, "test")
    callers = [asyncio.ensure_future(call()) for _ in range(3)]
    await asyncio.sleep(0)
    may_return.set()
    assert await asyncio.gather(*callers) == [7, 7, 7]
    assert len(calls) == 1
    assert await call() == 7
    assert len(calls) == 2


async def test_a_call_after_a_timeout_waits_for_the_same_thread() -> None:
    calls: list[int] = []
    may_return = threading.Event()

    def work() -> int:
        calls.append(1)
        may_return.wait()
        raise OSError("no answer")

    call = BlockingCallWithTimeout(work, 0.01, "test")
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await call()
    may_return.set()
    with pytest.raises(OSError, match="no answer"):
        for _ in range(1000):
            try:
                await call()
            except TimeoutError:
                continue
    assert len(calls) == 1
