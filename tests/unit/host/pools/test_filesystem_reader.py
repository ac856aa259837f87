"""Reading of file systems through a child process, which a hung file system blocks instead of the agent."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.host.pools.base import PoolReadError, PoolUnresponsiveError
from agent.host.pools.filesystem_reader import FileSystemReader, FileSystemStats
from tests.lab.waiting import until

PROGRAM = """
import os, signal, sys
print("ready", flush=True)
for line in sys.stdin:
    path = bytes.fromhex(line.split()[1]).decode()
    if path == "/dies":
        sys.exit(1)
    if path == "/hung":
        signal.pause()
    if path.startswith("/hung/"):
        open(path[5:]).close()
    print(f"ok {os.getpid()} 2 1 0 0", flush=True)
"""


NEVER = 600.0


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A child's program that hangs on `/hung`, on `/hungPATH` until the named pipe PATH is opened, and reports its pid as the size."""
    program = tmp_path / "child_program.py"
    program.write_text(PROGRAM)
    return program


@pytest.fixture
async def reader(program: Path) -> AsyncIterator[FileSystemReader]:
    """A reader with this program, for which a mount soon is suspect, but no request fails because the machine is slow."""
    reader = FileSystemReader(slow_seconds=0.3, deadline_seconds=NEVER, program=program)
    yield reader
    await reader.close()


async def test_the_figures_are_those_of_statvfs(tmp_path: Path) -> None:
    reader = FileSystemReader(slow_seconds=NEVER, deadline_seconds=NEVER)
    try:
        figures, expected = await reader.statvfs(str(tmp_path), "8:1"), os.statvfs(tmp_path)
        assert (figures.size_bytes, figures.inodes) == (expected.f_blocks * expected.f_frsize, expected.f_files)
    finally:
        await reader.close()


async def test_a_path_has_its_symbolic_links_resolved(tmp_path: Path) -> None:
    (tmp_path / "real\nname").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real\nname")
    reader = FileSystemReader(slow_seconds=NEVER, deadline_seconds=NEVER)
    try:
        assert (await reader.realpath(str(tmp_path / "link"), "8:1")).endswith("/real\nname")
        with pytest.raises(PoolReadError, match="No such file or directory"):
            await reader.statvfs(str(tmp_path / "none"), "8:1")
    finally:
        await reader.close()


async def test_one_child_answers_all_requests(program: Path) -> None:
    reader = FileSystemReader(slow_seconds=NEVER, deadline_seconds=NEVER, program=program)
    try:
        figures = await asyncio.gather(*(reader.statvfs(f"/fine/{index}", "8:1") for index in range(600)))
    finally:
        await reader.close()
    assert len({figure.size_bytes for figure in figures}) == 1


async def test_a_hung_mount_delays_no_other_mount(reader: FileSystemReader) -> None:
    await reader.statvfs("/fine", "8:1")
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await asyncio.sleep(0)
    await reader.statvfs("/fine", "8:1")
    assert not hung.done()
    await until(lambda: reader.is_mount_suspect("0:9"), 60)
    assert not reader.is_mount_suspect("8:1")
    assert not reader.is_mount_unresponsive("0:9")
    hung.cancel()


async def test_a_hung_mount_is_unresponsive_after_the_deadline(program: Path) -> None:
    reader = FileSystemReader(slow_seconds=0.3, deadline_seconds=0.9, program=program)
    try:
        with pytest.raises(PoolReadError) as caught:
            await reader.statvfs("/hung", "0:9")
        # On a busy machine the child may not have begun to read the file system.
        assert isinstance(caught.value, PoolUnresponsiveError) or "the host is overloaded" in str(caught.value)
        await until(lambda: reader.is_mount_unresponsive("0:9"), 60)
        with pytest.raises(PoolUnresponsiveError):
            await reader.statvfs("/hung", "0:9")
    finally:
        await reader.close()


async def test_an_error_that_comes_after_the_deadline_is_not_logged_as_lost(program: Path) -> None:
    reader = FileSystemReader(slow_seconds=0.3, deadline_seconds=0.05, program=program)
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    try:
        requests = [asyncio.create_task(reader.statvfs("/hung", "8:1")) for _ in range(2)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(result, PoolReadError) for result in results)
        await until(lambda: reader.is_mount_suspect("8:1"), 60)
        del requests, results
        await asyncio.sleep(0)
        gc.collect()
        assert reported == []
    finally:
        await reader.close()


async def test_only_one_request_is_in_flight_for_a_hung_mount(reader: FileSystemReader) -> None:
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await until(lambda: reader.is_mount_suspect("0:9"), 60)
    with pytest.raises(PoolUnresponsiveError):
        await reader.statvfs("/hung", "0:9")
    assert not hung.done(), "the second request fails at once"
    hung.cancel()


async def test_a_mount_that_responds_again_is_noticed_without_another_request(
    reader: FileSystemReader, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "back")
    changes: list[bool] = []
    reader.on_change = lambda: changes.append(reader.is_mount_suspect("0:9"))
    late = asyncio.create_task(reader.statvfs(f"/hung{tmp_path}/back", "0:9"))
    await until(lambda: reader.is_mount_suspect("0:9"), 60)
    await asyncio.to_thread(lambda: (tmp_path / "back").open("w").close())
    await until(lambda: not reader.is_mount_suspect("0:9"), 60)
    assert (changes[0], changes[-1]) == (True, False)
    assert reader.seconds_since_mount_answered("0:9") < 60
    await late
    await reader.statvfs("/fine", "0:9")


async def test_a_child_that_ends_is_replaced(reader: FileSystemReader) -> None:
    with pytest.raises(PoolReadError, match="the child process has exited"):
        await reader.statvfs("/dies", "8:1")
    await reader.statvfs("/fine", "8:1")


async def test_the_end_does_not_wait_for_a_hung_mount(reader: FileSystemReader) -> None:
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await until(lambda: reader.is_mount_suspect("0:9"), 60)
    async with asyncio.timeout(60):
        await reader.close()
    assert not hung.done()
    hung.cancel()


async def test_the_end_waits_for_the_exit_of_a_child_that_is_starting(tmp_path: Path) -> None:
    program, pid = tmp_path / "child_program.py", tmp_path / "pid"
    program.write_text(f"import os, signal\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\nsignal.pause()\n")
    reader = FileSystemReader(slow_seconds=NEVER, deadline_seconds=NEVER, program=program)
    waiting = asyncio.create_task(reader.statvfs("/", "8:1"))
    await until(lambda: pid.exists() and pid.read_text(), 60)
    await reader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    waiting.cancel()


async def test_a_path_that_no_file_can_have_harms_no_other_request() -> None:
    reader = FileSystemReader(slow_seconds=NEVER, deadline_seconds=NEVER)
    try:
        bad, good = await asyncio.gather(
            reader.statvfs("/a\0b", "8:1"), reader.statvfs("/", "8:1"), return_exceptions=True
        )
        assert isinstance(bad, PoolReadError)
        assert isinstance(good, FileSystemStats)
    finally:
        await reader.close()
