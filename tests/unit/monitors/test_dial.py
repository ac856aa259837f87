"""Discovery of sockets that are created, removed and created again, in directories that need not exist."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.monitors import DialDiscoverer, Monitor, dial
from agent.qmp.commands import AllowList
from agent.qmp.errors import NotConnectedError, QmpError
from tests.lab.background import in_background
from tests.lab.fake_qemu import FakeQemu
from tests.lab.machine import free_port
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS
from tests.lab.waiting import until

NEVER = 60.0
"""A scan interval in seconds that is longer than any test. Sockets that are found in a test are found by inotify."""


class Listener:
    """A discovery listener that stores the current monitors, and the history of added monitors."""

    def __init__(self) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.history: list[Monitor] = []
        self._changed = asyncio.Event()

    def on_discovery_status(self, source: Monitor, error: QmpError | None, limitation: str = "") -> None:
        raise AssertionError(f"unexpected status of {source.name}: {error}{limitation}")

    def on_monitor_added(self, monitor: Monitor) -> None:
        assert monitor.key not in self.monitors
        self.monitors[monitor.key] = monitor
        self.history.append(monitor)
        self._changed.set()

    def on_monitor_removed(self, monitor: Monitor) -> None:
        assert self.monitors.pop(monitor.key) == monitor
        self._changed.set()

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        raise AssertionError(f"{address}: {reason}")

    def names(self) -> list[str]:
        return sorted(Path(monitor.name).name for monitor in self.monitors.values())

    async def wait_until(self, predicate: Callable[[], object], seconds: float = TIMEOUT_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not predicate():
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def discovering(pattern: Path | str, scan_seconds: float = NEVER) -> AsyncIterator[Listener]:
    """Run discovery while the `with` block runs."""
    listener = Listener()
    async with in_background(DialDiscoverer(str(pattern), scan_seconds).run(listener)):
        yield listener


def make_socket(path: Path) -> None:
    """Create a socket file; no process needs to listen on it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))


async def wait_for_earlier_changes(listener: Listener, folder: Path) -> None:
    """Wait until earlier changes are reported, by making one more."""
    make_socket(folder / "mark.qmp")
    await listener.wait_until(lambda: "mark.qmp" in listener.names())


async def test_a_new_socket_is_found_before_the_next_scan(folder: Path) -> None:
    make_socket(folder / "old.qmp")
    async with discovering(folder / "*.qmp") as listener:
        await listener.wait_until(lambda: listener.names() == ["old.qmp"])
        make_socket(folder / "new.qmp")
        await listener.wait_until(lambda: listener.names() == ["new.qmp", "old.qmp"])


async def test_a_socket_created_between_the_first_scan_and_the_watch_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = DialDiscoverer.scan

    def scan_and_make(self: DialDiscoverer) -> dict[tuple[object, ...], Monitor]:
        monitors = scan(self)
        if not (folder / "new.qmp").exists():
            make_socket(folder / "new.qmp")
        return monitors

    monkeypatch.setattr(DialDiscoverer, "scan", scan_and_make)
    async with discovering(folder / "*.qmp") as listener:
        await listener.wait_until(listener.names)


async def test_a_socket_moved_into_or_out_of_the_directory_is_reported(folder: Path) -> None:
    (folder / "run").mkdir()
    make_socket(folder / "vm.qmp")
    async with discovering(folder / "run" / "vm.qmp") as listener:
        await asyncio.sleep(0)  # the first scan is done and the watch is set
        (folder / "vm.qmp").rename(folder / "run" / "vm.qmp")
        await listener.wait_until(lambda: listener.names() == ["vm.qmp"])
        (folder / "run" / "vm.qmp").rename(folder / "vm.qmp")
        await listener.wait_until(lambda: not listener.names())


async def test_a_removed_socket_is_reported_at_once(folder: Path) -> None:
    make_socket(folder / "vm.qmp")
    async with discovering(folder / "*.qmp") as listener:
        await listener.wait_until(listener.names)
        (folder / "vm.qmp").unlink()
        await listener.wait_until(lambda: not listener.names())


async def test_a_recreated_socket_is_a_new_monitor_and_the_old_one_is_removed_first(folder: Path) -> None:
    make_socket(folder / "vm.qmp")
    async with discovering(folder / "*.qmp") as listener:
        await listener.wait_until(listener.names)
        (folder / "vm.qmp").unlink()
        make_socket(folder / "vm.qmp")
        await listener.wait_until(lambda: len(listener.history) == 2)
    old, new = listener.history
    assert old.name == new.name
    assert old.key != new.key
    assert list(listener.monitors) == [new.key]


async def test_only_sockets_that_match_are_monitors(folder: Path) -> None:
    async with discovering(folder / "vm*.qmp") as listener:
        (folder / "vm-file.qmp").touch()
        (folder / "vm-folder.qmp").mkdir()
        (folder / "vm-dangling.qmp").symlink_to(folder / "nowhere")
        os.mkfifo(folder / "vm-pipe.qmp")
        make_socket(folder / "other.qmp")
        make_socket(folder / "vm1.sock")
        make_socket(folder / "vm1.qmp")
        await listener.wait_until(lambda: listener.names() == ["vm1.qmp"])
    assert [monitor.name for monitor in listener.history] == [str(folder / "vm1.qmp")]


async def test_a_symlink_to_a_socket_is_a_monitor(folder: Path) -> None:
    make_socket(folder / "real.sock")
    (folder / "vm1.qmp").symlink_to(folder / "real.sock")
    async with discovering(folder / "*.qmp") as listener:
        await listener.wait_until(lambda: listener.names() == ["vm1.qmp"])


async def test_a_directory_created_later_is_watched(folder: Path) -> None:
    async with discovering(folder / "later" / "*.qmp", scan_seconds=QUIET_SECONDS) as listener:
        assert listener.names() == []
        (folder / "later").mkdir()
        make_socket(folder / "later" / "vm.qmp")
        await listener.wait_until(lambda: listener.names() == ["vm.qmp"])


async def test_a_recreated_directory_is_watched_again(folder: Path) -> None:
    directory = folder / "run"
    directory.mkdir()
    make_socket(directory / "vm.qmp")
    async with discovering(directory / "*.qmp", scan_seconds=QUIET_SECONDS) as listener:
        await listener.wait_until(listener.names)
        (directory / "vm.qmp").unlink()
        directory.rmdir()
        await listener.wait_until(lambda: not listener.names())
        directory.mkdir()
        make_socket(directory / "vm.qmp")
        await listener.wait_until(listener.names)


async def test_directories_may_be_patterns(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        make_socket(folder / name / "qmp.sock")
    async with discovering(folder / "*" / "qmp.sock", scan_seconds=QUIET_SECONDS) as listener:
        await listener.wait_until(lambda: len(listener.monitors) == 2)
        (folder / "c").mkdir()
        make_socket(folder / "c" / "qmp.sock")
        await listener.wait_until(lambda: len(listener.monitors) == 3)


async def test_sockets_are_found_without_inotify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_inotify(**_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(dial, "Inotify", no_inotify)
    async with discovering(folder / "*.qmp", scan_seconds=QUIET_SECONDS) as listener:
        make_socket(folder / "vm.qmp")
        await listener.wait_until(listener.names)
        (folder / "vm.qmp").unlink()
        await listener.wait_until(lambda: not listener.names())


async def test_many_sockets_created_at_once_are_all_found(folder: Path) -> None:
    async with discovering(folder / "*.qmp") as listener:
        for number in range(300):
            make_socket(folder / f"vm{number}.qmp")
        await listener.wait_until(lambda: len(listener.monitors) == 300)
        for number in range(0, 300, 2):
            (folder / f"vm{number}.qmp").unlink()
        await listener.wait_until(lambda: len(listener.monitors) == 150)
        await wait_for_earlier_changes(listener, folder)


async def test_a_monitor_found_by_path_can_be_connected_to(fake: FakeQemu) -> None:
    (monitor,) = DialDiscoverer(str(fake.path)).scan().values()
    client = await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    client.close()
    assert monitor.name == str(fake.path)


async def test_a_tcp_monitor_always_exists_and_reports_why_it_cannot_connect() -> None:
    address = f"tcp:127.0.0.1:{free_port()}"
    async with discovering(address) as listener:
        await listener.wait_until(listener.names)
    (monitor,) = listener.history
    assert monitor.name == address
    with pytest.raises(NotConnectedError, match=r"refused|Connect call failed"):
        await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)


async def test_a_tcp_monitor_accepts_ipv4_and_ipv6_addresses(fake: FakeQemu) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_fake = await asyncio.open_unix_connection(fake.path)
        writer.write(await to_fake[0].readline())
        to_fake[1].write(await reader.readuntil(b"}}"))
        writer.write(await to_fake[0].readline())
        await reader.read()
        for end in (writer, to_fake[1]):
            end.close()
            await end.wait_closed()

    for host in ("127.0.0.1", "[::1]"):
        async with await asyncio.start_server(forward, host.strip("[]"), 0) as server:
            port = server.sockets[0].getsockname()[1]
            (monitor,) = DialDiscoverer(f"tcp:{host}:{port}").scan().values()
            client = await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
            client.close()


async def test_a_socket_whose_name_is_not_utf8_gets_an_escaped_name(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/vm\xff.qmp"))
    async with FakeQemu(path):
        (monitor,) = DialDiscoverer(str(folder / "*.qmp")).scan().values()
        assert monitor.name == rf"{folder}/vm\xff.qmp"
        client = await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
        client.close()


async def test_a_change_of_a_sockets_mode_or_owner_makes_no_new_monitor(folder: Path) -> None:
    path = folder / "vm1.qmp"
    make_socket(path)
    discoverer = DialDiscoverer(str(path))
    before = discoverer.scan()
    path.chmod(0o600)
    assert discoverer.scan().keys() == before.keys()


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("none/*.qmp", "the directory {folder}/none cannot be searched: No such file or directory"),
        ("file", "this is not a socket"),
        ("file/*.qmp", "the directory {folder}/file cannot be searched: Not a directory"),
        ("*.qmp", ""),
        ("not-yet.qmp", ""),
        ("none-*/x.qmp", ""),
    ],
)
def test_a_pattern_that_can_find_no_socket_has_a_reason(folder: Path, pattern: str, problem: str) -> None:
    (folder / "file").touch()
    assert DialDiscoverer(f"{folder}/{pattern}").path_problem() == problem.format(folder=folder)


async def test_the_reason_why_no_socket_can_be_found_is_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with discovering(folder / "none/*.qmp", scan_seconds=0.01) as listener:
        await until(lambda: caplog.messages)
        (folder / "none").mkdir()
        make_socket(folder / "none/vm1.qmp")
        await listener.wait_until(lambda: listener.monitors)
    assert [message for message in caplog.messages if "cannot be searched" in message] == caplog.messages
    assert len(caplog.messages) == 1
