"""The guest agent of a domain over libvirt."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitors.libvirt.guest_info import (
    AGENT_UNRESPONSIVE,
    GUEST_INFO_TYPES,
    RESTORED_TIMEOUT,
    LibvirtGuestChannel,
    open_guest_channel,
)
from agent.qga import commands
from agent.qga.errors import (
    GuestAgentCommandError,
    GuestAgentError,
    GuestChannelAccessDeniedError,
    GuestChannelError,
    GuestTimeoutError,
)
from agent.qmp.errors import CommandError, ConnectPermissionError, NotConnectedError

_COUNTS = st.one_of(st.integers(-3, 2**40), st.text(max_size=3), st.booleans(), st.none())
_KEYS = st.sampled_from(
    [
        "fs.count",
        "fs.0.name",
        "fs.0.mountpoint",
        "fs.0.disk.count",
        "fs.0.disk.0.serial",
        "if.count",
        "if.0.name",
        "if.0.addr.count",
        "if.0.addr.0.addr",
        "user.count",
        "user.0.name",
        "os.id",
        "load.1m",
        "hostname",
    ],
)


class _LibvirtError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")
        self._code = code

    def get_error_code(self) -> int:
        return self._code

    def get_error_message(self) -> str:
        return str(self)


class _Daemon:
    """A libvirtd with one domain, which records the calls."""

    def __init__(self, answer: Any = None) -> None:
        self.api = SimpleNamespace(libvirtError=_LibvirtError)
        self.pool, self.read_only = self, False
        self.calls: list[tuple[str, int]] = []
        self.answer = answer

    async def call_with_connection(self, call: Any) -> Any:
        return call(self)

    def look_up_domain(self, _uuid: str) -> "_Daemon":
        return self

    def agentSetResponseTimeout(self, seconds: int, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.calls.append(("timeout", seconds))

    def guestInfo(self, types: int, _flags: int) -> Any:  # noqa: N802 - libvirt's name
        self.calls.append(("info", types))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def _channel(daemon: _Daemon) -> LibvirtGuestChannel:
    return open_guest_channel(daemon, "uuid", asyncio.Semaphore(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [{}, _LibvirtError(AGENT_UNRESPONSIVE), _LibvirtError(1)])
async def test_the_response_timeout_is_set_and_restored_whatever_happens(answer: Any) -> None:
    daemon = _Daemon(answer)
    with contextlib.suppress(GuestAgentError, _LibvirtError):
        await _channel(daemon).execute("guest-get-fsinfo", deadline=3)
    assert daemon.calls == [("timeout", 3), ("info", 16), ("timeout", RESTORED_TIMEOUT)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_LibvirtError(AGENT_UNRESPONSIVE), GuestTimeoutError),
        (CommandError("GenericError", "no"), GuestAgentCommandError),
        (ConnectPermissionError("no"), GuestChannelAccessDeniedError),
        (NotConnectedError("no"), GuestChannelError),
    ],
)
async def test_errors_become_the_guest_agents(error: Exception, expected: type[GuestAgentError]) -> None:
    with pytest.raises(expected):
        await _channel(_Daemon(error)).execute("guest-get-fsinfo", deadline=3)


async def test_what_libvirt_does_not_report_is_not_asked_for() -> None:
    daemon = _Daemon({})
    for name in sorted(commands.GUEST_READS - set(GUEST_INFO_TYPES) - {"guest-info"}):
        with pytest.raises(GuestAgentCommandError):
            await _channel(daemon).execute(name, deadline=3)
    assert daemon.calls == []


async def test_a_cancelled_call_ends_only_when_the_timeout_is_restored() -> None:
    released = asyncio.Event()

    class Slow(_Daemon):
        async def call_with_connection(self, call: Any) -> Any:
            await released.wait()
            return call(self)

    daemon = Slow({})
    task = asyncio.create_task(_channel(daemon).execute("guest-get-fsinfo", deadline=3))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert daemon.calls[-1] == ("timeout", RESTORED_TIMEOUT)


async def test_a_closed_channel_makes_no_call() -> None:
    daemon = _Daemon({})
    channel = _channel(daemon)
    channel.close()
    with pytest.raises(GuestChannelError):
        await channel.execute("guest-get-fsinfo", deadline=3)
    assert daemon.calls == []


async def test_file_systems_have_the_guest_agents_format() -> None:
    params = {
        "fs.count": 1,
        "fs.0.name": "vda1",
        "fs.0.mountpoint": "/",
        "fs.0.fstype": "ext4",
        "fs.0.total-bytes": 100,
        "fs.0.used-bytes": 40,
        "fs.0.disk.count": 1,
        "fs.0.disk.0.alias": "vda",
        "fs.0.disk.0.serial": "s1",
        "fs.0.disk.0.device": "/dev/vda1",
    }
    (filesystem,) = await _channel(_Daemon(params)).execute("guest-get-fsinfo", deadline=3)
    assert filesystem == {
        "name": "vda1",
        "mountpoint": "/",
        "type": "ext4",
        "total-bytes": 100,
        "used-bytes": 40,
        "disk": [{"serial": "s1", "dev": "/dev/vda1"}],
    }


@given(st.dictionaries(_KEYS, _COUNTS), st.sampled_from(sorted(GUEST_INFO_TYPES)))
def test_any_parameters_are_converted(params: dict[str, Any], name: str) -> None:
    """A guest decides what libvirt returns, so no value may raise."""
    GUEST_INFO_TYPES[name].convert(params)
