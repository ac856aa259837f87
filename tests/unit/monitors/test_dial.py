"""Finding monitors: sockets that come, go and are made anew, in folders that need not be there."""

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
from tests.lab.fake_qemu import FakeQemu
from tests.lab.machine import free_port
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS

NEVER = 60.0
"""A scan that far off does not come in a test: what is seen before, inotify told."""


class Seen:
    """A Found that keeps what there is and all that there was."""

    def __init__(self) -> None:
        self.now: dict[tuple[object, ...], Monitor] = {}
        self.ever: list[Monitor] = []
        self._news = asyncio.Event()

    def on_status(self, way: Monitor, trouble: QmpError | None, note: str = "") -> None:
        raise AssertionError(f"{way.name} has nothing to say of itself, but says {trouble}{note}")

    def on_monitor_added(self, monitor: Monitor) -> None:
        assert monitor.key not in self.now
        self.now[monitor.key] = monitor
        self.ever.append(monitor)
        self._news.set()

    def on_monitor_removed(self, monitor: Monitor) -> None:
        assert self.now.pop(monitor.key) == monitor
        self._news.set()

    def on_connection_refused(self, address: str, reason: str) -> None:
        raise AssertionError(f"{address}: {reason}")

    def names(self) -> list[str]:
        return sorted(Path(monitor.name).name for monitor in self.now.values())

    async def until(self, predicate: Callable[[], object], seconds: float = 1.0) -> None:
        async with asyncio.timeout(seconds):
            while not predicate():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def looking(pattern: Path | str, scan_seconds: float = NEVER) -> AsyncIterator[Seen]:
    """Look for monitors for as long as the block runs."""
    seen = Seen()
    task = asyncio.create_task(DialDiscoverer(str(pattern), scan_seconds).run(seen))
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def make(path: Path) -> None:
    """Make a socket file; who listens there does not matter."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))


async def settled(seen: Seen, folder: Path) -> None:
    """Wait until changes made before are seen, by making one more."""
    make(folder / "mark.qmp")
    await seen.until(lambda: "mark.qmp" in seen.names())


async def test_a_socket_is_seen_at_once_long_before_the_next_scan(folder: Path) -> None:
    make(folder / "old.qmp")
    async with looking(folder / "*.qmp") as seen:
        await seen.until(lambda: seen.names() == ["old.qmp"])
        make(folder / "new.qmp")
        await seen.until(lambda: seen.names() == ["new.qmp", "old.qmp"])


async def test_a_socket_made_between_the_first_scan_and_the_watch_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = DialDiscoverer.scan

    def scan_and_make(self: DialDiscoverer) -> dict[tuple[object, ...], Monitor]:
        found = scan(self)
        if not (folder / "new.qmp").exists():
            make(folder / "new.qmp")
        return found

    monkeypatch.setattr(DialDiscoverer, "scan", scan_and_make)
    async with looking(folder / "*.qmp") as seen:
        await seen.until(seen.names)


async def test_a_socket_that_is_moved_into_place_or_out_of_it_is_seen(folder: Path) -> None:
    (folder / "run").mkdir()
    make(folder / "vm.qmp")
    async with looking(folder / "run" / "vm.qmp") as seen:
        await asyncio.sleep(0)  # it has looked once, and watches
        (folder / "vm.qmp").rename(folder / "run" / "vm.qmp")
        await seen.until(lambda: seen.names() == ["vm.qmp"])
        (folder / "run" / "vm.qmp").rename(folder / "vm.qmp")
        await seen.until(lambda: not seen.names())


async def test_a_socket_that_is_removed_vanishes_at_once(folder: Path) -> None:
    make(folder / "vm.qmp")
    async with looking(folder / "*.qmp") as seen:
        await seen.until(seen.names)
        (folder / "vm.qmp").unlink()
        await seen.until(lambda: not seen.names())


async def test_a_socket_made_anew_is_another_monitor_and_the_old_one_vanishes_first(folder: Path) -> None:
    make(folder / "vm.qmp")
    async with looking(folder / "*.qmp") as seen:
        await seen.until(seen.names)
        (folder / "vm.qmp").unlink()
        make(folder / "vm.qmp")
        await seen.until(lambda: len(seen.ever) == 2)
    old, new = seen.ever
    assert old.name == new.name
    assert old.key != new.key
    assert list(seen.now) == [new.key]


async def test_only_sockets_that_match_are_monitors(folder: Path) -> None:
    async with looking(folder / "vm*.qmp") as seen:
        (folder / "vm-file.qmp").touch()
        (folder / "vm-folder.qmp").mkdir()
        (folder / "vm-dangling.qmp").symlink_to(folder / "nowhere")
        os.mkfifo(folder / "vm-pipe.qmp")
        make(folder / "other.qmp")
        make(folder / "vm1.sock")
        make(folder / "vm1.qmp")
        await seen.until(lambda: seen.names() == ["vm1.qmp"])
    assert [monitor.name for monitor in seen.ever] == [str(folder / "vm1.qmp")]


async def test_a_link_to_a_socket_is_a_monitor(folder: Path) -> None:
    make(folder / "real.sock")
    (folder / "vm1.qmp").symlink_to(folder / "real.sock")
    async with looking(folder / "*.qmp") as seen:
        await seen.until(lambda: seen.names() == ["vm1.qmp"])


async def test_a_folder_that_is_not_there_yet_is_watched_once_it_is(folder: Path) -> None:
    async with looking(folder / "later" / "*.qmp", scan_seconds=QUIET_SECONDS) as seen:
        assert seen.names() == []
        (folder / "later").mkdir()
        make(folder / "later" / "vm.qmp")
        await seen.until(lambda: seen.names() == ["vm.qmp"])


async def test_a_folder_that_is_removed_and_made_again_is_watched_again(folder: Path) -> None:
    place = folder / "run"
    place.mkdir()
    make(place / "vm.qmp")
    async with looking(place / "*.qmp", scan_seconds=QUIET_SECONDS) as seen:
        await seen.until(seen.names)
        (place / "vm.qmp").unlink()
        place.rmdir()
        await seen.until(lambda: not seen.names())
        place.mkdir()
        make(place / "vm.qmp")
        await seen.until(seen.names)


async def test_folders_may_be_patterns_too(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        make(folder / name / "qmp.sock")
    async with looking(folder / "*" / "qmp.sock", scan_seconds=QUIET_SECONDS) as seen:
        await seen.until(lambda: len(seen.now) == 2)
        (folder / "c").mkdir()
        make(folder / "c" / "qmp.sock")
        await seen.until(lambda: len(seen.now) == 3)


async def test_without_inotify_scanning_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(**_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(dial, "Inotify", none_left)
    async with looking(folder / "*.qmp", scan_seconds=QUIET_SECONDS) as seen:
        make(folder / "vm.qmp")
        await seen.until(seen.names)
        (folder / "vm.qmp").unlink()
        await seen.until(lambda: not seen.names())


async def test_many_sockets_made_at_once_are_all_seen(folder: Path) -> None:
    async with looking(folder / "*.qmp") as seen:
        for number in range(300):
            make(folder / f"vm{number}.qmp")
        await seen.until(lambda: len(seen.now) == 300)
        for number in range(0, 300, 2):
            (folder / f"vm{number}.qmp").unlink()
        await seen.until(lambda: len(seen.now) == 150)
        await settled(seen, folder)


async def test_a_monitor_found_by_path_can_be_connected_to(fake: FakeQemu) -> None:
    (monitor,) = DialDiscoverer(str(fake.path)).scan().values()
    client = await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    client.close()
    assert monitor.name == str(fake.path)


async def test_a_tcp_monitor_is_always_there_and_tells_why_it_cannot_be_reached() -> None:
    address = f"tcp:127.0.0.1:{free_port()}"
    async with looking(address) as seen:
        await seen.until(seen.names)
    (monitor,) = seen.ever
    assert monitor.name == address
    with pytest.raises(NotConnectedError, match=r"refused|Connect call failed"):
        await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)


async def test_a_tcp_monitor_can_be_connected_to_by_either_kind_of_address(fake: FakeQemu) -> None:
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


async def test_a_socket_whose_name_is_no_text_is_watched_under_one_that_is(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/vm\xff.qmp"))
    async with FakeQemu(path):
        (monitor,) = DialDiscoverer(str(folder / "*.qmp")).scan().values()
        assert monitor.name == rf"{folder}/vm\xff.qmp"
        client = await monitor.open(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
        client.close()
