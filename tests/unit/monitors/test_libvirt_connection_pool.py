"""Calls to a scripted libvirt: no two share a connection at the same time, even if some hang or fail."""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.cli.demo.guest import until
from agent.monitors.libvirt import discovery
from agent.monitors.libvirt.connection_pool import MAX_CALLS, MAX_HUNG, ConnectionPool
from agent.monitors.libvirt.event_connection import MAX_PENDING, EventConnection, EventInbox
from agent.monitors.libvirt.library import LibvirtConnection
from agent.qmp.commands import AllowList
from agent.qmp.errors import DeniedError, QmpError, TransportLostError

ALLOW = AllowList()


class FailureError(Exception):
    def get_error_message(self) -> str:
        return "the connection is closed"

    def get_error_code(self) -> int:
        return -1


class Connection:
    """A connection that counts calls made while another is in progress."""

    def __init__(self, libvirtd: "Libvirtd") -> None:
        self.up = True
        self.closed = False
        self._libvirtd = libvirtd
        self._used = threading.Lock()
        libvirtd.connections.append(self)

    def setKeepAlive(self, *_: int) -> None:  # noqa: N802 - libvirt's name
        self._call(lambda: None)

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.up and not self.closed

    def close(self) -> None:
        self._call(lambda: None)
        self.closed = True

    def registerCloseCallback(self, *_: object) -> None:  # noqa: N802 - libvirt's name
        self._call(lambda: None)

    unregisterCloseCallback = domainEventRegisterAny = registerCloseCallback  # noqa: N815 - libvirt's names

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        self._call(self._libvirtd.version)
        return 7_002_000

    def use(self, wait: Callable[[], object]) -> int:
        """Make a call that blocks in `wait`."""
        self._call(wait)
        if not self.up:
            raise FailureError
        return id(self)

    def _call(self, wait: Callable[[], object]) -> None:
        if not self._used.acquire(blocking=False):
            self._libvirtd.shared += 1
            return
        try:
            wait()
        finally:
            self._used.release()


class Libvirtd(SimpleNamespace):
    """A scripted module `libvirt`."""

    libvirtError = FailureError  # noqa: N815 - libvirt's name

    def __init__(self) -> None:
        super().__init__(connections=[], shared=0, version=lambda: None, VIR_DOMAIN_EVENT_ID_LIFECYCLE=0)
        for name in ("AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "OPERATION_DENIED", "ACCESS_DENIED"):
            setattr(self, f"VIR_ERR_{name}", name)
        self.VIR_ERR_SYSTEM_ERROR = self.VIR_ERR_NO_DOMAIN = None

    def open(self, _uri: str) -> Connection:
        return Connection(self)

    openReadOnly = open  # noqa: A003, N815 - libvirt's name

    @property
    def open_connections(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.closed]


@pytest.fixture
def libvirtd() -> Libvirtd:
    return Libvirtd()


def pool_of(libvirtd: Libvirtd, hung_seconds: float = 60) -> ConnectionPool:
    """Return a pool in which, even on a busy machine, no call counts as hung by default."""
    return ConnectionPool(libvirtd, "test", read_only=False, hung_seconds=hung_seconds)


def using(wait: Callable[[], object]) -> Callable[[LibvirtConnection], Any]:
    return lambda connection: connection.handle().use(wait)


async def wait_for_open(libvirtd: Libvirtd, count: int) -> None:
    """Wait until exactly `count` connections are open."""

    async def are_open() -> bool:
        return len(libvirtd.open_connections) == count

    await until(are_open, 5)
    assert libvirtd.shared == 0


async def test_concurrent_calls_have_separate_connections_that_later_calls_reuse(libvirtd: Libvirtd) -> None:
    pool = pool_of(libvirtd)
    barrier = threading.Barrier(MAX_CALLS)
    for _ in range(3):
        used = await asyncio.gather(*(pool.run(using(lambda: barrier.wait(5))) for _ in range(MAX_CALLS)))
        assert len(set(used)) == MAX_CALLS
    await asyncio.gather(*(pool.run(using(lambda: None)) for _ in range(200)))
    assert len(libvirtd.connections) == MAX_CALLS
    pool.retire()
    await wait_for_open(libvirtd, 0)


async def test_hung_calls_keep_their_connections_until_they_return(libvirtd: Libvirtd) -> None:
    pool = pool_of(libvirtd, hung_seconds=0.1)
    released = threading.Event()
    hung = [asyncio.create_task(pool.run(using(lambda: released.wait(20)))) for _ in range(MAX_HUNG)]

    async def all_hang() -> bool:
        return pool.hung == MAX_HUNG

    await until(all_hang, 10)
    await asyncio.gather(*(pool.run(using(lambda: None)) for _ in range(20)))
    await wait_for_open(libvirtd, len(libvirtd.connections))
    assert MAX_HUNG < len(libvirtd.connections) <= MAX_HUNG + MAX_CALLS
    pool.retire()
    await wait_for_open(libvirtd, MAX_HUNG)
    released.set()
    await asyncio.gather(*hung)
    await wait_for_open(libvirtd, 0)


async def test_ended_connections_are_closed_and_replaced(libvirtd: Libvirtd) -> None:
    pool = pool_of(libvirtd)
    barrier = threading.Barrier(MAX_CALLS)
    await asyncio.gather(*(pool.run(using(lambda: barrier.wait(5))) for _ in range(MAX_CALLS)))

    def end_connections() -> None:
        for connection in libvirtd.connections:
            connection.up = False

    with pytest.raises(TransportLostError):
        await pool.run(using(end_connections))
    await asyncio.gather(*(pool.run(using(lambda: barrier.wait(5))) for _ in range(MAX_CALLS)))
    await wait_for_open(libvirtd, MAX_CALLS)
    assert len(libvirtd.connections) == 2 * MAX_CALLS
    pool.retire()
    await wait_for_open(libvirtd, 0)


async def test_an_event_connection_that_is_closed_while_it_opens_does_not_stay_open(libvirtd: Libvirtd) -> None:
    requested, released = threading.Event(), threading.Event()

    def version() -> None:
        requested.set()
        released.wait(5)

    libvirtd.version = version
    events = EventConnection(libvirtd, None, lambda _: None)
    opening = asyncio.create_task(events.open("test", read_only=True))
    await asyncio.to_thread(requested.wait, 5)
    events.close()
    await asyncio.sleep(0.2)
    released.set()
    assert await opening == ((7, 2, 0), True)
    await wait_for_open(libvirtd, 0)


async def test_the_event_inbox_keeps_the_order_and_counts_what_it_drops() -> None:
    delivered: list[Any] = []
    inbox = EventInbox(delivered.append, lambda dropped: delivered.append(f"{dropped} dropped"))
    for excess in (0, 7, 0):
        delivered.clear()
        messages = range(MAX_PENDING + excess)
        thread = threading.Thread(target=lambda messages: deque(map(inbox.put, messages), 0), args=(messages,))
        thread.start()
        thread.join()  # the loop does not run meanwhile
        await until(lambda: len(delivered) >= MAX_PENDING, 5)
        assert delivered == [*range(MAX_PENDING), *[f"{excess} dropped"] * bool(excess)]


@pytest.mark.parametrize(("code", "kind"), [(-1, TransportLostError), ("ACCESS_DENIED", DeniedError)])
async def test_opening_a_domain_raises_why_libvirtd_cannot_be_reached(
    code: object, kind: type[QmpError], libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_uri: str) -> None:
        raise FailureError

    monkeypatch.setattr(FailureError, "get_error_code", lambda _: code)
    monkeypatch.setattr(discovery, "load_library", lambda: (libvirtd, None))
    for name in ("open", "openReadOnly"):
        monkeypatch.setattr(libvirtd, name, refuse)
    statuses: list[Any] = []
    libvirt = discovery.LibvirtDiscoverer("test")
    listener = SimpleNamespace(on_status=lambda *status: statuses.append(status))
    discovery_task = asyncio.create_task(libvirt.run(cast("Any", listener)))
    await until(lambda: statuses, 5)
    errors = []
    for _ in range(3):
        with pytest.raises(kind, match="the connection is closed") as caught:
            await libvirt.domains.open("uuid", "name", ALLOW, lambda _: None, deadline=1)
        errors.append(caught.value)
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors}) == 1, "no traceback grows"
    discovery_task.cancel()
