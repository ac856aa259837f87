"""Calls to a scripted libvirt: no connection has two calls at the same time, even if calls hang or fail."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from agent.monitors.libvirt.connection_pool import HOST_LIMITS, ConnectionPool
from agent.monitors.libvirt.event_connection import MAX_PENDING, EventConnection, ThreadSafeEventQueue
from agent.monitors.libvirt.libvirt_python import LibvirtConnection
from agent.qmp.commands import AllowList
from agent.qmp.errors import TransportLostError
from tests.lab.scripted_libvirt import ScriptedLibrary
from tests.lab.waiting import until

pytestmark = pytest.mark.real_clock

ALLOW = AllowList()


@pytest.fixture
def libvirtd() -> ScriptedLibrary:
    return ScriptedLibrary()


def pool_of(libvirtd: ScriptedLibrary, hung_seconds: float = 60) -> ConnectionPool:
    """Return a pool. By default no call counts as hung, even on a busy machine."""
    return ConnectionPool(libvirtd, "test", read_only=False, hung_seconds=hung_seconds)


def call_that_waits(wait: Callable[[], object]) -> Callable[[LibvirtConnection], Any]:
    """Return a call on a connection that lasts until `wait` returns."""
    return lambda connection: connection.vir_connect().use(wait)


async def wait_for_open_connections(libvirtd: ScriptedLibrary, count: int) -> None:
    """Wait until exactly `count` connections are open, and check that no connection had two calls at once."""

    async def are_open() -> bool:
        return len(libvirtd.open_connections) == count

    await until(are_open, 60)
    assert libvirtd.shared == 0


async def test_concurrent_calls_have_separate_connections_that_later_calls_reuse(libvirtd: ScriptedLibrary) -> None:
    pool = pool_of(libvirtd)
    barrier = threading.Barrier(HOST_LIMITS.max_calls)
    for _ in range(3):
        used = await asyncio.gather(
            *(
                pool.call_with_connection(call_that_waits(lambda: barrier.wait(60)))
                for _ in range(HOST_LIMITS.max_calls)
            )
        )
        assert len(set(used)) == HOST_LIMITS.max_calls
    await asyncio.gather(*(pool.call_with_connection(call_that_waits(lambda: None)) for _ in range(200)))
    assert len(libvirtd.connections) == HOST_LIMITS.max_calls
    pool.replace_connections()
    await wait_for_open_connections(libvirtd, 0)


async def test_hung_calls_keep_their_connections_until_they_return(libvirtd: ScriptedLibrary) -> None:
    pool = pool_of(libvirtd, hung_seconds=0.1)
    released = threading.Event()
    hung = [
        asyncio.create_task(pool.call_with_connection(call_that_waits(lambda: released.wait(60))))
        for _ in range(HOST_LIMITS.max_hung)
    ]

    async def all_hang() -> bool:
        return pool.hung_calls == HOST_LIMITS.max_hung

    await until(all_hang, 60)
    pool._hung_seconds = 60  # a call that only waits for a busy machine does not hang
    await asyncio.gather(*(pool.call_with_connection(call_that_waits(lambda: None)) for _ in range(20)))
    await wait_for_open_connections(libvirtd, len(libvirtd.connections))
    assert HOST_LIMITS.max_hung < len(libvirtd.connections) <= HOST_LIMITS.max_hung + HOST_LIMITS.max_calls
    pool.replace_connections()
    await wait_for_open_connections(libvirtd, HOST_LIMITS.max_hung)
    released.set()
    await asyncio.gather(*hung)
    await wait_for_open_connections(libvirtd, 0)


async def test_ended_connections_are_closed_and_replaced(libvirtd: ScriptedLibrary) -> None:
    pool = pool_of(libvirtd)
    barrier = threading.Barrier(HOST_LIMITS.max_calls)
    await asyncio.gather(
        *(pool.call_with_connection(call_that_waits(lambda: barrier.wait(60))) for _ in range(HOST_LIMITS.max_calls))
    )

    def end_connections() -> None:
        for connection in libvirtd.connections:
            connection.up = False

    with pytest.raises(TransportLostError):
        await pool.call_with_connection(call_that_waits(end_connections))
    await asyncio.gather(
        *(pool.call_with_connection(call_that_waits(lambda: barrier.wait(60))) for _ in range(HOST_LIMITS.max_calls))
    )
    await wait_for_open_connections(libvirtd, HOST_LIMITS.max_calls)
    assert len(libvirtd.connections) == 2 * HOST_LIMITS.max_calls
    pool.replace_connections()
    await wait_for_open_connections(libvirtd, 0)


async def test_an_event_connection_that_is_closed_while_it_opens_does_not_stay_open(libvirtd: ScriptedLibrary) -> None:
    requested, released = threading.Event(), threading.Event()

    def register() -> None:
        requested.set()
        released.wait(60)

    libvirtd.register = register
    events = EventConnection(libvirtd, None, lambda _: None)
    opening = asyncio.create_task(events.open("test", read_only=True))
    await asyncio.to_thread(requested.wait, 60)
    events.close()
    await asyncio.sleep(0.2)
    released.set()
    assert await opening is True
    await wait_for_open_connections(libvirtd, 0)


async def test_the_event_inbox_keeps_the_order_and_counts_dropped_messages() -> None:
    delivered: list[Any] = []
    inbox = ThreadSafeEventQueue(delivered.append, lambda dropped: delivered.append(f"{dropped} dropped"))
    for excess in (0, 7, 0):
        delivered.clear()
        messages = range(MAX_PENDING + excess)
        thread = threading.Thread(target=lambda messages: deque(map(inbox.put, messages), 0), args=(messages,))
        thread.start()
        thread.join()  # the loop does not run meanwhile
        await until(lambda: len(delivered) >= MAX_PENDING, 60)
        assert delivered == [*range(MAX_PENDING), *[f"{excess} dropped"] * bool(excess)]
