"""Identification of the QEMU process behind a monitor, and reading of the process's files and interfaces."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.interfaces import find_process_interfaces
from agent.host.process import Process
from agent.host.qemu_process_identification import UnidentifiedProcessError, identify_qemu_process
from agent.host.types import KernelFilesToRead

STATUS = "Name:\t{name}\nUmask:\t0022\nTgid:\t{tgid}\nPid:\t{tid}\nNSpid:\t{ids}\nThreads:\t2\n"
STAT = "{tid} (x) S " + "0 " * 18 + "500 0 0 0\n"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"\n")  # an answer shows that the libraries are loaded: their files are open until then
        running.stdout.read(1)
        yield running
        running.kill()


def write_thread_files(root: Path, pid: int, tid: int, *, name: str = "qemu-system-x86", ids: str = "") -> None:
    """Create a thread's files at the kernel's two places: under the directory of its process, and in /proc/TID."""
    for folder in (root / f"proc/{tid}", root / f"proc/{pid}/task/{tid}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "status").write_text(STATUS.format(name=name, tgid=pid, tid=tid, ids=ids or tid))
        (folder / "stat").write_text(STAT.format(tid=tid))


def write_process_files(root: Path, pid: int, *tids: int, name: str = "qemu-system-x86") -> None:
    for tid in (pid, *tids):
        write_thread_files(root, pid, tid, name=name)


def count_open_descriptors(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def lookup_error(socket_owner: int | None, threads: list[int], root: Path) -> str:
    with pytest.raises(UnidentifiedProcessError) as caught:
        identify_qemu_process(socket_owner, threads, root)
    return str(caught.value)


# --- Identification ---


def test_the_process_that_opened_the_socket_and_has_the_threads_is_qemu(tmp_path: Path) -> None:
    write_process_files(tmp_path, 70, 71, 72, name="renamed")
    qemu = identify_qemu_process(70, [71, 72], tmp_path)
    assert (qemu.process.pid, qemu.threads) == (70, {71: 71, 72: 72})
    qemu.process.close()


def test_a_manager_that_opened_the_socket_is_not_taken_for_qemu(tmp_path: Path) -> None:
    write_process_files(tmp_path, 50, name="libvirtd")
    write_process_files(tmp_path, 70, 71, name="qemu-kvm")
    qemu = identify_qemu_process(50, [71], tmp_path)
    assert qemu.process.pid == 70
    qemu.process.close()


@pytest.mark.parametrize("threads", [[71], [12, 71]])
def test_another_process_with_the_same_thread_ids_is_not_qemu(tmp_path: Path, threads: list[int]) -> None:
    write_process_files(tmp_path, 50, name="libvirtd")
    write_process_files(tmp_path, 70, 71, name="postgres")
    write_process_files(tmp_path, 10, 12)
    assert "process 50 opened" in lookup_error(50, threads, tmp_path)


def test_a_process_that_lacks_one_of_the_threads_is_not_qemu(tmp_path: Path) -> None:
    write_process_files(tmp_path, 50, name="libvirtd")
    write_process_files(tmp_path, 70, 71)
    assert "no process has the threads" in lookup_error(50, [71, 72], tmp_path)


def test_thread_ids_of_a_pid_namespace_are_translated(tmp_path: Path) -> None:
    for tid, inner in ((70, 1), (71, 5), (72, 6)):
        write_thread_files(tmp_path, 70, tid, ids=f"{tid}\t{inner}")
    write_process_files(tmp_path, 5, 6)  # another process, whose threads have these ids on the host
    qemu = identify_qemu_process(70, [5, 6], tmp_path)
    assert (qemu.process.pid, qemu.threads) == (70, {5: 71, 6: 72})
    qemu.process.close()
    write_process_files(tmp_path, 50, name="launcher")
    write_thread_files(tmp_path, 5, 5, ids="5\t1")
    assert "no process has the threads" in lookup_error(
        50, [5, 6], tmp_path
    )  # process 5 has threads with these ids, but it is in a pid namespace


def test_without_thread_ids_the_socket_owner_must_have_qemus_name(tmp_path: Path) -> None:
    write_process_files(tmp_path, 50, name="libvirtd")
    write_process_files(tmp_path, 70)
    assert "no process has the threads" in lookup_error(50, [], tmp_path)
    qemu = identify_qemu_process(70, [], tmp_path)
    assert qemu.process.pid == 70
    qemu.process.close()


def test_the_error_names_why_a_process_is_unknown(tmp_path: Path) -> None:
    assert "not a Unix socket" in lookup_error(None, [71], tmp_path)
    assert "process 99" in lookup_error(99, [71], tmp_path)


# --- Files ---


def test_files_of_several_directories_are_read_and_unreadable_ones_are_none(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    requests = [
        KernelFilesToRead("", ("stat", "no", "fd/")),
        KernelFilesToRead("/sys/class/net/lo", ("ifindex", "no")),
        KernelFilesToRead("/no", ("such",)),
    ]
    replies = process.read_files(requests)
    assert [reply.request for reply in replies] == requests
    (stat, missing, count), *others = (reply.contents for reply in replies)
    assert (stat or b"").startswith(b"%d (cat) " % child.pid)
    assert (missing, count) == (None, b"%d" % count_open_descriptors(child.pid))
    assert others == [[b"1\n", None], [None]]
    process.close()
    assert process.read_text_file("stat") is None
    assert process.read_files(requests[:1])[0].contents == [None, None, None]


def test_nothing_is_read_after_the_process_has_ended(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    request = KernelFilesToRead("", ("stat", "schedstat", "status", "io", "fd/"))
    assert None not in process.read_files([request])[0].contents
    child.kill()
    child.wait()
    assert process.read_files([request])[0].contents == [None] * 5
    assert (process.list_directory("task"), process.read_link("ns/net")) == ([], None)
    process.close()


def test_an_endless_file_is_read_up_to_the_limit() -> None:
    process = Process(os.getpid())
    text = process.read_text_file("/dev/zero")
    assert text is not None
    assert len(text) == 64 << 10
    process.close()


def test_a_file_that_the_kernel_returns_in_parts_is_read_whole() -> None:
    process = Process(os.getpid())
    assert process.read_text_file("maps") is not None
    assert len(process.read_text_file("/proc/kallsyms") or "") == 64 << 10
    process.close()


def test_no_descriptor_stays_open(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = count_open_descriptors(os.getpid())
    process = Process(child.pid)
    process.read_files([KernelFilesToRead("", ("stat", "no", "fd/"))])
    find_process_interfaces(process, {})
    process.close()
    lookup_error(child.pid, [1], Path("/"))
    lookup_error(child.pid, [], Path("/"))
    lookup_error(child.pid, [1], tmp_path)
    assert count_open_descriptors(os.getpid()) == before


def test_the_cgroup_is_the_nearest_ancestor_that_counts_memory(tmp_path: Path) -> None:
    write_process_files(tmp_path, 70, 71)
    scope = "/machine.slice/machine-qemu.scope/libvirt"
    (tmp_path / "proc/70/cgroup").write_text(f"9:memory:/x\n0::{scope}/emulator\n")
    (tmp_path / f"sys/fs/cgroup{scope}/emulator").mkdir(parents=True)
    (tmp_path / f"sys/fs/cgroup{scope}/memory.current").write_text("5\n")
    qemu = identify_qemu_process(70, [71], tmp_path)
    assert (qemu.cgroup, qemu.cgroup_name) == (f"/sys/fs/cgroup{scope}", f"{scope}/emulator")
    qemu.process.close()
    for elsewhere in ("0::/\n", "9:memory:/x\n", "", "0::/../../etc\n"):
        (tmp_path / "proc/70/cgroup").write_text(elsewhere)
        qemu = identify_qemu_process(70, [71], tmp_path)
        assert qemu.cgroup is None
        qemu.process.close()


# --- Network interfaces ---


def add_descriptor(root: Path, pid: int, number: int, target: str, fdinfo: str = "") -> None:
    for name in ("fd", "fdinfo"):
        (root / f"proc/{pid}/{name}").mkdir(exist_ok=True)
    (root / f"proc/{pid}/fd/{number}").symlink_to(target)
    (root / f"proc/{pid}/fdinfo/{number}").write_text(f"pos:\t0\nflags:\t0104002\n{fdinfo}")


def test_taps_and_macvtaps_are_found_and_matched_to_network_cards(
    tmp_path: Path,
) -> None:
    write_process_files(tmp_path, 70)
    for folder, net in (("70", 1), ("self", 1)):
        (tmp_path / f"proc/{folder}/ns").mkdir(parents=True)
        (tmp_path / f"proc/{folder}/ns/net").symlink_to(f"net:[{net}]")
    for name, index, address in (
        ("tap0", 4, "fe:54:00:00:00:01"),
        ("macvtap0", 9, "52:54:00:00:00:02"),
        ("eth0", 2, ""),
    ):
        (tmp_path / f"sys/class/net/{name}").mkdir(parents=True)
        (tmp_path / f"sys/class/net/{name}/ifindex").write_text(f"{index}\n")
        (tmp_path / f"sys/class/net/{name}/address").write_text(f"{address}\n")
    add_descriptor(tmp_path, 70, 3, "/dev/net/tun", "iff:\ttap0\n")
    add_descriptor(tmp_path, 70, 4, "/dev/net/tun", "iff:\ttap0\n")  # a second queue
    add_descriptor(tmp_path, 70, 5, "/dev/tap9")
    add_descriptor(tmp_path, 70, 6, "/dev/tap77")
    add_descriptor(tmp_path, 70, 7, "/dev/net/tun", "iff:\n")
    add_descriptor(tmp_path, 70, 8, "/dev/net/tun", "iff:\t../../etc\n")
    add_descriptor(tmp_path, 70, 9, "socket:[5]")
    qemu = Process(70, tmp_path)
    nics = {"52:54:00:00:00:01": {"device": "nic0"}, "52:54:00:00:00:02": {"device": "nic1"}}
    macvtap, tap = find_process_interfaces(qemu, nics)
    assert (macvtap.name, macvtap.directions_swapped, macvtap.extra_values) == (
        "macvtap0",
        False,
        {"kind": "macvtap", "device": "nic1"},
    )
    assert (tap.name, tap.directions_swapped, tap.same_netns, tap.extra_values) == (
        "tap0",
        True,
        True,
        {"kind": "tap", "device": "nic0"},
    )
    (tmp_path / "proc/70/ns/net").unlink()
    (tmp_path / "proc/70/ns/net").symlink_to("net:[2]")
    assert [(i.name, i.same_netns, i.extra_values) for i in find_process_interfaces(qemu, nics)] == [
        ("tap0", False, {"kind": "tap"})
    ]
    qemu.close()
