"""The scan of /proc for libvirt's daemons, on a directory that looks like /proc."""

import itertools
import os
import socket
from pathlib import Path

import pytest

from agent.host import libvirt_daemons
from agent.host.libvirt_daemons import (
    FULL_SCAN_SECONDS,
    NEW_PROCESS_SECONDS,
    LibvirtDaemonScanner,
    LibvirtDaemonScanResult,
    QemuPidsByUuid,
    resolve_in_root,
)

UUID = "0f1e2d3c-4b5a-4968-8776-655443322110"
SOCKET = "/run/libvirt/virtqemud-sock"


class FakeProc:
    """A directory that looks like /proc. Namespaces are hard links, so that two processes may share one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "proc"
        self._namespaces = folder / "ns"
        self._namespaces.mkdir()
        self._inodes = itertools.count(1000)
        self.add("self", "agent", mounts="host")

    def add(
        self, pid: int | str, name: str, *, mounts: str = "host", pids: str = "host", uid: int = 0, argv: str = ""
    ) -> Path:
        """Add a process; `mounts` and `pids` name its namespaces. Return its directory."""
        directory = self.path / str(pid)
        for part in ("ns", "root", "fd", "net"):
            (directory / part).mkdir(parents=True)
        for kind, namespace in (("mnt", mounts), ("pid", pids)):
            shared = self._namespaces / f"{kind}-{namespace}"
            shared.touch()
            os.link(shared, directory / "ns" / kind)
        (directory / "comm").write_text(f"{name}\n")
        (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in (argv or name).split()))
        (directory / "status").write_text(f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (directory / "uid_map").write_text("         0          0 4294967295\n")
        (directory / "stat").write_text(f"{pid} ({name}) S " + " ".join(["0"] * 18) + f" {pid} 0\n")
        (directory / "environ").write_bytes(b"")
        (directory / "net" / "unix").write_text("Num       RefCount Protocol Flags    Type St Inode Path\n")
        return directory

    def listen(
        self, process: Path, path: str, *, flags: str = "00010000", own: bool = True, below: str = "root"
    ) -> None:
        """Let a process listen on a socket in its container.

        Args:
            process: the process's directory.
            path: the path at which it binds the socket, as it is in the kernel's table.
            flags: the flags in the kernel's table.
            own: whether the process has the socket open, and not another process in its network namespace.
            below: the directory of the process below which the socket exists; empty for the test's own file system.
        """
        bind(Path(f"{process / below}{path}" if below else path))
        inode = next(self._inodes)
        with (process / "net" / "unix").open("a") as table:
            table.write(f"0000000000000000: 00000002 00000000 {flags} 0001 01 {inode} {path}\n")
        if own:
            (process / "fd" / str(inode)).symlink_to(f"socket:[{inode}]")


def bind(path: Path) -> None:
    """Create a socket at a path. It exists after it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.fixture
def proc(folder: Path) -> FakeProc:
    return FakeProc(folder)


def scan(proc: FakeProc) -> LibvirtDaemonScanResult:
    """Return the result of a first scan."""
    return LibvirtDaemonScanner(proc.path, ()).scan_proc(0)


def test_a_daemon_in_a_container_is_reached_through_its_root_directory(proc: FakeProc) -> None:
    pod = proc.add(40, "virtqemud", mounts="pod", pids="pod", uid=107)
    (pod / "environ").write_bytes(b"PATH=/bin\0POD_NAME=virt-launcher-vm1-x2x\0")
    proc.listen(pod, SOCKET)
    (daemon,) = scan(proc).daemons.values()
    assert daemon.connection_uri == f"qemu+unix:///session?socket=/proc/40/root{SOCKET}"
    assert daemon.container == "virt-launcher-vm1-x2x"


def test_a_daemon_of_the_host_keeps_its_address_when_it_restarts(proc: FakeProc, folder: Path) -> None:
    path = f"{folder}/libvirt-sock"
    proc.listen(proc.add(40, "libvirtd"), path, below="")
    scanner = LibvirtDaemonScanner(proc.path)
    (before,) = scanner.scan_proc(0).daemons.values()
    (proc.path / "40").rename(folder / "ended")
    assert scanner.scan_proc(1).daemons == {}
    Path(path).unlink()
    proc.listen(proc.add(41, "libvirtd"), path, below="")
    (after,) = scanner.scan_proc(2).daemons.values()
    assert before.connection_uri == after.connection_uri == f"qemu+unix:///system?socket={path}"
    assert (before.namespace_and_socket, before.container) == (after.namespace_and_socket, "")


def test_only_the_socket_that_a_daemon_has_open_is_its_own(proc: FakeProc) -> None:
    pods = [proc.add(pid, "virtqemud", mounts=f"pod{pid}") for pid in (40, 41)]
    proc.listen(pods[0], "/shared/virtqemud-sock")
    proc.listen(pods[1], "/shared/virtqemud-sock", own=False)
    assert [daemon.pid for daemon in scan(proc).daemons.values()] == [40]


@pytest.mark.parametrize(("path", "flags"), [("/run/libvirt/virtqemud-sock-ro", "00010000"), (SOCKET, "00000000")])
def test_sockets_of_another_name_and_connected_sockets_are_not_used(proc: FakeProc, path: str, flags: str) -> None:
    proc.listen(proc.add(40, "virtqemud", mounts="pod"), path, flags=flags)
    assert scan(proc).daemons == {}


@pytest.mark.parametrize(
    ("uid", "uid_map", "kind"),
    [
        (0, "0 0 4294967295", "system"),
        (107, "0 0 4294967295", "session"),
        (100000, "0 100000 65536", "system"),
        (100107, "0 100000 65536", "session"),
    ],
)
def test_the_user_in_the_containers_namespace_decides_system_or_session(
    proc: FakeProc, uid: int, uid_map: str, kind: str
) -> None:
    pod = proc.add(40, "virtqemud", mounts="pod", uid=uid)
    (pod / "uid_map").write_text(uid_map + "\n")
    proc.listen(pod, SOCKET)
    (daemon,) = scan(proc).daemons.values()
    assert daemon.connection_uri.startswith(f"qemu+unix:///{kind}?")


def test_a_socket_behind_the_containers_own_links_is_found_inside_the_container(proc: FakeProc) -> None:
    pod = proc.add(40, "virtqemud", mounts="pod")
    (pod / "root" / "var").mkdir()
    (pod / "root" / "run").mkdir()
    (pod / "root" / "var" / "run").symlink_to("/run")  # an absolute link leads the agent to its own /run
    bind(pod / "root" / "run" / "libvirt" / "virtqemud-sock")
    (pod / "net" / "unix").write_text(f"x\n0: 2 0 00010000 0001 01 7 /var{SOCKET}\n")
    (pod / "fd" / "7").symlink_to("socket:[7]")
    (daemon,) = scan(proc).daemons.values()
    assert daemon.socket == SOCKET


@pytest.mark.parametrize(
    ("links", "path", "resolved"),
    [
        ({"a": "/etc"}, "/a/b", "/etc/b"),
        ({"a": "../../../etc"}, "/a/b", "/etc/b"),
        ({"etc/c": "b"}, "/etc/c", "/etc/b"),
        ({"a": "a"}, "/a", None),
        ({}, "/etc/missing", None),
        ({}, "/../../etc/b", "/etc/b"),
    ],
)
def test_links_of_a_container_never_lead_out_of_it(
    folder: Path, links: dict[str, str], path: str, resolved: str | None
) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "b").touch()
    for name, target in links.items():
        (folder / name).symlink_to(target)
    assert resolve_in_root(str(folder), path) == resolved


def test_a_process_that_starts_another_program_is_recognised_by_its_later_name(proc: FakeProc) -> None:
    pod = proc.add(40, "bash", mounts="pod")
    proc.listen(pod, SOCKET)
    scanner = LibvirtDaemonScanner(proc.path)
    assert scanner.scan_proc(0).daemons == {}
    (pod / "comm").write_text("virtqemud\n")
    assert len(scanner.scan_proc(NEW_PROCESS_SECONDS - 1).daemons) == 1
    (pod / "comm").write_text("bash\n")
    assert len(scanner.scan_proc(NEW_PROCESS_SECONDS + 1).daemons) == 1, (
        "an old process is read again by a full scan only"
    )
    assert scanner.scan_proc(FULL_SCAN_SECONDS + 1).daemons == {}


def test_a_daemon_is_reported_when_its_socket_exists(proc: FakeProc) -> None:
    pod = proc.add(40, "virtqemud", mounts="pod")
    scanner = LibvirtDaemonScanner(proc.path)
    assert scanner.scan_proc(0).daemons == {}
    proc.listen(pod, SOCKET)
    assert len(scanner.scan_proc(FULL_SCAN_SECONDS - 1).daemons) == 1


def test_the_child_that_a_daemon_forks_is_no_second_daemon(proc: FakeProc) -> None:
    for pid in (40, 41):
        proc.listen(proc.add(pid, "virtqemud", mounts="pod"), SOCKET)
    (daemon,) = scan(proc).daemons.values()
    assert daemon.pid == 40


def test_qemus_are_found_by_their_pid_namespace_and_uuid(proc: FakeProc) -> None:
    proc.add(50, "qemu-kvm", pids="pod", argv=f"/usr/libexec/qemu-kvm -name guest=a -uuid {UUID.upper()} -m 1")
    proc.add(51, "qemu-system-x86", argv=f"/usr/bin/qemu-system-x86_64 -uuid {UUID}")
    proc.add(52, "qemu-img", argv=f"/usr/bin/qemu-img -uuid {UUID}")
    qemus = scan(proc).qemus
    assert sorted(qemus.values()) == [50, 51]
    assert {uuid for _, uuid in qemus} == {UUID}


def test_a_daemon_with_unreadable_files_is_counted_unless_the_host_has_its_socket(proc: FakeProc, folder: Path) -> None:
    (proc.add(40, "virtqemud", mounts="pod", uid=1000) / "ns" / "mnt").unlink()
    result = LibvirtDaemonScanner(proc.path, (f"{folder}/none/{{name}}",)).scan_proc(0)
    assert (result.unreadable_daemons, result.daemons) == (1, {})
    bind(folder / "1000" / "virtqemud-sock")
    result = LibvirtDaemonScanner(proc.path, (f"{folder}/{{uid}}/{{name}}",)).scan_proc(0)
    assert [daemon.connection_uri for daemon in result.daemons.values()] == [
        f"qemu+unix:///session?socket={folder}/1000/virtqemud-sock"
    ]
    assert result.unreadable_daemons == 0


def test_daemons_above_the_limit_are_counted(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_daemons, "MAX_DAEMONS", 2)
    for pid in (40, 41, 42):
        proc.listen(proc.add(pid, "virtqemud", mounts=f"pod{pid}"), SOCKET)
    result = scan(proc)
    assert (len(result.daemons), result.ignored_daemons) == (2, 1)


@pytest.mark.parametrize("text", ["", "0\n", "a b c\n", "Uid:\n"])
def test_unreadable_files_of_a_process_make_no_daemon(proc: FakeProc, text: str) -> None:
    pod = proc.add(40, "virtqemud", mounts="pod")
    proc.listen(pod, SOCKET)
    (pod / "status").write_text(text)
    assert scan(proc).daemons == {}


def write_qemu(proc: Path, pid: int, uuid: str, name: str = "qemu-system-x86") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cmdline").write_bytes(
        b"\0".join([b"/usr/bin/qemu-system-x86_64", b"-uuid", uuid.encode(), b""])
    )


def test_a_qemu_is_found_by_its_uuid_if_only_one_has_it(tmp_path: Path) -> None:
    first, second = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    write_qemu(tmp_path, 70, first)
    write_qemu(tmp_path, 71, second)
    write_qemu(tmp_path, 72, second)
    write_qemu(tmp_path, 73, "33333333-3333-4333-8333-333333333333", name="bash")
    index = QemuPidsByUuid(tmp_path)
    assert index.pid_of_uuid(first.upper()) == 70
    assert index.pid_of_uuid(second) is None, "a source and a destination of a migration"
    assert index.pid_of_uuid("33333333-3333-4333-8333-333333333333") is None


def test_a_qemu_that_started_after_the_last_search_is_found(proc: FakeProc) -> None:
    index = QemuPidsByUuid(proc.path)
    assert index.pid_of_uuid(UUID) is None
    proc.add(70, "qemu-system-x86", argv=f"/usr/bin/qemu-system-x86_64 -uuid {UUID}")
    assert index.pid_of_uuid(UUID) == 70
