"""Guests built on the spot, with no image to download: a 512-byte boot disk, and a Linux of kernel and busybox.

`boot_sector` is enough wherever only disk writes matter: it runs within a second of QEMU's start. `linux_image` is
for what needs a guest with drivers of its own: balloon statistics, balloon changes, flushes.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

SECTOR_BYTES: Final = 512


class LabMissing(Exception):  # noqa: N818 - it names what the machine lacks, which its message tells how to cure
    """A program, a package or the network that a guest is made with is not there; the message says what helps."""


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """A Linux guest as QEMU boots it: `-kernel kernel -initrd initramfs`.

    Its kernel command line sets what it does, all whole numbers but the pause: `WRITE_KIB` written at a time, with
    a flush; `PAUSE_SECONDS` between two writes; `SPAN_MIB` of /dev/vda after which it starts over.
    """

    kernel: Path
    initramfs: Path


def cache_folder() -> Path:
    """Return where what is built or fetched once for this user is kept; the folder need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmp-agent"


def kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return a folder, built on the first call. Safe to be called at the same time by several processes: none sees half of it.

    Args:
        folder: where it is to be.
        build: makes it as `built` in a folder that it is given, which is gone afterwards.
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
                # Somebody else was quicker: theirs is as good as ours.
    return folder


# --- The boot-sector guest ---------------------------------------------------------------------------------------

_LOADED_AT: Final = 0x7C00  # where every PC BIOS puts the boot sector
_PACKET: Final = 0x180  # offset, within the sector, of the disk address packet that INT 13h AH=43h takes
_PACKET_COUNT: Final = _LOADED_AT + _PACKET + 2  # its 16-bit number of sectors
_PACKET_LBA: Final = _LOADED_AT + _PACKET + 8  # its 64-bit first sector, of which we count the low 32 bits
_DATA_AT: Final = 0x8000  # memory whose content is written: whatever is there
_DRIVE: Final = 0x81  # the BIOS number of the disk written to: the one after the disk booted from
_FIRST_SECTOR: Final = 64  # where the first write begins


def boot_sector(
    *,
    sectors_per_write: int = 8,
    last_sector: int = 64 * 2048 - 1,
    pause_us: int = 2000,
) -> bytes:
    """Build a boot disk whose guest writes to another disk for ever, upwards, and starts over after `last_sector`.

    A failed write is not tried again: the guest goes on with the next one, as long as QEMU lets it run.

    Args:
        sectors_per_write: size of one write, 1..127 sectors, which is all that a BIOS must accept.
        last_sector: the highest sector of 512 bytes written to, up to 2^32 - 2.
        pause_us: time between two writes in microseconds; the BIOS counts it in steps of about 1 ms.

    Returns:
        512 bytes. A BIOS boots from a disk of one cylinder at least: pad it to 1 MiB.

    Raises:
        ValueError: if not even one write fits before the last sector.
    """
    if not (1 <= sectors_per_write <= 127 and _FIRST_SECTOR <= last_sector + 1 - sectors_per_write < 2**32):
        raise ValueError(f"no write of {sectors_per_write} sectors fits in {_FIRST_SECTOR}..{last_sector}")
    start_over = b"\x66\xc7\x06" + struct.pack("<HI", _PACKET_LBA, _FIRST_SECTOR)  # mov dword [lba], first sector
    start = b"".join(
        (
            b"\xfa",  # cli
            b"\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0",  # xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
            b"\xbc" + struct.pack("<H", _LOADED_AT),  # mov sp, 0x7c00: the stack grows down from under the code
            b"\xfb",  # sti
        )
    )
    write = b"".join(
        (
            # The BIOS leaves the number of sectors it did write in the packet: none after an error.
            b"\xc7\x06" + struct.pack("<HH", _PACKET_COUNT, sectors_per_write),  # mov word [count], sectors_per_write
            b"\xbe" + struct.pack("<H", _LOADED_AT + _PACKET),  # mov si, packet
            b"\xb8\x00\x43",  # mov ax, 0x4300: extended write, without verifying
            b"\xb2" + struct.pack("<B", _DRIVE),  # mov dl, drive
            b"\xcd\x13",  # int 0x13
            b"\x66\x81\x06" + struct.pack("<HI", _PACKET_LBA, sectors_per_write),  # add dword [lba], sectors_per_write
            b"\x66\x81\x3e" + struct.pack("<HI", _PACKET_LBA, last_sector + 1 - sectors_per_write),  # cmp dword [lba],
            b"\x76" + struct.pack("<b", len(start_over)),  # jbe over the next instruction: another write fits
            start_over,
            b"\xb4\x86",  # mov ah, 0x86: wait
            b"\xb9" + struct.pack("<H", pause_us >> 16),  # mov cx, pause, high half
            b"\xba" + struct.pack("<H", pause_us & 0xFFFF),  # mov dx, pause, low half
            b"\xcd\x15",  # int 0x15
        )
    )
    again = b"\xe9" + struct.pack("<h", -(len(write) + 3))  # jmp write; counted from the end of this instruction
    code = start + write + again
    packet = struct.pack("<BBHHHQ", 16, 0, sectors_per_write, _DATA_AT, 0, _FIRST_SECTOR)
    return code.ljust(_PACKET, b"\0") + packet.ljust(SECTOR_BYTES - 2 - _PACKET, b"\0") + b"\x55\xaa"


# --- The Linux guest ---------------------------------------------------------------------------------------------

_KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"  # Debian's name for "the kernel for virtual machines, any version"
_DRIVERS: Final = ("virtio_pci", "virtio_blk", "virtio_balloon")
# The kernel hands words `NAME=value` of its command line that it does not know to init as environment variables.
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
echo READY
block=0
while true; do
    dd if=/dev/zero of=/dev/vda bs=${WRITE_KIB:-1024}k count=1 seek=$block oflag=direct conv=fsync,notrunc status=none
    block=$(((block + 1) % blocks))
    sleep ${PAUSE_SECONDS:-1}
done
"""


def linux_image(cache: Path | None = None) -> LinuxImage:
    """Return the Linux guest, built from Debian's packages on the first call, which takes some seconds.

    Needs Debian's package lists, `dpkg-deb`, `cpio` and a static busybox; needs no root and installs nothing. Blocks.

    Args:
        cache: where the result is kept, by default this user's cache; one small folder, about 20 MB.

    Raises:
        LabMissing: if one of these things is not there.
    """
    # The name tells the recipe, not the kernel's version: no package list need be read to find what is there already.
    recipe = hashlib.sha256(_INIT.encode()).hexdigest()[:12]
    folder = kept((cache or cache_folder()) / f"linux-guest-{recipe}", _build_linux)
    return LinuxImage(kernel=folder / "vmlinuz", initramfs=folder / "initramfs")


def _build_linux(scratch: Path) -> None:
    busybox = _static_busybox()
    root, built = scratch / "root", scratch / "built"
    built.mkdir()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    kernel, modules = _kernel_files(_download_kernel(scratch))
    (built / "vmlinuz").write_bytes(kernel)
    for name, content in modules.items():
        (root / "modules" / f"{name}.ko").write_bytes(content)
    (root / "modules" / "order").write_text("\n".join(modules))
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    archive = output("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=root, stdin="\n".join(names).encode())
    (built / "initramfs").write_bytes(archive)


def _download_kernel(folder: Path) -> Path:
    """Fetch the package of the kernel which Debian's meta-package stands for; needs no root."""
    cure = "run 'apt-get update' as root; the machine must be a Debian for amd64 and reach its package mirror"
    described = output("apt-cache", "show", "--no-all-versions", _KERNEL_PACKAGE, cure=cure).decode()
    found = re.search(r"^Depends:.*?\b(linux-image-[\w.+~-]+)(?: \(= ([^)]+)\))?", described, re.MULTILINE)
    if found is None:
        raise LabMissing(f"the package lists do not know {_KERNEL_PACKAGE}: {cure}")
    name, version = found.groups()
    output("apt-get", "-q", "download", f"{name}={version}" if version else name, cwd=folder, cure=cure)
    return next(folder.glob("linux-image-*.deb"))


def _kernel_files(package: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return a package's kernel, and its modules that the drivers take, in the order in which they can be loaded.

    Which module needs which differs from kernel to kernel, so the modules themselves are asked; one that is not in
    the package is built into the kernel.
    """
    with tarfile.open(fileobj=io.BytesIO(output("dpkg-deb", "--fsys-tarfile", str(package)))) as archive:
        members = {PurePath(member.name).name: member for member in archive if member.isfile()}

        def read(name: str) -> bytes:
            content = archive.extractfile(members[name])
            assert content is not None, f"{name} is no file"
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

        for driver in _DRIVERS:
            load(driver)
        return read(next(name for name in members if name.startswith("vmlinuz"))), loaded


def _static_busybox() -> Path:
    cure = "install the package busybox-static"
    found = shutil.which("busybox")
    if found is None:
        raise LabMissing(f"there is no busybox: {cure}")
    if b"/ld-linux" in Path(found).read_bytes():  # the name of the loader that a dynamic program asks for
        raise LabMissing(f"{found} needs libraries, which the guest has not: {cure}")
    return Path(found)


def output(*command: str, cwd: Path | None = None, stdin: bytes = b"", cure: str | None = None) -> bytes:
    """Run one of the programs that something is built with and return its output.

    Raises:
        LabMissing: if it is not there or fails.
    """
    cure = cure or f"install the package that has {command[0]}"
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, cwd=cwd, input=stdin, env=environment, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise LabMissing(f"there is no {command[0]}: {cure}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        raise LabMissing(f"{' '.join(command)} failed ({said[-1]}): {cure}") from error


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{linux_image().kernel.parent}\n")
    except LabMissing as missing:
        sys.exit(str(missing))
