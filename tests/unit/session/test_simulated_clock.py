"""The clock of tests that run both ends of each connection in one event loop."""

import asyncio
import math
import socket
import threading
import time

import pytest

from tests.lab.simulated_clock import SimulatedClockLoop

HOUR = 3600.0


async def test_an_hour_passes_by_all_clocks() -> None:
    loop = asyncio.get_running_loop()

    def seconds_of_time_ns() -> float:
        return time.time_ns() / 1e9

    clocks = (loop.time, time.monotonic, time.time, seconds_of_time_ns)
    before = [clock() for clock in clocks]
    await asyncio.sleep(HOUR)
    for clock, earlier in zip(clocks, before, strict=True):
        assert math.isclose(clock() - earlier, HOUR)


async def test_time_does_not_pass_while_data_can_be_read() -> None:
    loop, at = asyncio.get_running_loop(), time.monotonic()
    reader, writer = socket.socketpair()
    with reader, writer:
        for end in (reader, writer):
            end.setblocking(False)  # noqa: FBT003 - the standard library's signature
        async with asyncio.timeout(1e-6):
            for number in range(1000):
                await loop.sock_sendall(writer, b"%d" % number)
                assert await loop.sock_recv(reader, 10) == b"%d" % number
    assert time.monotonic() == at


async def test_time_does_not_pass_while_a_call_runs_in_a_thread() -> None:
    at = time.monotonic()
    async with asyncio.timeout(1e-6):
        await asyncio.to_thread(sum, range(1_000_000))
    assert time.monotonic() == at


def test_time_passes_while_a_call_hangs() -> None:
    released = threading.Event()

    async def wait() -> float:
        at = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(released.wait), HOUR)
        released.set()
        return time.monotonic() - at

    with asyncio.Runner(loop_factory=lambda: SimulatedClockLoop(hang_seconds=0.01)) as runner:
        assert runner.run(wait()) == HOUR


def test_the_clock_is_real_after_the_loop_has_run() -> None:
    real = time.monotonic, time.time, time.time_ns
    with asyncio.Runner(loop_factory=SimulatedClockLoop) as runner:
        runner.run(asyncio.sleep(HOUR))
    assert (time.monotonic, time.time, time.time_ns) == real
