"""Calls to libvirtd, on a library of the tests' own: none shares a connection with another, whichever hang and whichever fail."""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.cli.demo.guest import until
from agent.monitors.libvirt import connection_pool, discovery
from agent.monitors.libvirt.connection_pool import MAX_CALLS, MAX_HUNG, ConnectionPool, LibvirtConnection
from agent.monitors.libvirt.event_connection import MAX_SAID, EventConnection, EventInbox
from agent.qmp.commands import AllowList
from agent.qmp.errors import DeniedError, QmpError, TransportLostError

ALLOW = AllowList()


class FailureError(Exception):
    def get_error_message(self) -> str:
        return "the connection is closed"

    def get_error_code(self) -> int:
        return -1


class Connection:
    """One connection, which tells when it is used by two at a time."""

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
        """Make a call, which waits for something."""
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
    """The library, and what its calls do."""

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
    def open_ones(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.closed]


@pytest.fixture(name="libvirtd")
def _libvirtd(monkeypatch: pytest.MonkeyPatch) -> Libvirtd:
    monkeypatch.setattr(
        connection_pool, "HUNG_SECONDS", 60
    )  # on a busy machine no call hangs either, but in the test of those
    return Libvirtd()


def using(wait: Callable[[], object]) -> Callable[[LibvirtConnection], Any]:
    return lambda line: line.connection().use(wait)


async def settled(libvirtd: Libvirtd, count: int) -> None:
    """Wait until so many connections are open."""

    async def so_many() -> bool:
        return len(libvirtd.open_ones) == count

    await until(so_many, 5)
    assert libvirtd.shared == 0


async def test_calls_side_by_side_have_a_connection_each_and_later_ones_the_same(libvirtd: Libvirtd) -> None:
    calls = ConnectionPool(libvirtd, "test", read_only=False)
    meet = threading.Barrier(MAX_CALLS)
    for _ in range(3):
        ways = await asyncio.gather(*(calls(using(lambda: meet.wait(5))) for _ in range(MAX_CALLS)))
        assert len(set(ways)) == MAX_CALLS
    await asyncio.gather(*(calls(using(lambda: None)) for _ in range(200)))
    assert len(libvirtd.connections) == MAX_CALLS
    calls.leave()
    await settled(libvirtd, 0)


async def test_calls_that_hang_keep_their_connections_until_they_return(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "HUNG_SECONDS", 0.1)
    calls = ConnectionPool(libvirtd, "test", read_only=False)
    go_on = threading.Event()
    hung = [asyncio.create_task(calls(using(lambda: go_on.wait(20)))) for _ in range(MAX_HUNG)]

    async def all_hang() -> bool:
        return calls.hung == MAX_HUNG

    await until(all_hang, 10)
    await asyncio.gather(*(calls(using(lambda: None)) for _ in range(20)))
    await settled(libvirtd, len(libvirtd.connections))
    assert MAX_HUNG < len(libvirtd.connections) <= MAX_HUNG + MAX_CALLS
    calls.leave()
    await settled(libvirtd, MAX_HUNG)
    go_on.set()
    await asyncio.gather(*hung)
    await settled(libvirtd, 0)


async def test_connections_that_ended_are_closed_and_others_opened(libvirtd: Libvirtd) -> None:
    calls = ConnectionPool(libvirtd, "test", read_only=False)
    meet = threading.Barrier(MAX_CALLS)
    await asyncio.gather(*(calls(using(lambda: meet.wait(5))) for _ in range(MAX_CALLS)))

    def ends() -> None:
        for connection in libvirtd.connections:
            connection.up = False

    with pytest.raises(TransportLostError):
        await calls(using(ends))
    await asyncio.gather(*(calls(using(lambda: meet.wait(5))) for _ in range(MAX_CALLS)))
    await settled(libvirtd, MAX_CALLS)
    assert len(libvirtd.connections) == 2 * MAX_CALLS
    calls.leave()
    await settled(libvirtd, 0)


async def test_the_connection_for_events_is_closed_once_it_is_opened(libvirtd: Libvirtd) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def version() -> None:
        asked.set()
        go_on.wait(5)

    libvirtd.version = version
    main = EventConnection(libvirtd, None, lambda _: None)
    opening = asyncio.create_task(main.open("test", read_only=True))
    await asyncio.to_thread(asked.wait, 5)
    main.close()
    await asyncio.sleep(0.2)
    go_on.set()
    assert await opening == ((7, 2, 0), True)
    await settled(libvirtd, 0)


async def test_what_libvirt_says_is_taken_in_order_and_where_it_says_too_much_that_is_told() -> None:
    taken: list[Any] = []
    inbox = EventInbox(taken.append, lambda lost: taken.append(f"{lost} lost"))
    for more in (0, 7, 0):
        taken.clear()
        saying = threading.Thread(target=lambda said: deque(map(inbox.put, said), 0), args=(range(MAX_SAID + more),))
        saying.start()
        saying.join()  # the loop does not run meanwhile
        await until(lambda: len(taken) >= MAX_SAID, 5)
        assert taken == [*range(MAX_SAID), *[f"{more} lost"] * bool(more)]


@pytest.mark.parametrize(("code", "kind"), [(-1, TransportLostError), ("ACCESS_DENIED", DeniedError)])
async def test_a_domain_is_told_why_libvirtd_cannot_be_reached_as_often_as_it_is_looked_for(
    code: object, kind: type[QmpError], libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_uri: str) -> None:
        raise FailureError

    monkeypatch.setattr(FailureError, "get_error_code", lambda _: code)
    monkeypatch.setattr(discovery, "library", lambda: (libvirtd, None))
    for name in ("open", "openReadOnly"):
        monkeypatch.setattr(libvirtd, name, refuse)
    told: list[Any] = []
    libvirt = discovery.LibvirtDiscoverer("test")
    watching = asyncio.create_task(libvirt.run(cast("Any", SimpleNamespace(on_status=lambda *said: told.append(said)))))
    await until(lambda: told, 5)
    met = []
    for _ in range(3):
        with pytest.raises(kind, match="the connection is closed") as caught:
            await libvirt._open("uuid", "name", ALLOW, lambda _: None, deadline=1)
        met.append(caught.value)
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in met}) == 1, "nothing gathers"
    watching.cancel()
