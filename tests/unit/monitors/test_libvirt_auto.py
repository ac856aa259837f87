"""Discovery of all libvirt daemons of a host, with a scripted scan and a scripted library."""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.host.libvirt_daemons import LibvirtDaemon, LibvirtDaemonScanner, LibvirtDaemonScanResult
from agent.monitors.libvirt import discovery
from agent.monitors.libvirt.daemon_discovery import LibvirtDaemonDiscoverer
from agent.qmp.errors import ConnectPermissionError, QmpError, TransportLostError
from tests.lab.background import in_background
from tests.lab.scripted_libvirt import (
    ScriptedConnection,
    ScriptedDomain,
    ScriptedError,
    ScriptedLibrary,
    ScriptedQemuLibrary,
)
from tests.lab.waiting import until

pytestmark = pytest.mark.real_clock


class LibraryOfManyDaemons(ScriptedLibrary):
    """A fake of the module libvirt in which each URI has domains of its own, named after the URI.

    Attributes:
        refused: URIs whose connections are refused.
        hung: URIs whose connections hang until `release` is set.
        close_callbacks: what libvirt calls when it loses a connection for events.
        names: names of domains, by URI, if they differ from the URI.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.hung: set[str] = set()
        self.names: dict[str, str] = {}
        self.close_callbacks: list[Callable[..., None]] = []
        self.release = threading.Event()
        self.opened: list[str] = []

    def open(self, uri: str) -> "ConnectionOfOneDaemon":
        self.opened.append(uri)
        if uri in self.hung:
            self.release.wait(60)
        if uri in self.refused:
            raise ScriptedError("refused")
        return ConnectionOfOneDaemon(self, self.names.get(uri, uri))


class ConnectionOfOneDaemon(ScriptedConnection):
    """A connection to a daemon with one domain."""

    def __init__(self, library: LibraryOfManyDaemons, domain: str) -> None:
        super().__init__(library)
        self._closed = library.close_callbacks
        self._domain = domain

    def registerCloseCallback(self, *arguments: Any) -> None:  # noqa: N802 - libvirt's name
        self._closed.append(arguments[0])

    def listAllDomains(self, _flags: int) -> list[ScriptedDomain]:  # noqa: N802 - libvirt's name
        return [ScriptedDomain(self._domain)]


class ScriptedScanner(SimpleNamespace):
    """A scanner whose result the test sets."""

    def __init__(self, *processes: LibvirtDaemon) -> None:
        super().__init__(error=None)
        self.set(*processes)

    def set(self, *processes: LibvirtDaemon, qemus: Any = (), **counts: int) -> None:
        """Set the result of the next scans."""
        self.result = LibvirtDaemonScanResult(
            {process.namespace_and_socket: process for process in processes}, dict(qemus), **counts
        )

    def scan_proc(self) -> LibvirtDaemonScanResult:
        if self.error is not None:
            raise self.error
        result: LibvirtDaemonScanResult = self.result
        return result


class MonitorsAndStatus(SimpleNamespace):
    """A discovery listener that keeps the names of the current monitors and the last status."""

    def __init__(self) -> None:
        super().__init__(names=set(), removed=[], error=None, limitation=None, status_count=0)

    def on_discovery_status(self, _source: object, error: QmpError | None, limitation: str = "") -> None:
        self.error, self.limitation = error, limitation
        self.status_count += 1

    def on_monitor_added(self, monitor: Any) -> None:
        self.names.add(monitor.name)

    def on_monitor_removed(self, monitor: Any) -> None:
        self.names.remove(monitor.name)
        self.removed.append(monitor.name)


def pod(number: int, pid: int = 0) -> LibvirtDaemon:
    """Return the daemon of a pod."""
    socket = "/run/libvirt/virtqemud-sock"
    return LibvirtDaemon(pid or number, number, number, socket, privileged=False, container=f"pod{number}")


def name_of(process: LibvirtDaemon) -> str:
    """Return the name of the domain that a daemon has in this fake."""
    return f"{process.container}:{process.socket}#{process.connection_uri}"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> LibraryOfManyDaemons:
    scripted = LibraryOfManyDaemons()
    monkeypatch.setattr(discovery, "load_library", lambda: (scripted, ScriptedQemuLibrary()))
    return scripted


@contextlib.asynccontextmanager
async def discovering(scanner: ScriptedScanner, grace_seconds: float = 3600) -> AsyncIterator[MonitorsAndStatus]:
    """Run discovery while the `with` block runs."""
    discoverer = LibvirtDaemonDiscoverer(
        scanner=cast("LibvirtDaemonScanner", scanner), scan_seconds=0.01, grace_seconds=grace_seconds
    )
    reports = MonitorsAndStatus()
    async with in_background(discoverer.run(cast("Any", reports))):
        yield reports


async def test_the_domains_of_every_daemon_are_found_and_dropped_with_it(library: LibraryOfManyDaemons) -> None:
    scanner = ScriptedScanner(pod(1), pod(2))
    async with discovering(scanner) as reports:
        await until(lambda: reports.names == {name_of(pod(1)), name_of(pod(2))}, 60)
        scanner.set(pod(2), pod(3))
        await until(lambda: reports.names == {name_of(pod(2)), name_of(pod(3))}, 60)
        await until(lambda: (reports.error, reports.limitation) == (None, ""), 60)
    assert reports.removed == [name_of(pod(1))]


async def test_a_daemon_that_starts_again_in_its_container_keeps_its_domains(library: LibraryOfManyDaemons) -> None:
    moved = pod(1, pid=77)
    library.names = {pod(1).connection_uri: "vm", moved.connection_uri: "vm"}
    scanner = ScriptedScanner(pod(1))
    async with discovering(scanner) as reports:
        await until(lambda: reports.names, 60)
        scanner.set(qemus={(1, "uuid"): 99})
        await until(lambda: len(library.opened) > 1, 60)
        for on_close in library.close_callbacks:
            on_close(None, 0, None)
        library.refused.add(pod(1).connection_uri)
        scanner.set(moved, qemus={(1, "uuid"): 99})
        await until(lambda: moved.connection_uri in library.opened or reports.removed, 60)
        await until(lambda: (reports.error, reports.limitation) == (None, ""), 60)
    assert reports.removed == []


async def test_a_daemon_that_does_not_return_is_dropped_after_the_grace_time(library: LibraryOfManyDaemons) -> None:
    scanner = ScriptedScanner(pod(1))
    async with discovering(scanner, grace_seconds=0.05) as reports:
        await until(lambda: reports.names, 60)
        scanner.set(qemus={(1, "uuid"): 99})
        await until(lambda: reports.removed == [name_of(pod(1))], 60)


async def test_a_daemon_that_hangs_or_refuses_disturbs_no_other(library: LibraryOfManyDaemons) -> None:
    library.refused.add(pod(2).connection_uri)
    scanner = ScriptedScanner(pod(2), pod(3))
    try:
        async with discovering(scanner) as reports:
            await until(lambda: reports.names == {name_of(pod(3))}, 60)
            await until(
                lambda: reports.limitation and "1 of 2 libvirt daemons cannot be reached: pod2:" in reports.limitation,
                60,
            )
            assert reports.error is None
            library.hung.add(pod(1).connection_uri)
            scanner.set(pod(1), pod(2), pod(3), pod(4))
            await until(lambda: reports.names == {name_of(pod(3)), name_of(pod(4))}, 60)
    finally:
        library.release.set()


async def test_the_first_status_waits_until_each_daemon_has_answered(library: LibraryOfManyDaemons) -> None:
    library.hung.add(pod(1).connection_uri)
    scanner = ScriptedScanner(pod(1), pod(2))
    try:
        async with discovering(scanner) as reports:
            await until(lambda: reports.names == {name_of(pod(2))}, 60)
            assert reports.status_count == 0
            library.release.set()
            await until(lambda: (reports.error, reports.limitation) == (None, ""), 60)
            assert reports.names == {name_of(pod(1)), name_of(pod(2))}
    finally:
        library.release.set()


async def test_a_host_without_libvirt_is_reported(library: LibraryOfManyDaemons) -> None:
    async with discovering(ScriptedScanner()) as reports:
        await until(lambda: reports.limitation == "no libvirt daemon runs on this host", 60)


async def test_the_status_is_an_error_if_no_daemon_can_be_reached(library: LibraryOfManyDaemons) -> None:
    library.refused |= {pod(1).connection_uri, pod(2).connection_uri}
    async with discovering(ScriptedScanner(pod(1), pod(2))) as reports:
        await until(lambda: isinstance(reports.error, TransportLostError), 60)
        await until(lambda: "2 of 2 libvirt daemons cannot be reached" in str(reports.error), 60)


async def test_the_status_says_what_the_agent_may_not_look_into(library: LibraryOfManyDaemons) -> None:
    scanner = ScriptedScanner()
    scanner.set(unreadable_daemons=3)
    async with discovering(scanner) as reports:
        await until(lambda: isinstance(reports.error, ConnectPermissionError), 60)
        assert "libvirt daemons in containers that cannot be inspected: 3 (the agent needs CAP_SYS_PTRACE)" in str(
            reports.error
        )


async def test_a_scan_that_fails_is_reported_until_one_succeeds(library: LibraryOfManyDaemons) -> None:
    scanner = ScriptedScanner(pod(1))
    scanner.error = OSError(13, "Permission denied")
    async with discovering(scanner) as reports:
        await until(lambda: isinstance(reports.error, ConnectPermissionError), 60)
        scanner.error = None
        await until(lambda: (reports.error, reports.limitation) == (None, ""), 60)
