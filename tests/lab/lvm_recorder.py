"""Records what LVM and the device mapper report, from a real LVM in a guest: `python -m tests.lab.lvm_recorder bookworm trixie sid`.

The guest has the kernel and the tools of one Debian release. It creates thin pools with odd names, writes to them, fills one of them, and
prints the output of the commands of deploy/storage/storage_report.py. The result is tests/golden/storage/lvm-VERSION.json.
"""

import json
import lzma
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, run_program
from deploy.storage.storage_report import DMSETUP, LVS
from tests.lab.debian_release import unpack

GOLDEN: Final = Path(__file__).parents[1] / "golden/storage"
_MODULES: Final = ("virtio_pci", "virtio_blk", "dm-mod", "dm-thin-pool")
_MARK: Final = "=== "
_SECONDS: Final = 600
_ODD_SETTINGS: Final = "log{report_command_log=1} global{units=h suffix=1} report{binary_values_as_numeric=1}"

_INIT: Final = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin:/usr/bin LC_ALL=C LVM_SUPPRESS_FD_WARNINGS=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /run/lock /tmp
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do
    insmod /modules/$module
done
record() {{
    echo "{_MARK}$1"
    shift
    "$@" 2>/dev/null
}}
snapshot() {{
    record $1.lvs {shlex.join(LVS)}
    record $1.dmsetup {shlex.join(DMSETUP)}
    echo "{_MARK}"
}}
record version lvm version
record setup true
set -x
vgcreate -y pve /dev/vda
vgcreate -y odd-vg_1.x+y /dev/vdb
lvcreate -y --type thin-pool -L 256m --chunksize 128k --poolmetadatasize 4m -n data pve
lvcreate -y --type thin -V 100m --thinpool data -n vm-100-disk-0 pve
lvcreate -y --type thin -V 2g --thinpool data -n vm-101-disk-0 pve
lvcreate -y -L 32m -n root pve
lvcreate -y --type thin-pool -L 64m -n pool-a.b+c_d odd-vg_1.x+y
lvchange --errorwhenfull y odd-vg_1.x+y/pool-a.b+c_d
lvcreate -y --type thin -V 1g --thinpool pool-a.b+c_d -n lv-with-hyphens odd-vg_1.x+y
lvcreate -y --type thin-pool -L 32m -n off odd-vg_1.x+y
lvcreate -y --type thin -V 32m --thinpool off -n off-volume odd-vg_1.x+y
lvchange -an odd-vg_1.x+y/off-volume
lvchange -an odd-vg_1.x+y/off
dd if=/dev/urandom of=/dev/mapper/pve-vm--100--disk--0 bs=1M count=37 conv=fsync
dd if=/dev/urandom of=/dev/mapper/pve-vm--101--disk--0 bs=1M count=10 seek=1000 conv=fsync
set +x
snapshot used
record odd-settings.lvs {shlex.join(LVS)} --config '{_ODD_SETTINGS}'
echo "{_MARK}"
dd if=/dev/urandom of=/dev/mapper/odd--vg_1.x+y-lv--with--hyphens bs=1M count=80 conv=fsync
sleep 1
snapshot full
record done true
poweroff -f
"""


def record(release: str) -> None:
    """Record the LVM of a Debian release. Blocks for a minute.

    Raises:
        MissingDependencyError: a package or a program is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        unpack(release, ("lvm2", "dmsetup", "busybox-static", "linux-image-cloud-amd64"), scratch)
        sections = _run_guest(scratch)
    version = re.search(r"LVM version:\s+([\d.]+)", sections["version"])
    assert version is not None, sections["version"]
    recorded = {
        "about": f"Output of a real LVM of Debian {release} in a guest, recorded by tests/lab/lvm_recorder.py. "
        "lvmreport(7), dmsetup(8) and the kernel's document on thin provisioning describe the formats.",
        **sections,
    }
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / f"lvm-{version[1]}.json"
    path.write_text(json.dumps(recorded, indent=2) + "\n")
    sys.stdout.write(f"{path}\n")


def _run_guest(scratch: Path) -> dict[str, str]:
    """Run the guest and return the output of each recorded command."""
    root = scratch / "built/root"
    kernel = next(path for path in root.rglob("vmlinuz*") if path.is_file())
    initramfs = scratch / "initramfs"
    initramfs.write_bytes(_initramfs(root))
    serial = scratch / "serial"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", os.fspath(kernel), "-initrd", os.fspath(initramfs), "-append", "console=ttyS0 quiet"]
    command += ["-serial", f"file:{serial}"]
    for disk in ("vda", "vdb"):
        (scratch / disk).touch()
        os.truncate(scratch / disk, 1 << 30)
        command += ["-drive", f"if=virtio,format=raw,file={scratch / disk}"]
    subprocess.run(command, check=True, timeout=_SECONDS)
    text = serial.read_text(errors="replace").replace("\r\n", "\n")
    sections = {}
    for part in text.split(_MARK)[1:]:
        name, _, content = part.partition("\n")
        if name:
            sections[name] = content
    if "done" not in sections or re.search("failed|not found|unsupported", sections["setup"]):
        raise MissingDependencyError(f"the guest did not finish: {text[-2000:]}")
    del sections["done"], sections["setup"]
    return sections


def _initramfs(root: Path) -> bytes:
    """Turn the unpacked packages into the guest's root file system and return it as an archive."""
    for name in ("dev", "proc", "sys", "modules", "bin"):
        (root / name).mkdir(exist_ok=True)
    for name in ("lib64",):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    if busybox != root / "bin/busybox":
        (root / "bin/busybox").hardlink_to(busybox)
    order = []
    for path in _modules(root):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        name = path.name.partition(".")[0] + ".ko"
        (root / "modules" / name).write_bytes(content)
        order.append(name)
    (root / "modules/order").write_text("\n".join(order))
    (root / "etc/lvm").mkdir(parents=True, exist_ok=True)
    # No udev in the guest: LVM makes the devices' nodes itself. Without the tools of thin-provisioning-tools, it does not check metadata.
    (root / "etc/lvm/lvm.conf").write_text(
        "activation { udev_sync=0 udev_rules=0 monitoring=0 }\n"
        'global { thin_check_executable="" thin_repair_executable="" use_lvmpolld=0 }\n'
        'devices { obtain_device_list_from_udev=0 external_device_info_source="none" }\n'
    )
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    keep = (
        path for path in root.rglob("*") if not re.search(r"/(lib/modules|boot|share/(doc|man|locale))(/|$)", str(path))
    )
    names = sorted(str(path.relative_to(root)) for path in keep)
    return run_program("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=root, stdin="\n".join(names).encode())


def _modules(root: Path) -> Iterator[Path]:
    """Yield the files of the needed kernel modules in loading order."""
    files = {path.name.partition(".")[0].replace("_", "-"): path for path in root.rglob("*.ko*")}
    loaded = set()

    def load(name: str) -> Iterator[Path]:
        name = name.replace("_", "-")
        if name in loaded or name not in files:
            return
        loaded.add(name)
        content = files[name].read_bytes()
        content = lzma.decompress(content) if files[name].suffix == ".xz" else content
        needs = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in needs[1].decode().split(",") if needs else ():
            yield from load(needed)
        yield files[name]

    for name in _MODULES:
        yield from load(name)


if __name__ == "__main__":
    for debian_release in sys.argv[1:]:
        record(debian_release)
