"""The process behind a monitor: found by what the kernel and QEMU say, and never mistaken."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import Process, UnknownProcessError, find_process, interfaces_of
from agent.host.types import FileReply, FileRequest

STATUS = "Name:\t{name}\nUmask:\t0022\nTgid:\t{tgid}\nPid:\t{tid}\nNSpid:\t{ids}\nThreads:\t2\n"
STAT = "{tid} (x) S " + "0 " * 18 + "500 0 0 0\n"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"\n")  # one that answers has loaded its libraries, whose files it holds open meanwhile
        running.stdout.read(1)
        yield running
        running.kill()


def thread(root: Path, pid: int, tid: int, *, name: str = "qemu-system-x86", ids: str = "") -> None:
    """Make the files of a thread as the kernel has them: in its process' folder and, unlisted, in one of its own."""
    for folder in (root / f"proc/{tid}", root / f"proc/{pid}/task/{tid}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "status").write_text(STATUS.format(name=name, tgid=pid, tid=tid, ids=ids or tid))
        (folder / "stat").write_text(STAT.format(tid=tid))


def process(root: Path, pid: int, *tids: int, name: str = "qemu-system-x86") -> None:
    for tid in (pid, *tids):
        thread(root, pid, tid, name=name)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def why(opener: int | None, threads: list[int], root: Path) -> str:
    with pytest.raises(UnknownProcessError) as caught:
        find_process(opener, threads, root)
    return str(caught.value)


# --- Which process ---


def test_who_opened_the_socket_and_has_the_threads_is_it(tmp_path: Path) -> None:
    process(tmp_path, 70, 71, 72, name="renamed")
    found = find_process(70, [71, 72], tmp_path)
    assert (found.process.pid, found.threads) == (70, {71: 71, 72: 72})
    found.process.close()


def test_a_manager_that_opened_the_socket_for_its_qemu_is_not_taken_for_it(tmp_path: Path) -> None:
    process(tmp_path, 50, name="libvirtd")
    process(tmp_path, 70, 71, name="qemu-kvm")
    found = find_process(50, [71], tmp_path)
    assert found.process.pid == 70
    found.process.close()


@pytest.mark.parametrize("threads", [[71], [12, 71]])
def test_threads_that_another_process_happens_to_have_do_not_make_it_a_qemu(tmp_path: Path, threads: list[int]) -> None:
    process(tmp_path, 50, name="libvirtd")
    process(tmp_path, 70, 71, name="postgres")
    process(tmp_path, 10, 12)
    assert "process 50 opened" in why(50, threads, tmp_path)


def test_a_qemu_that_has_not_all_of_the_threads_is_another(tmp_path: Path) -> None:
    process(tmp_path, 50, name="libvirtd")
    process(tmp_path, 70, 71)
    assert "recognised" in why(50, [71, 72], tmp_path)


def test_threads_of_a_pid_namespace_are_known_by_what_it_calls_them(tmp_path: Path) -> None:
    for tid, inner in ((70, 1), (71, 5), (72, 6)):
        thread(tmp_path, 70, tid, ids=f"{tid}\t{inner}")
    process(tmp_path, 5, 6)  # another, whose threads have those numbers here
    found = find_process(70, [5, 6], tmp_path)
    assert (found.process.pid, found.threads) == (70, {5: 71, 6: 72})
    found.process.close()
    process(tmp_path, 50, name="launcher")
    thread(tmp_path, 5, 5, ids="5\t1")
    assert "recognised" in why(50, [5, 6], tmp_path)  # what has them is itself in a namespace, and counts otherwise


def test_a_vm_without_vcpus_is_known_only_where_who_opened_its_socket_looks_like_qemu(tmp_path: Path) -> None:
    process(tmp_path, 50, name="libvirtd")
    process(tmp_path, 70)
    assert "recognised" in why(50, [], tmp_path)
    found = find_process(70, [], tmp_path)
    assert found.process.pid == 70
    found.process.close()


def test_what_cannot_be_known_says_why(tmp_path: Path) -> None:
    assert "no Unix socket" in why(None, [71], tmp_path)
    assert "process 99" in why(99, [71], tmp_path)


# --- Reading it ---


def test_a_processs_files_are_read_as_they_are_and_what_cannot_be_is_none(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    files = [
        FileRequest("stat"),
        FileRequest("no/such"),
        FileRequest("/sys/class/net/lo/ifindex"),
        FileRequest("/no/such"),
        FileRequest("fd", entries=True),
    ]
    stat, *others = process.read_files(files)
    assert (stat.text or "").startswith(f"{child.pid} (cat) ")
    assert others == [
        FileReply(files[1], None),
        FileReply(files[2], "1\n"),
        FileReply(files[3], None),
        FileReply(files[4], str(descriptors(child.pid))),
    ]
    process.close()
    assert process.read("stat") is None


def test_once_a_process_has_ended_nothing_is_read_of_it_whoever_has_its_pid(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    child.kill()
    child.wait()
    assert [text.text for text in process.read_files([FileRequest("stat"), FileRequest("fd", entries=True)])] == [
        None,
        None,
    ]
    assert (process.names("task"), process.link("ns/net")) == ([], None)
    process.close()


def test_a_file_without_end_is_read_up_to_a_bound() -> None:
    process = Process(os.getpid())
    text = process.read("/dev/zero")
    assert text is not None
    assert len(text) == 64 << 10
    process.close()


def test_all_of_a_file_that_the_kernel_gives_in_parts_is_read() -> None:
    process = Process(os.getpid())
    assert process.read("maps") is not None
    assert len(process.read("/proc/kallsyms") or "") == 64 << 10
    process.close()


def test_no_descriptor_is_left_open(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = descriptors(os.getpid())
    process = Process(child.pid)
    process.read_files([FileRequest("stat"), FileRequest("no/such"), FileRequest("fd", entries=True)])
    interfaces_of(process, {})
    process.close()
    why(child.pid, [1], Path("/"))
    why(child.pid, [], Path("/"))
    why(child.pid, [1], tmp_path)
    assert descriptors(os.getpid()) == before


def test_the_cgroup_is_the_nearest_above_that_counts_memory(tmp_path: Path) -> None:
    process(tmp_path, 70, 71)
    scope = "/machine.slice/machine-qemu.scope/libvirt"
    (tmp_path / "proc/70/cgroup").write_text(f"9:memory:/x\n0::{scope}/emulator\n")
    (tmp_path / f"sys/fs/cgroup{scope}/emulator").mkdir(parents=True)
    (tmp_path / f"sys/fs/cgroup{scope}/memory.current").write_text("5\n")
    found = find_process(70, [71], tmp_path)
    assert (found.cgroup, found.cgroup_name) == (f"/sys/fs/cgroup{scope}", f"{scope}/emulator")
    found.process.close()
    for elsewhere in ("0::/\n", "9:memory:/x\n", "", "0::/../../etc\n"):
        (tmp_path / "proc/70/cgroup").write_text(elsewhere)
        found = find_process(70, [71], tmp_path)
        assert found.cgroup is None
        found.process.close()


# --- Its network interfaces ---


def descriptor(root: Path, pid: int, number: int, target: str, fdinfo: str = "") -> None:
    for name in ("fd", "fdinfo"):
        (root / f"proc/{pid}/{name}").mkdir(exist_ok=True)
    (root / f"proc/{pid}/fd/{number}").symlink_to(target)
    (root / f"proc/{pid}/fdinfo/{number}").write_text(f"pos:\t0\nflags:\t0104002\n{fdinfo}")


def test_taps_and_macvtaps_are_known_by_their_descriptors_and_linked_to_cards_by_their_addresses(
    tmp_path: Path,
) -> None:
    process(tmp_path, 70)
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
    descriptor(tmp_path, 70, 3, "/dev/net/tun", "iff:\ttap0\n")
    descriptor(tmp_path, 70, 4, "/dev/net/tun", "iff:\ttap0\n")  # a second queue
    descriptor(tmp_path, 70, 5, "/dev/tap9")
    descriptor(tmp_path, 70, 6, "/dev/tap77")
    descriptor(tmp_path, 70, 7, "/dev/net/tun", "iff:\n")
    descriptor(tmp_path, 70, 8, "/dev/net/tun", "iff:\t../../etc\n")
    descriptor(tmp_path, 70, 9, "socket:[5]")
    found = Process(70, tmp_path)
    cards = {"52:54:00:00:00:01": {"device": "nic0"}, "52:54:00:00:00:02": {"device": "nic1"}}
    macvtap, tap = interfaces_of(found, cards)
    assert (macvtap.name, macvtap.directions_swapped, macvtap.values) == (
        "macvtap0",
        False,
        {"kind": "macvtap", "device": "nic1"},
    )
    assert (tap.name, tap.directions_swapped, tap.same_netns, tap.values) == (
        "tap0",
        True,
        True,
        {"kind": "tap", "device": "nic0"},
    )
    (tmp_path / "proc/70/ns/net").unlink()
    (tmp_path / "proc/70/ns/net").symlink_to("net:[2]")
    assert [(i.name, i.same_netns, i.values) for i in interfaces_of(found, cards)] == [("tap0", False, {"kind": "tap"})]
    found.close()
