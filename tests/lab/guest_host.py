"""A guest as a host: a Debian kernel in QEMU that runs this machine's programs, for what this machine's own kernel or hardware lacks.

The guest has cgroups of version 2, quotas of XFS, an IOMMU, and a network card with virtual functions (QEMU's `igb`).
Its root file system is this machine's, shared over 9p without permission to write; what the guest writes is in its memory. A shared
directory takes its results. The guest runs under TCG, so it is ten to thirty times slower than this machine, and a QEMU in it slower still.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, run_program
from tests.lab.kernel_modules import module_content, module_files
from tests.lab.qemus import find_qemu

OUT: Final = "/mnt/out"
"""The shared directory in the guest."""

_MODULES: Final = (
    *("9pnet_virtio", "9p", "overlay", "loop", "crc32c_generic", "xfs"),
    *("igb", "igbvf", "vfio-pci", "vfio_iommu_type1"),
)
_INIT: Final = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do
    insmod /modules/$module
done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $options,ro,cache=loose root /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work overlay /new || poweroff -f
for name in proc:proc sysfs:sys devtmpfs:dev tmpfs:tmp tmpfs:run cgroup2:sys/fs/cgroup; do
    mount -t ${{name%%:*}} ${{name%%:*}} /new/${{name#*:}}
done
mkdir -p /new/dev/shm /new{OUT}
mount -t tmpfs tmpfs /new/dev/shm
mount -t 9p -o $options out /new{OUT}
exec switch_root /new /bin/bash {OUT}/init
"""


@dataclass(frozen=True, slots=True)
class GuestHost:
    """A guest that runs one script.

    Attributes:
        kernel: directory of the unpacked kernel package.
        out: the directory that the guest can write to.
        scratch: an existing directory for the guest's files.
    """

    kernel: Path
    out: Path
    scratch: Path

    def run(self, script: str, seconds: float) -> str:
        """Run a script of bash as root, and return the console's output. The script's end ends the guest. Blocks.

        Raises:
            MissingDependencyError: the QEMU of Debian trixie was not fetched, or a program is missing.
            TimeoutError: the script did not end within `seconds`. The message has the end of the console's output.
        """
        binary = find_qemu("trixie").binary  # `igb` needs QEMU 8.0
        (self.out / "init").write_text(f"{script}\npoweroff -f\nsleep 60\n")
        console, initramfs = self.scratch / "console", self.scratch / "initramfs"
        initramfs.write_bytes(self._initramfs())
        kernel = next(path for path in self.kernel.rglob("vmlinuz*") if path.is_file())
        command = [binary, "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "2048"]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}"]
        command += ["-kernel", os.fspath(kernel), "-initrd", os.fspath(initramfs)]
        command += ["-append", "console=ttyS0 quiet no_timer_check intel_iommu=on iommu=pt"]
        command += ["-device", "intel-iommu,intremap=on"]
        for tag, path, options in (("root", "/", ",readonly=on,multidevs=remap"), ("out", os.fspath(self.out), "")):
            command += ["-fsdev", f"local,id={tag},path={path},security_model=none{options}"]
            command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        command += ["-device", "pcie-root-port,id=rp,slot=1", "-netdev", "user,id=net,restrict=on"]
        command += ["-device", "igb,bus=rp,netdev=net,mac=52:54:00:aa:00:01"]
        try:
            subprocess.run(command, check=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            text = console.read_text(errors="replace")
            raise TimeoutError(f"the guest did not end within {seconds:g} s: {text[-4000:]}") from None
        return console.read_text(errors="replace").replace("\r\n", "\n")

    def _initramfs(self) -> bytes:
        root = self.scratch / "initramfs-root"
        for name in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "new"):
            (root / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        if busybox is None:
            raise MissingDependencyError("busybox is missing: install the package busybox-static")
        shutil.copy(busybox, root / "bin/busybox")
        order = []
        for path in module_files(self.kernel, _MODULES):
            name = path.name.partition(".")[0] + ".ko"
            (root / "modules" / name).write_bytes(module_content(path))
            order.append(name)
        (root / "modules/order").write_text("\n".join(order))
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        listing = "\n".join(names).encode()
        return run_program("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=root, stdin=listing)


def build_module(unpacked: Path, source: str, name: str, scratch: Path) -> Path:
    """Build a kernel module with unpacked headers and their compiler, and return its file. Needs root. Blocks.

    Args:
        unpacked: directory of the unpacked packages linux-headers-amd64 and what it depends on.
        source: the module's C code.
        name: the module's name.
        scratch: an existing directory for the build.
    """
    folder = scratch / name
    folder.mkdir()
    (folder / f"{name}.c").write_text(source)
    (folder / "Makefile").write_text(f"obj-m := {name}.o\n")
    headers = next(path for path in (unpacked / "usr/src").glob("linux-headers-*") if (path / ".config").exists())
    # The headers contain absolute paths, so they have to be at their place.
    script = 'mount -t overlay -o "lowerdir=$1/usr:/usr" overlay /usr && exec make -s -C "/usr/src/$2" "M=$3" modules'
    _run_quietly("unshare", "--mount", "bash", "-c", script, "build", unpacked, headers.name, folder)
    return folder / f"{name}.ko"


def _run_quietly(*command: str | Path) -> None:
    words = [os.fspath(word) for word in command]
    try:
        subprocess.run(words, capture_output=True, check=True, timeout=3600)
    except subprocess.CalledProcessError as error:
        raise MissingDependencyError(f"{words[0]} failed: {error.stderr.decode(errors='replace')[-2000:]}") from error
