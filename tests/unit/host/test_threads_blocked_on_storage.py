"""Threads that wait in the kernel for storage, from a directory like /proc and from a real process."""

import os
from pathlib import Path
from typing import Final

import pytest

from agent.app.io_stall_watcher import read_threads_waiting_for_storage
from agent.host.process import Process
from agent.host.threads_blocked_on_storage import MAX_THREADS, ThreadBlockedOnStorage, find_threads_blocked_on_storage

PWRITE_ON_10: Final = "18 0xa 0x7fa093e08000 0x1000 0x9000 0x0 0x55e9b79f7ca4 0x7fa0 0x7fa1"
FUTEX: Final = "202 0x55e97d7b57a8 0x0 0xffffffff 0x0 0x0 0x0 0x7fa0 0x7fa1"
IO_SUBMIT: Final = "209 0x7f0000000000 0x1 0x7f10 0x0 0x0 0x0 0x7fa0 0x7fa1"


class Proc:
    """A directory like /proc with one process, 77."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = root / "proc/77"
        (self.process / "task").mkdir(parents=True)
        (self.process / "fd").mkdir()
        (self.process / "fd/10").symlink_to("/images/a.qcow2")

    def add(self, thread: int, state: str, call: str | None, slices: str = "1 2 9") -> None:
        folder = self.process / f"task/{thread}"
        folder.mkdir()
        (folder / "stat").write_text(f"{thread} (CPU 0/KVM) D) {state} 1 77 77 0 -1\n")
        (folder / "schedstat").write_text(f"{slices}\n")
        if call is not None:
            (folder / "syscall").write_text(f"{call}\n")

    def read(self, *skip: str, machine: str = "x86_64") -> list[ThreadBlockedOnStorage]:
        process = Process(77, self.root)
        try:
            return sorted(find_threads_blocked_on_storage(process, skip, machine), key=lambda thread: thread.id)
        finally:
            process.close()


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_a_thread_in_a_system_call_on_a_file_waits_in_any_state(proc: Proc) -> None:
    proc.add(80, "S", PWRITE_ON_10)
    proc.add(81, "D", PWRITE_ON_10)
    assert proc.read() == [
        ThreadBlockedOnStorage(80, 9, "/images/a.qcow2"),
        ThreadBlockedOnStorage(81, 9, "/images/a.qcow2"),
    ]


def test_a_thread_in_state_d_waits_although_its_system_call_is_unknown(proc: Proc) -> None:
    proc.add(80, "D", None)
    proc.add(81, "D", IO_SUBMIT)
    proc.add(82, "D", "16 0x3 0x1")
    assert [(thread.id, thread.path) for thread in proc.read()] == [(80, ""), (81, ""), (82, "")]


@pytest.mark.parametrize(
    ("state", "call"), [("S", FUTEX), ("R", "running"), ("S", None), ("T", PWRITE_ON_10), ("S", "-1")]
)
def test_a_thread_that_runs_or_waits_for_something_else_is_left_out(proc: Proc, state: str, call: str | None) -> None:
    proc.add(80, state, call)
    assert proc.read() == []


def test_the_number_of_a_system_call_depends_on_the_machine(proc: Proc) -> None:
    proc.add(80, "S", PWRITE_ON_10)
    proc.add(81, "S", "68 0xa 0x0")
    assert [thread.id for thread in proc.read(machine="aarch64")] == [81]
    assert proc.read(machine="s390x") == []


def test_a_thread_is_left_out_if_it_is_skipped_or_its_schedule_is_unknown(proc: Proc) -> None:
    proc.add(80, "D", PWRITE_ON_10)
    proc.add(81, "D", PWRITE_ON_10, slices="garbage")
    assert [thread.id for thread in proc.read()] == [80]
    assert proc.read("80") == []


@pytest.mark.parametrize("call", ["18", "18 x", "18 0xffffffffffffffff", "18 0x63", "x"])
def test_an_odd_system_call_has_no_path(proc: Proc, call: str) -> None:
    proc.add(80, "D", call)
    assert proc.read() == [ThreadBlockedOnStorage(80, 9)]


def test_a_process_with_endless_threads_is_read_in_part_only(proc: Proc) -> None:
    for thread in range(100, 100 + MAX_THREADS + 20):
        proc.add(thread, "D", None)
    assert len(proc.read()) == MAX_THREADS


def test_a_real_process_that_does_not_wait_has_none(tmp_path: Path) -> None:
    assert read_threads_waiting_for_storage(os.getpid(), ()) == []
    assert read_threads_waiting_for_storage(77, (), tmp_path) == []
