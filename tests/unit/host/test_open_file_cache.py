"""Files that stay open between polls."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from agent.host.open_file_cache import OpenFileBudget, OpenFileCache
from agent.host.process import Process
from agent.host.types import KernelFilesToRead

PID_ATTEMPTS = 200


class Opener:
    """Opens files below a directory and remembers their descriptors."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[int] = []

    def __call__(self, path: str, flags: int) -> int:
        self.opened.append(os.open(self.root / path, flags))
        return self.opened[-1]


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "b").write_text("2\n")
    return Opener(tmp_path)


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def test_a_file_is_opened_once_and_read_from_its_start_each_time(opener: Opener) -> None:
    files = OpenFileCache(opener, OpenFileBudget(9))
    assert files.read("", ("a", "b")) == [b"1\n", b"2\n"]
    (opener.root / "a").write_text("30\n")
    assert files.read("", ("a", "b")) == [b"30\n", b"2\n"]
    assert len(opener.opened) == 2
    files.close()
    assert not any(map(is_open, opener.opened))


def test_other_names_in_a_directory_replace_the_open_files(opener: Opener) -> None:
    budget = OpenFileBudget(9)
    files = OpenFileCache(opener, budget)
    files.read("", ("a",))
    assert files.read("", ("b",)) == [b"2\n"]
    assert budget.used == 1
    files.close()
    assert budget.used == 0


def test_files_beyond_the_budget_are_read_but_not_kept(opener: Opener) -> None:
    budget = OpenFileBudget(1)
    files, others = OpenFileCache(opener, budget), OpenFileCache(opener, budget)
    for _ in range(2):
        assert files.read("", ("a", "b")) == [b"1\n", b"2\n"]
        assert others.read("", ("a",)) == [b"1\n"]
        assert budget.used == 1
    files.close()
    assert others.read("", ("a",)) == [b"1\n"]
    assert budget.used == 1
    others.close()
    assert not any(map(is_open, set(opener.opened)))


def test_a_file_that_appears_later_is_read(opener: Opener) -> None:
    files = OpenFileCache(opener, OpenFileBudget(9))
    assert files.read("", ("c",)) == [None]
    (opener.root / "c").write_text("3\n")
    assert files.read("", ("c",)) == [b"3\n"]
    files.close()


def test_a_file_that_cannot_be_read_any_more_is_opened_again(opener: Opener) -> None:
    budget = OpenFileBudget(9)
    files = OpenFileCache(opener, budget)
    files.read("", ("a",))
    reader, writer = os.pipe()
    os.dup2(
        reader, opener.opened[0]
    )  # a pipe cannot be read at an offset: an error, as of a network interface that is gone
    assert files.read("", ("a",)) == [b"1\n"]
    assert (len(opener.opened), budget.used) == (2, 1)
    (opener.root / "a").unlink()
    os.dup2(reader, opener.opened[1])
    assert files.read("", ("a",)) == [None]
    assert budget.used == 0
    os.close(reader)
    os.close(writer)


def test_a_file_that_is_unreadable_at_once_is_not_kept(opener: Opener) -> None:
    budget = OpenFileBudget(9)
    files = OpenFileCache(opener, budget)
    assert files.read("", (".",)) == [None]  # a directory opens, but has no content
    assert (budget.used, is_open(opener.opened[0])) == (0, False)


def test_half_of_the_process_limit_may_stay_open() -> None:
    assert 0 <= OpenFileBudget.of_process().limit <= os.sysconf("SC_OPEN_MAX") // 2


def test_the_files_of_an_ended_thread_are_closed() -> None:
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    budget = OpenFileBudget(9)
    process, request = Process(os.getpid(), budget=budget), KernelFilesToRead(f"task/{thread.native_id}", ("stat",))
    assert process.read_files([request])[0].contents[0] is not None
    ends.set()
    thread.join()
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        os.sched_yield()
    assert process.read_files([request])[0].contents == [None]
    assert budget.used == 0
    process.close()


def test_files_of_a_process_do_not_show_another_process_with_the_same_pid() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as first:
        process, request = Process(first.pid), KernelFilesToRead("", ("stat", "schedstat", "status", "io", "fd/"))
        assert None not in process.read_files([request])[0].contents
    with _process_with_pid(first.pid) as second:
        assert process.read_files([request])[0].contents == [None] * 5
        assert second.stdin is not None
    process.close()


def _process_with_pid(pid: int) -> subprocess.Popen[bytes]:
    """Start a process with the pid of an ended one. Another process may take the pid first, so try several times."""
    for _ in range(PID_ATTEMPTS):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("this user may not choose the next pid")
        started = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        if started.pid == pid:
            return started
        started.communicate()
    pytest.skip("another process has the pid")
