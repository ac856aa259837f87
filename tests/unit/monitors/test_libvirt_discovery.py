"""Discovery of libvirt's domains: reconnecting, and the errors that it reports."""

import time
import traceback

import pytest

from agent.monitors.libvirt import discovery
from agent.monitors.libvirt.discovery import LibvirtDiscoverer
from agent.qmp.commands import AllowList
from agent.qmp.errors import CommandError, ConnectPermissionError, QmpError, TransportLostError
from tests.lab.libvirt_discovery import discovering
from tests.lab.scripted_libvirt import REFUSED, ScriptedDomain, ScriptedError, ScriptedLibrary, ScriptedQemuLibrary
from tests.lab.waiting import until

pytestmark = pytest.mark.real_clock

ALLOW = AllowList()


@pytest.fixture
def libvirtd(monkeypatch: pytest.MonkeyPatch) -> ScriptedLibrary:
    library = ScriptedLibrary()
    monkeypatch.setattr(discovery, "load_library", lambda: (library, ScriptedQemuLibrary()))
    return library


@pytest.mark.parametrize(("code", "kind"), [(-1, TransportLostError), ("ACCESS_DENIED", ConnectPermissionError)])
async def test_opening_a_domain_raises_the_error_of_the_connection_to_libvirtd(
    code: object, kind: type[QmpError], libvirtd: ScriptedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_uri: str) -> None:
        raise ScriptedError(code=code)

    for name in ("open", "openReadOnly"):
        monkeypatch.setattr(libvirtd, name, refuse)
    libvirt = LibvirtDiscoverer("test")
    async with discovering(libvirt) as reports:
        await until(lambda: reports.statuses, 60)
        errors = []
        for _ in range(3):
            with pytest.raises(kind, match="the connection is closed") as caught:
                await libvirt.domains.open_connection("uuid", "name", ALLOW, lambda _: None, deadline=60)
            errors.append(caught.value)
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors}) == 1, "no traceback grows"


async def test_the_wait_between_attempts_to_connect_grows_while_they_fail(
    libvirtd: ScriptedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt to connect to a hung libvirtd takes longer than the maximum wait, but it does not reset the number of attempts."""
    attempts: list[int] = []

    def no_delay(attempt: int, *_: float) -> float:
        attempts.append(attempt)
        return 0

    def hang_and_fail(_uri: str) -> None:
        time.sleep(0.05)
        raise ScriptedError

    for name in ("open", "openReadOnly"):
        monkeypatch.setattr(libvirtd, name, hang_and_fail)
    async with discovering(LibvirtDiscoverer("test", max_retry_seconds=0.02, delay_before_retry=no_delay)):
        await until(lambda: len(attempts) >= 4, 60)
    assert attempts[:4] == [1, 2, 3, 4]


async def test_a_refused_list_of_domains_is_reported_and_ends_no_connection(libvirtd: ScriptedLibrary) -> None:
    libvirtd.domains["a"] = ScriptedDomain("a")
    listing, libvirt = libvirtd.listing, LibvirtDiscoverer("test")
    async with discovering(libvirt) as reports:
        await until(lambda: reports.statuses == [None], 60)
        connection = await libvirt.domains.open_connection("a", "a", ALLOW, lambda _: None, deadline=60)
        opened = len(libvirtd.connections)
        libvirtd.listing = lambda: ScriptedError("cannot decode the list", REFUSED)
        libvirt.refresh()
        await until(lambda: len(reports.statuses) == 2, 60)
        assert isinstance(reports.statuses[1], CommandError)
        assert not connection.ended_future.done()
        libvirtd.listing = listing
        libvirt.refresh()
        await until(lambda: reports.statuses[2:] == [None], 60)
        assert len(libvirtd.connections) == opened
        assert (reports.added, reports.removed) == (["test#a"], [])
        connection.close()
