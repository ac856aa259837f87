"""Fake hosts for tests of doctor: the QEMU command lines of several VM managers in a fake /proc."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agent.cli.doctor.inspection import inspect_host
from agent.cli.doctor.model import HostToInspect, VmReport
from agent.config.model import Config
from agent.host.socket_permissions import User
from agent.host.unix_and_tcp_sockets import ESTABLISHED, SocketTableEntry

LISTENS: Final = 10
ROOT: Final = User("root", 0, frozenset({0}))

PROXMOX: Final = """\
/usr/bin/kvm -id 104 -name web,debug-threads=on -no-shutdown
-chardev socket,id=qmp,path=/var/run/qemu-server/104.qmp,server=on,wait=off -mon chardev=qmp,mode=control
-chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,{reconnect} -mon chardev=qmp-event,mode=control
-pidfile /var/run/qemu-server/104.pid -daemonize -smbios type=1,uuid=464448a0-979e-4af4-9cb6-bf4755594c7b
-smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults -vnc unix:/var/run/qemu-server/104.vnc,password=on -m 2048
-drive file=/dev/pve/vm-104-disk-0,if=none,id=drive-scsi0,format=raw,cache=none"""

GANETI: Final = """\
/usr/bin/kvm -enable-kvm -name db.example.com,debug-threads=on -m 1024 -smp 1 -pidfile /var/run/ganeti/kvm-hypervisor/pid/db.example.com
-device virtio-balloon -daemonize -machine pc -monitor unix:/var/run/ganeti/kvm-hypervisor/ctrl/db.example.com.monitor,server,nowait
-serial none -uuid 1dfa7fa0-8d5e-4a8b-8a06-8c5e6f4f6a01
-qmp unix:/var/run/ganeti/kvm-hypervisor/ctrl/db.example.com.qmp,server,nowait
-qmp unix:/var/run/ganeti/kvm-hypervisor/ctrl/db.example.com.kvmd,server,nowait -S"""

INCUS: Final = """\
/opt/incus/bin/qemu-system-x86_64 -S -name v1 -uuid 8a3c2f1e-7d65-4c0b-9a49-0f8d6f1f2b3c -daemonize -cpu host,hv_passthrough
-nographic -serial chardev:console -qmp chardev:monitor -nodefaults -no-user-config
-readconfig /run/incus/v1/qemu.conf -pidfile /run/incus/v1/qemu.pid -D /var/log/incus/v1/qemu.log
-smbios type=2,manufacturer=LinuxContainers,product=Incus -run-with user=incus"""

INCUS_CONF: Final = """\
# Machine
[machine]
accel = "kvm"
graphics = "off"
type = "q35"
usb = "off"

# Qemu control
[chardev "monitor"]
backend = "socket"
path = "/proc/self/fd/3/qemu.monitor"
server = "on"
wait = "off"

# Console
[chardev "console"]
backend = "ringbuf"
size = "1048576"
"""
"""Descriptor 3 is the directory /run/incus/v1, because the path of a Unix socket has at most 107 characters."""

LIBVIRT: Final = """\
/usr/{binary} -name guest={name},debug-threads=on -S
-object {{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{folder}/domain-3-{name}/master-key.aes"}}
-machine pc-q35-7.2,usb=off -uuid {uuid} {smbios} -no-user-config -nodefaults
-chardev socket,id=charmonitor,fd=33,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc"""


class FakeProcHost:
    """A fake /proc and a fake socket table."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.table: dict[int, SocketTableEntry] = {}
        self._inodes = iter(range(1, 1000))

    def add_process(self, pid: int, line: str, uid: int = 0, fds: Mapping[int, int] | None = None) -> Path:
        """Add a process and return its directory."""
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "cmdline").write_bytes("\0".join([*shlex.split(line, posix="{" not in line), ""]).encode())
        (folder / "status").write_text(f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t0\t0\t0\t0\nGroups:\t \n")
        for fd, inode in (fds or {}).items():
            (folder / "fd" / str(fd)).symlink_to(f"socket:[{inode}]")
        return folder

    def open_directory(self, pid: int, fd: int, path: str) -> None:
        """Let a process have a directory open."""
        (self.proc / str(pid) / "fd" / str(fd)).symlink_to(path)

    def add_listener(self, path: str) -> int:
        """Add a listening socket and return its inode."""
        inode = next(self._inodes)
        self.table[inode] = SocketTableEntry(LISTENS, path)
        return inode

    def add_connection(self, path: str) -> tuple[int, int]:
        """Add a connection to a path and return the inodes of the server's and of the client's end."""
        server, client = next(self._inodes), next(self._inodes)
        self.table |= {
            server: SocketTableEntry(ESTABLISHED, path, client),
            client: SocketTableEntry(ESTABLISHED, "", server),
        }
        return server, client

    def add_libvirt(self, pid: int, manager: int, **values: str) -> None:
        """Add a libvirt domain and, unless its pid is 0, its libvirtd. The values fill in LIBVIRT."""
        path = f"{values['folder']}/domain-3-{values['name']}/monitor.sock"
        server, client = self.add_connection(path)
        self.add_process(pid, LIBVIRT.format(**values), uid=1000, fds={33: self.add_listener(path), 40: server})
        if manager:
            self.add_process(manager, "/usr/sbin/libvirtd --timeout 120", fds={17: client})

    def inspect(
        self, monitors: Sequence[Mapping[str, object]] = (), pattern: str = "*", *, is_root: bool = True
    ) -> list[VmReport]:
        """Return doctor's reports for this host.

        Args:
            monitors: entries of the config; without any, there is no config.
            pattern: the VMs.
            is_root: whether doctor runs as root.
        """
        config = Config.model_validate({"monitors": monitors}) if monitors else None
        return inspect_host(HostToInspect(ROOT, config, self.proc.parent, self.proc, self.table, is_root), pattern)
