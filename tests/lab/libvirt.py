"""A real libvirtd for tests. It has directories of its own and does not affect another libvirtd on this machine."""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from agent.cli.demo.images import MissingDependencyError, build_boot_sector, cache_directory
from tests.lab.libvirt_releases import find_libvirtd
from tests.lab.machine import INSTALL_HINT, free_port, require
from tests.lab.waiting import until

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 300.0

_FOLDERS: Final = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}
_CACHE: Final = "/var/cache/libvirt"
"""libvirtd's cache of QEMU's capabilities. It is kept between runs, because probing the capabilities takes ten seconds."""

_DATA: Final = "/usr/share/libvirt"
"""libvirtd's models of CPUs and schemas of XML."""

_DAEMON: Final = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0700"
host_uuid = "{host}"
log_outputs = "3:file:{folder}/libvirtd.log"
"""

_QEMU: Final = """\
user = "libvirt-qemu"
group = "libvirt-qemu"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""

_USER: Final = 64055
"""Debian's user libvirt-qemu. libvirtd does not start without it, and only Debian's package of the service creates it."""

_DOMAIN: Final = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file'>
      <driver name='qemu' type='raw'/><source file='{boot}'/><target dev='vda' bus='virtio'/><readonly/><boot order='1'/>
    </disk>
    <disk type='file'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vdb' bus='virtio'/><boot order='2'/>
    </disk>
    <interface type='{interface}'><model type='virtio'/></interface>
    <controller type='usb' model='none'/>
    <memballoon model='virtio'/>
  </devices>
  {extra}
</domain>
"""


MONITOR: Final = """<qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{path},server=on,wait=off'/>
  </qemu:commandline>"""
"""XML that gives a domain a QMP monitor beside libvirt's own."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A libvirt domain. Its guest writes continuously to the second disk: `vdb` in libvirt, `virtio-disk1` in QEMU."""

    name: str
    uuid: str
    disk: Path
    xml: Path


@dataclass(slots=True)
class Libvirtd:
    """A libvirtd process with its domains. As an async context manager, both run while the `with` block runs.

    Attributes:
        folder: the directory for all files that libvirtd writes.
        domains: the domains that were created.
        release: the Debian release whose libvirtd runs; by default, the one that this machine has installed.
    """

    folder: Path
    release: str = ""
    domains: list[Domain] = field(default_factory=list, init=False)
    _shell: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def _host(self) -> uuid.UUID:
        """The UUID that libvirtd reports for its host. It is the same at each start."""
        return uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder))

    @property
    def container(self) -> str:
        """The name by which the agent's discovery of all libvirts knows this libvirtd's namespaces."""
        return f"virt-launcher-{self._host}"

    @property
    def uri(self) -> str:
        """The libvirt URI of this libvirtd."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    @property
    def read_only_uri(self) -> str:
        """The libvirt URI of the read-only socket, which every user may use."""
        return f"{self.uri}-ro"

    async def start(self) -> None:
        """Start libvirtd, and return when it answers. It takes over the domains of its previous run.

        Raises:
            MissingDependencyError: libvirtd is not installed, or this user is not root.
            AssertionError: libvirtd did not start. The text has its log.
        """
        for program, package in (
            ("libvirtd", "libvirt-daemon"),
            ("virsh", "libvirt-clients"),
            ("unshare", "util-linux"),
        ):
            require(program, package)
        if os.geteuid() != 0:
            raise MissingDependencyError(
                f"libvirtd with its own directories needs root: {INSTALL_HINT}, and run the tests as root"
            )
        self._prepare()
        if self._shell is None:
            await self._open()
        daemon = find_libvirtd(self.release) / "libvirtd" if self.release else Path("libvirtd")
        await self._do(
            f"{daemon} -f {self.folder}/libvirtd.conf -p {self.folder}/libvirtd.pid >>{self.folder}/out 2>&1 & pid=$!"
        )

        async def started_or_ended() -> bool:
            return not await self.runs() or (await self._virsh("list"))[0] == 0

        await until(started_or_ended, _START_SECONDS)
        assert await self.runs(), f"libvirtd did not start: {self.log}"

    async def _open(self) -> None:
        """Start a shell in its own namespaces. It becomes the parent of libvirtd and the domains, which end with it and with this process.

        The shell is the init of its PID namespace and reaps ended processes at once. libvirtd waits for that, and some inits are slow.
        """
        mounts = self._prepare()
        script = " && ".join([*mounts, 'while read -r line; do eval "$line"; echo "$?"; done'])
        self._shell = await asyncio.create_subprocess_exec(
            *(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ),
            *("bash", "-c", script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "POD_NAME": self.container},
        )

    async def run(self, line: str) -> str:
        """Run a shell command in libvirtd's namespaces, and return its output."""
        output = self.folder / "output"
        await self._do(f"{{ {line}; }} >{output} 2>&1")
        return output.read_text()

    async def _do(self, line: str) -> bool:
        """Run a line in the shell, and return whether it succeeded."""
        assert self._shell is not None
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(_STOP_SECONDS):
            return await self._shell.stdout.readline() == b"0\n"

    async def runs(self) -> bool:
        """Return whether libvirtd runs."""
        return await self._do("kill -0 $pid 2>/dev/null")

    def _prepare(self) -> list[str]:
        """Create libvirtd's directories and files. Return the shell commands that mount these at the system's paths."""
        for name in _FOLDERS:
            Path(self.folder, name).mkdir(exist_ok=True)
        capabilities = cache_directory() / f"libvirt{self.release and f'-capabilities-{self.release}'}"
        capabilities.mkdir(parents=True, exist_ok=True)
        for path in (*_FOLDERS.values(), _CACHE):
            Path(path).mkdir(parents=True, exist_ok=True)  # a mount point has to exist
        self.folder.chmod(0o755)
        Path(self.folder, "libvirtd.conf").write_text(_DAEMON.format(folder=self.folder, host=self._host))
        Path(self.folder, "etc", "qemu.conf").write_text(_QEMU)
        for name, line in (
            ("passwd", f"libvirt-qemu:x:{_USER}:{_USER}::/var/lib/libvirt:/bin/false\n"),
            ("group", f"libvirt-qemu:x:{_USER}:\nkvm:x:{_USER + 1}:\n"),
        ):
            existing = Path("/etc", name).read_text()
            missing = [entry for entry in line.splitlines(keepends=True) if entry.split(":")[0] + ":" not in existing]
            Path(self.folder, name).write_text(existing + "".join(missing))
        mounts = [f"mount --bind {self.folder}/{name} {path}" for name, path in _FOLDERS.items()]
        mounts += [f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("passwd", "group")]
        mounts += [f"mount --bind {capabilities} {_CACHE}"]
        if self.release:
            mounts += [f"mount --bind {find_libvirtd(self.release)}/root{_DATA} {_DATA}"]
        mounts += [f"hostname host-{self._host.hex[:12]}"]  # a domain can only migrate to a host with another name
        if Path("/dev/kvm").exists():
            # If root may use KVM and QEMU's user may not, libvirtd probes QEMU's capabilities again at each start, for ten seconds.
            mounts += [f"mkdir -p {self.folder}/dev", f"mount -t tmpfs tmpfs {self.folder}/dev"]
            mounts += [f"mknod -m 666 {self.folder}/dev/kvm c 10 232", f"mount --bind {self.folder}/dev/kvm /dev/kvm"]
        return mounts

    async def stop(self) -> None:
        """Stop libvirtd with SIGTERM. The domains keep running."""
        await self._do("kill $pid; wait $pid; true")

    async def kill(self) -> None:
        """Kill libvirtd with SIGKILL. The domains keep running."""
        await self._do("kill -KILL $pid; wait $pid; true")

    async def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to libvirtd. After SIGSTOP it hangs until SIGCONT."""
        assert await self._do(f"kill -{number} $pid")

    @property
    def log(self) -> str:
        """The text in libvirtd's log."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("libvirtd.log"))

    async def domain(
        self,
        name: str,
        *,
        vcpus: int = 1,
        interface: str = "user",
        extra: str = "",
        identity: str | None = None,
        paused: bool = False,
        pause_us: int = 200_000,
    ) -> Domain:
        """Create a domain and start it.

        Args:
            name: the domain's name.
            vcpus: the number of vCPUs.
            interface: the type of the network interface in libvirt's XML. With `ethernet`, libvirt creates and removes a tap.
            extra: additional XML.
            identity: the domain's UUID; None for a new one.
            paused: whether the guest stays paused, so that it uses no CPU.
            pause_us: time between two writes of the guest in microseconds.
        """
        boot, disk, xml = (self.folder / f"{name}{end}" for end in ("-boot.raw", ".qcow2", ".xml"))
        boot.write_bytes(build_boot_sector(sectors_per_write=64, pause_us=pause_us).ljust(1 << 20, b"\0"))
        process = await asyncio.create_subprocess_exec("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
        assert await process.wait() == 0
        domain = Domain(name, identity or str(uuid.uuid4()), disk, xml)
        values = {"name": name, "uuid": domain.uuid, "boot": boot, "disk": disk, "vcpus": vcpus}
        xml.write_text(_DOMAIN.format(**values, interface=interface, extra=extra))
        await self.virsh("create", *(["--paused"] if paused else []), xml)
        self.domains.append(domain)
        return domain

    async def destroy_since(self, count: int) -> None:
        """Destroy the domains after the first `count`, because their guests write all the time. Domains that have ended are skipped."""
        for domain in self.domains[count:]:
            await self._virsh("destroy", domain.name)
        del self.domains[count:]

    async def send_domain(self, domain: Domain, number: signal.Signals) -> None:
        """Send a signal to the QEMU process of a domain."""
        assert await self._do(f"kill -{number} $(cat /run/libvirt/qemu/{domain.name}.pid)")

    async def stats(self, domain: Domain) -> Mapping[str, str]:
        """Return the output of `virsh domstats` for a running domain.

        libvirt leaves out the figures of the disks while another client queries QEMU. So ask again until it returns them.
        """
        stats: dict[str, str] = {}

        async def has_disks() -> bool:
            lines = (await self.virsh("domstats", "--nowait", domain.name)).splitlines()
            stats.clear()
            stats.update(dict(line.strip().split("=", 1) for line in lines if "=" in line))
            return "block.0.rd.reqs" in stats

        await until(has_disks)
        return stats

    def taints(self, domain: Domain) -> list[str]:
        """Return a domain's taints in libvirtd's state file. The file can be read while libvirtd is down."""
        text = Path(self.folder, "run", "qemu", f"{domain.name}.xml").read_text()
        return [line.split("'")[1] for line in text.splitlines() if "<taint flag=" in line]

    async def virsh(self, *arguments: Any) -> str:
        """Run virsh and return its output.

        Raises:
            AssertionError: virsh failed. The text is its error output.
        """
        status, out, error = await self._virsh(*arguments)
        assert status == 0, error
        return out

    async def _virsh(self, *arguments: Any) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *("virsh", "-q", "-c", self.uri, *map(str, arguments)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        out, error = await process.communicate()
        return process.returncode, out.decode(), error.decode()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """End the shell, and thereby all processes that it started."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.kill()
            await shell.wait()


@contextlib.asynccontextmanager
async def run_exporter(libvirtd: Libvirtd) -> AsyncIterator[tuple[str, int]]:
    """Run Debian's prometheus-libvirt-exporter on a libvirtd while the `with` block runs. Yield the exporter's address and pid."""
    require("prometheus-libvirt-exporter", "prometheus-libvirt-exporter")
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "prometheus-libvirt-exporter"),
        *(f"--web.listen-address={address}", f"--libvirt.uri={libvirtd.uri}"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield address, process.pid
    finally:
        process.kill()
        await process.wait()
