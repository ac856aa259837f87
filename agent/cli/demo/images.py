"""Builds guest images locally: a boot sector of 512 bytes, and a Linux with busybox.

The guest of `build_boot_sector` only writes to a disk, and runs within a second after QEMU's start. `linux_image` is for guests that need
drivers, for example for balloon statistics, balloon changes and flushes.
"""

import hashlib
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from agent.cli.demo import qemu_ga

SECTOR_BYTES: Final = 512


class MissingDependencyError(Exception):
    """A program, a package or the network is missing. The message names the remedy."""


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """The files of the Linux guest, for QEMU's `-kernel` and `-initrd`.

    The guest takes options on its kernel command line. `WRITE_KIB`: size of one write in KiB, after which the guest flushes.
    `PAUSE_SECONDS`: time between two writes in seconds, as a whole number or a fraction. `SPAN_MIB`: size in MiB of the region at the start
    of /dev/vda to which the guest writes in a loop.
    """

    kernel: Path
    initramfs: Path
    guest_agent_initramfs: Path
    """The initramfs with the guest agent; see agent/cli/demo/qemu_ga.py."""


def cache_directory() -> Path:
    """Return the user's cache directory for built and downloaded files. The directory may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmp-agent"


def build_directory_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Build a directory unless the directory exists, and return the path. Safe in several processes: the directory appears complete.

    Args:
        folder: the directory.
        build: gets a temporary directory, and builds the content of `folder` in the temporary directory's new subdirectory `built`.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            build(Path(scratch))
            try:
                Path(scratch, "built").rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                # Another process has built the directory in the meantime, with the same result.
    return folder


# --- The boot-sector guest ---------------------------------------------------------------------------------------

_LOADED_AT: Final = 0x7C00  # where every PC BIOS loads the boot sector
_PACKET: Final = 0x180  # offset, within the sector, of the disk address packet of INT 13h AH=43h
_PACKET_COUNT: Final = _LOADED_AT + _PACKET + 2  # address of the packet's 16-bit number of sectors
_PACKET_LBA: Final = (
    _LOADED_AT + _PACKET + 8
)  # address of the packet's 64-bit first sector; the guest counts the low 32 bits
_DATA_AT: Final = 0x8000  # address of the memory that is written to the disk
_DRIVE: Final = 0x81  # the BIOS number of the second disk, which is written
_TICK_US: Final = 54_925  # period of the PC's timer in microseconds
_FIRST_SECTOR: Final = 64  # where the first write begins


def build_boot_sector(
    *,
    sectors_per_write: int = 8,
    last_sector: int = 64 * 2048 - 1,
    pause_us: int = 200_000,
) -> bytes:
    """Build a boot disk whose guest writes to another disk in ascending order, and begins again after `last_sector`.

    The guest does not retry a failed write, but continues with the next write.

    Args:
        sectors_per_write: size of one write in sectors, 1..127, the range that every BIOS accepts.
        last_sector: the highest sector that is written, up to 2^32 - 2.
        pause_us: time between two writes in microseconds. In a pause of at least one timer tick (55 ms), the guest sleeps until a tick.
            In a shorter pause, the guest uses much of a CPU, and the BIOS counts in steps of about 1 ms.

    Returns:
        512 bytes. The caller pads the image to 1 MiB, because a BIOS boots only from a disk of at least one cylinder.

    Raises:
        ValueError: no write fits before the last sector.
    """
    if not (1 <= sectors_per_write <= 127 and _FIRST_SECTOR <= last_sector + 1 - sectors_per_write < 2**32):
        raise ValueError(f"no write of {sectors_per_write} sectors fits in {_FIRST_SECTOR}..{last_sector}")
    start = b"".join(
        (
            b"\xfa",  # cli
            b"\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0",  # xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
            b"\xbc" + struct.pack("<H", _LOADED_AT),  # mov sp, 0x7c00: the stack grows down from the code
            b"\xfb",  # sti
        )
    )
    write = _write_instructions(sectors_per_write, last_sector, pause_us)
    again = b"\xe9" + struct.pack("<h", -(len(write) + 3))  # jmp write; counted from the end of this instruction
    code = start + write + again
    packet = struct.pack("<BBHHHQ", 16, 0, sectors_per_write, _DATA_AT, 0, _FIRST_SECTOR)
    return code.ljust(_PACKET, b"\0") + packet.ljust(SECTOR_BYTES - 2 - _PACKET, b"\0") + b"\x55\xaa"


def _write_instructions(sectors_per_write: int, last_sector: int, pause_us: int) -> bytes:
    """Return the code of one iteration of the loop: write, advance to the next sector or start over, and pause."""
    start_over = b"\x66\xc7\x06" + struct.pack("<HI", _PACKET_LBA, _FIRST_SECTOR)  # mov dword [lba], first sector
    return b"".join(
        (
            # The BIOS replaces the number of sectors in the packet by the number of written sectors: 0 after an error.
            b"\xc7\x06" + struct.pack("<HH", _PACKET_COUNT, sectors_per_write),  # mov word [count], sectors_per_write
            b"\xbe" + struct.pack("<H", _LOADED_AT + _PACKET),  # mov si, packet
            b"\xb8\x00\x43",  # mov ax, 0x4300: extended write, without verifying
            b"\xb2" + struct.pack("<B", _DRIVE),  # mov dl, drive
            b"\xcd\x13",  # int 0x13
            b"\x66\x81\x06" + struct.pack("<HI", _PACKET_LBA, sectors_per_write),  # add dword [lba], sectors_per_write
            b"\x66\x81\x3e" + struct.pack("<HI", _PACKET_LBA, last_sector + 1 - sectors_per_write),  # cmp dword [lba],
            b"\x76" + struct.pack("<b", len(start_over)),  # jbe over the next instruction: another write fits
            start_over,
            _wait_for_ticks(pause_us // _TICK_US) if pause_us >= _TICK_US else _wait_in_bios(pause_us),
        )
    )


def _wait_in_bios(pause_us: int) -> bytes:
    return b"".join(
        (
            b"\xb4\x86",  # mov ah, 0x86: wait
            b"\xb9" + struct.pack("<H", pause_us >> 16),  # mov cx, pause, high half
            b"\xba" + struct.pack("<H", pause_us & 0xFFFF),  # mov dx, pause, low half
            b"\xcd\x15",  # int 0x15
        )
    )


def _wait_for_ticks(ticks: int) -> bytes:
    return b"".join(
        (
            b"\xb9" + struct.pack("<H", min(ticks, 0xFFFF)),  # mov cx, ticks
            b"\xf4",  # hlt: sleep until the next interrupt, which is the timer's
            b"\xe2\xfd",  # loop hlt
        )
    )


# --- The Linux guest ---------------------------------------------------------------------------------------------

_KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"  # Debian's meta-package for the current kernel for virtual machines
_DRIVERS: Final = ("virtio_pci", "virtio_blk", "virtio_balloon")
# The kernel passes unknown words `NAME=value` of its command line to init as environment variables.
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do
    insmod /modules/$module.ko
done
[ -b /dev/vda ] || exec echo "no driver made a disk /dev/vda"
blocks=$((${SPAN_MIB:-32} * 1024 / ${WRITE_KIB:-1024}))
[ -e /guest-agent ] && . /guest-agent
echo READY
block=0
while true; do
    dd if=/dev/zero of=/dev/vda bs=${WRITE_KIB:-1024}k count=1 seek=$block oflag=direct conv=fsync,notrunc status=none
    block=$(((block + 1) % blocks))
    sleep ${PAUSE_SECONDS:-1}
done
"""


def linux_image(cache: Path | None = None) -> LinuxImage:
    """Return the image of the Linux guest. Blocks: the first call builds the image from Debian's packages within seconds.

    The build needs Debian's package lists, `dpkg-deb`, `cpio` and a static busybox. The build needs no root and installs nothing.

    Args:
        cache: the directory for the image, which has about 20 MB; default: `cache_directory()`.

    Raises:
        MissingDependencyError: a program, a package or the network is missing.
    """
    # The name depends only on the recipe. So the latest kernel version need not be known to find a cached image.
    recipe = hashlib.sha256((_INIT + qemu_ga.GUEST_SCRIPT).encode()).hexdigest()[:12]
    folder = build_directory_once((cache or cache_directory()) / f"linux-guest-{recipe}", _build_linux)
    return LinuxImage(folder / "vmlinuz", folder / "initramfs", folder / "agent-initramfs")


def _build_linux(scratch: Path) -> None:
    busybox = _find_static_busybox()
    root, built = scratch / "root", scratch / "built"
    built.mkdir()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    package = _download_kernel(scratch)
    kernel, modules = _extract_kernel(package, _DRIVERS)
    (built / "vmlinuz").write_bytes(kernel)
    _add_modules(root, modules, "order")
    (built / "initramfs").write_bytes(_pack_initramfs(root))
    if not qemu_ga.QEMU_GA_PATH.exists():
        raise MissingDependencyError(f"{qemu_ga.QEMU_GA_PATH} is missing: install the package qemu-guest-agent")
    _add_modules(root, _extract_kernel(package, qemu_ga.KERNEL_MODULES)[1], "agent-order")
    qemu_ga.add_guest_agent_files(root, lambda program: run_program("ldd", os.fspath(program)))
    (built / "agent-initramfs").write_bytes(_pack_initramfs(root))


def _add_modules(root: Path, modules: Mapping[str, bytes], order: str) -> None:
    for name, content in modules.items():
        (root / "modules" / f"{name}.ko").write_bytes(content)
    (root / "modules" / order).write_text("\n".join(modules))


def _pack_initramfs(root: Path) -> bytes:
    """Return an initramfs with the content of a directory."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    return run_program("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=root, stdin="\n".join(names).encode())


def _download_kernel(folder: Path) -> Path:
    """Download the kernel package that the meta-package depends on. Needs no root."""
    remedy = "run 'apt-get update' as root; the machine must be a Debian for amd64 and reach its package mirror"
    description = run_program("apt-cache", "show", "--no-all-versions", _KERNEL_PACKAGE, remedy=remedy).decode()
    match = re.search(r"^Depends:.*?\b(linux-image-[\w.+~-]+)(?: \(= ([^)]+)\))?", description, re.MULTILINE)
    if match is None:
        raise MissingDependencyError(f"the package lists do not contain {_KERNEL_PACKAGE}: {remedy}")
    name, version = match.groups()
    run_program("apt-get", "-q", "download", f"{name}={version}" if version else name, cwd=folder, remedy=remedy)
    return next(folder.glob("linux-image-*.deb"))


def _extract_kernel(package: Path, drivers: Sequence[str]) -> tuple[bytes, dict[str, bytes]]:
    """Return the kernel in a package, and the modules of the drivers by name, in loading order.

    Each module lists its dependencies, which differ between kernels. A module that is not in the package is built into the kernel.
    """
    with tarfile.open(fileobj=io.BytesIO(run_program("dpkg-deb", "--fsys-tarfile", str(package)))) as archive:
        members = {PurePath(member.name).name: member for member in archive if member.isfile()}

        def read(name: str) -> bytes:
            content = archive.extractfile(members[name])
            assert content is not None, f"{name} is not a file"
            return content.read()

        loaded: dict[str, bytes] = {}

        def load(name: str) -> None:
            for file in (f"{name}.ko", f"{name}.ko.xz"):
                if name not in loaded and file in members:
                    module = lzma.decompress(read(file)) if file.endswith(".xz") else read(file)
                    needs = re.search(rb"\0depends=([^\0]*)\0", module)
                    for needed in needs[1].decode().split(",") if needs else ():
                        load(needed)
                    loaded[name] = module

        for driver in drivers:
            load(driver)
        return read(next(name for name in members if name.startswith("vmlinuz"))), loaded


def _find_static_busybox() -> Path:
    remedy = "install the package busybox-static"
    path = shutil.which("busybox")
    if path is None:
        raise MissingDependencyError(f"busybox is missing: {remedy}")
    if b"/ld-linux" in Path(path).read_bytes():  # the loader of a dynamic program
        raise MissingDependencyError(f"{path} needs libraries, which the guest does not have: {remedy}")
    return Path(path)


def run_program(*command: str, cwd: Path | None = None, stdin: bytes = b"", remedy: str | None = None) -> bytes:
    """Run a program and return its standard output.

    Raises:
        MissingDependencyError: the program is missing or fails. The message has the remedy.
    """
    remedy = remedy or f"install the package that contains {command[0]}"
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, cwd=cwd, input=stdin, env=environment, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise MissingDependencyError(f"{command[0]} is missing: {remedy}") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        raise MissingDependencyError(f"{' '.join(command)} failed ({lines[-1]}): {remedy}") from error


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{linux_image().kernel.parent}\n")
    except MissingDependencyError as missing:
        sys.exit(str(missing))
