"""Reading of file systems through a child process, which a hung file system blocks instead of the agent."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cli.demo.guest import until
from agent.host.filesystem_reader import FileSystemFigures, FileSystemReader
from agent.host.pools.base import PoolReadError, PoolUnresponsiveError

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


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[FileSystemReader]:
    """A reader whose child hangs on `/hung`, on `/hungPATH` until the named pipe PATH is opened, and reports its pid as the size."""
    program = tmp_path / "child_program.py"
    program.write_text(PROGRAM)
    reader = FileSystemReader(slow_seconds=0.3, deadline_seconds=0.9, program=program)
    yield reader
    await reader.close()


async def test_the_figures_are_those_of_statvfs(tmp_path: Path) -> None:
    reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
    try:
        figures, expected = await reader.statvfs(str(tmp_path), "8:1"), os.statvfs(tmp_path)
        assert (figures.size_bytes, figures.inodes) == (expected.f_blocks * expected.f_frsize, expected.f_files)
    finally:
        await reader.close()


async def test_a_path_has_its_symbolic_links_resolved(tmp_path: Path) -> None:
    (tmp_path / "real\nname").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real\nname")
    reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
    try:
        assert (await reader.realpath(str(tmp_path / "link"), "8:1")).endswith("/real\nname")
        with pytest.raises(PoolReadError, match="No such file or directory"):
            await reader.statvfs(str(tmp_path / "none"), "8:1")
    finally:
        await reader.close()


async def test_one_child_answers_all_requests(reader: FileSystemReader) -> None:
    figures = await asyncio.gather(*(reader.statvfs(f"/fine/{index}", "8:1") for index in range(600)))
    assert len({figure.size_bytes for figure in figures}) == 1


async def test_a_hung_mount_delays_no_other_mount(reader: FileSystemReader) -> None:
    await reader.statvfs("/fine", "8:1")
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await asyncio.sleep(0)
    await reader.statvfs("/fine", "8:1")
    assert not hung.done()
    await until(lambda: reader.is_suspect("0:9"), 20)
    assert reader.is_suspect("0:9")
    assert not reader.is_suspect("8:1")
    with pytest.raises(PoolUnresponsiveError):
        await hung
    await until(lambda: reader.is_unresponsive("0:9"), 20)


async def test_only_one_request_is_in_flight_for_a_hung_mount(reader: FileSystemReader) -> None:
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await until(lambda: reader.is_suspect("0:9"), 20)
    started = time.monotonic()
    with pytest.raises(PoolUnresponsiveError):
        await reader.statvfs("/hung", "0:9")
    assert time.monotonic() - started < 0.5
    with pytest.raises(PoolUnresponsiveError):
        await hung


async def test_a_mount_that_responds_again_is_noticed_without_another_request(
    reader: FileSystemReader, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "back")
    changes: list[bool] = []
    reader.on_change = lambda: changes.append(reader.is_suspect("0:9"))
    with pytest.raises(PoolUnresponsiveError):
        await reader.statvfs(f"/hung{tmp_path}/back", "0:9")
    await asyncio.to_thread(lambda: (tmp_path / "back").open("w").close())
    await until(lambda: not reader.is_suspect("0:9"), 20)
    assert (changes[0], changes[-1]) == (True, False)
    assert reader.answered_seconds_ago("0:9") < 20
    await reader.statvfs("/fine", "0:9")


async def test_a_child_that_ends_is_replaced(reader: FileSystemReader) -> None:
    with pytest.raises(PoolReadError, match="the child process has exited"):
        await reader.statvfs("/dies", "8:1")
    await reader.statvfs("/fine", "8:1")


async def test_the_end_does_not_wait_for_a_hung_mount(reader: FileSystemReader) -> None:
    hung = asyncio.create_task(reader.statvfs("/hung", "0:9"))
    await until(lambda: reader.is_suspect("0:9"), 20)
    async with asyncio.timeout(5):
        await reader.close()
    hung.cancel()


async def test_a_path_that_no_file_can_have_harms_no_other_request() -> None:
    reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
    try:
        bad, good = await asyncio.gather(
            reader.statvfs("/a\0b", "8:1"), reader.statvfs("/", "8:1"), return_exceptions=True
        )
        assert isinstance(bad, PoolReadError)
        assert isinstance(good, FileSystemFigures)
    finally:
        await reader.close()
