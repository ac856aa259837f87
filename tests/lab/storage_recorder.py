"""Records what LVM, the device mapper, ZFS and project quotas report, from real tools and a real kernel in a guest.

    python -m tests.lab.storage_recorder lvm bullseye bookworm trixie
    python -m tests.lab.storage_recorder quota bookworm trixie
    python -m tests.lab.storage_recorder zfs bookworm trixie     # builds the kernel module first: root, and 15 minutes for each

The guest has the kernel and the tools of one Debian release. It creates pools with odd names, writes to them, and prints the output of the
commands of deploy/storage/storage_report.py. For quotas it prints statfs(2) of directories with and without a project. The results are
tests/golden/storage/lvm-VERSION.json, zfs-VERSION.json and quota-VERSION.json.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, run_program
from deploy.storage.storage_report import DMSETUP, LVS, ZFS, ZPOOL
from tests.lab import golden_files
from tests.lab.debian_release import unpack
from tests.lab.kernel_modules import module_content, module_files

_MARK: Final = "=== "
_SECONDS: Final = 600
_BUILD_SECONDS: Final = 3600
_DISKS: Final = ("vda", "vdb", "vdc", "vdd")
_EXCLUDED: Final = re.compile(
    r"((usr/)?lib/(modules|firmware)|boot|var|usr/(share|src|include|libexec|lib/(gcc|linux-kbuild.*)|lib/x86_64-linux-gnu/perl.*))(/|$)"
)
"""Files of the unpacked packages that the guest does not need."""

_INIT: Final = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin:/usr/bin LC_ALL=C LVM_SUPPRESS_FD_WARNINGS=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /run/lock /tmp
ln -sf /proc/mounts /etc/mtab
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do
    insmod /modules/$module
done
record() {{
    echo "{_MARK}$1"
    shift
    "$@" 2>/dev/null
}}
"""

_LVM: Final = f"""\
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
record used.lvs {shlex.join(LVS)}
record used.dmsetup {shlex.join(DMSETUP)}
record odd-settings.lvs {shlex.join(LVS)} \
    --config 'log{{report_command_log=1}} global{{units=h suffix=1}} report{{binary_values_as_numeric=1}}'
echo "{_MARK}"
dd if=/dev/urandom of=/dev/mapper/odd--vg_1.x+y-lv--with--hyphens bs=1M count=80 conv=fsync
sleep 1
record full.lvs {shlex.join(LVS)}
record full.dmsetup {shlex.join(DMSETUP)}
record done true
poweroff -f
"""

_LVM_CONF: Final = """\
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { thin_check_executable="" thin_repair_executable="" use_lvmpolld=0 }
devices { obtain_device_list_from_udev=0 external_device_info_source="none" }
"""
"""The guest has no udev, so LVM creates the nodes of devices itself. It has no programs that check metadata."""

_ZFS: Final = f"""\
record version zfs version
record setup true
for disk in {" ".join(_DISKS)}; do
    printf 'n\np\n1\n\n\nw\n' | fdisk /dev/$disk >/dev/null  # without udev, zpool cannot partition a disk itself
done
set -x
zpool create -f tank /dev/vda1
zpool create -f odd:pool.1_x-y mirror /dev/vdb1 /dev/vdc1
zfs create tank/vm
zfs create 'tank/vm images'
zfs create -o quota=100M tank/limited
zfs create tank/limited/child
zfs create -o refquota=50M tank/ref
zfs create -s -V 1G tank/sparse
zfs create -V 64M tank/full
zfs create -s -V 64M 'tank/vm images/disk 0'
zfs snapshot tank/vm@before
dd if=/dev/urandom of=/tank/vm/image bs=1M count=20 conv=fsync
dd if=/dev/urandom of=/dev/zd0 bs=1M count=5 conv=fsync
zpool offline odd:pool.1_x-y /dev/vdc1
sync
sleep 6
set +x
record used.zpool {shlex.join(ZPOOL)}
record used.zfs {shlex.join(ZFS)}
record done true
poweroff -f
"""

_QUOTA: Final = """\
record version xfs_quota -V
record setup true
set -x
mkdir /xfs /ext4
mkfs.xfs -q -f /dev/vda
mount -t xfs -o prjquota /dev/vda /xfs
mkfs.ext4 -q -O quota,project -E quotatype=prjquota /dev/vdb
mount -t ext4 -o prjquota /dev/vdb /ext4
mkdir -p /xfs/images/vm1/disks /xfs/soft /xfs/other /ext4/images/vm1/disks /ext4/soft /ext4/other
xfs_quota -x -c 'project -s -p /xfs/images 42' -c 'limit -p bhard=60m ihard=100 42' /xfs
xfs_quota -x -c 'project -s -p /xfs/soft 43' -c 'limit -p bsoft=30m bhard=60m 43' /xfs
chattr -R -p 42 +P /ext4/images
chattr -R -p 43 +P /ext4/soft
setquota -P 42 0 61440 0 100 /ext4
setquota -P 43 30720 61440 0 0 /ext4
for directory in /xfs/images/vm1/disks /xfs/soft /xfs/other /ext4/images/vm1/disks /ext4/soft; do
    dd if=/dev/zero of=$directory/a.qcow2 bs=1M count=10 conv=fsync
done
sync
set +x
record mountinfo cat /proc/self/mountinfo
record statfs stat -f -c '%n %S %b %f %a %c %d' /xfs /xfs/images /xfs/images/vm1 /xfs/images/vm1/disks /xfs/soft /xfs/other \
    /ext4 /ext4/images /ext4/images/vm1 /ext4/images/vm1/disks /ext4/soft /ext4/other
echo "=== "
set -x
dd if=/dev/zero of=/xfs/images/b bs=1M count=80
dd if=/dev/zero of=/ext4/images/b bs=1M count=80
sync
set +x
record full stat -f -c '%n %S %b %f %a %c %d' /xfs /xfs/images /ext4 /ext4/images
echo "=== "
set -x
dd if=/dev/zero of=/xfs/other/b bs=1M count=832
dd if=/dev/zero of=/ext4/other/b bs=1M count=800
sync
set +x
record crowded stat -f -c '%n %S %b %f %a %c %d' /xfs /xfs/soft /ext4 /ext4/soft
record done true
poweroff -f
"""


def _prepare_lvm(root: Path) -> None:
    (root / "etc/lvm").mkdir(parents=True, exist_ok=True)
    (root / "etc/lvm/lvm.conf").write_text(_LVM_CONF)


def _prepare_nothing(root: Path) -> None:
    """Change nothing."""


def _prepare_zfs(root: Path) -> None:
    """Build the kernel module with the compiler of the release, unless it was built."""
    if list(root.glob("usr/src/zfs-*/module/**/zfs.ko")):
        return
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("bash")
    script = """
        mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && exec chroot "$1" /bin/bash -ec '
            export PATH=/usr/sbin:/usr/bin:/sbin:/bin
            [ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk
            [ -e /usr/bin/cc ] || ln -s gcc /usr/bin/cc
            cd /usr/src/zfs-*
            kernel=$(ls /lib/modules)
            ./configure --disable-dependency-tracking --with-config=kernel --with-linux-obj=/usr/src/linux-headers-$kernel \
                --with-linux=/usr/src/linux-headers-${kernel%-cloud-amd64}-common
            make -j2
            find module -name "*.ko" -exec strip --strip-debug {} +
        '"""
    subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "build", os.fspath(root)],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=_BUILD_SECONDS,
    )


@dataclass(frozen=True, slots=True)
class _Scenario:
    """One recording.

    Attributes:
        packages: Debian's packages.
        modules: kernel modules.
        script: what the guest runs.
        version: pattern of the tools' version.
        documents: where the formats are documented.
        prepare: changes the unpacked packages.
    """

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    script: str
    version: str
    documents: str
    prepare: Callable[[Path], None]


_BUILD_PACKAGES: Final = (
    *("linux-headers-cloud-amd64", "gcc", "make", "libc6-dev", "bash", "coreutils", "sed", "grep", "mawk", "perl-base"),
    *("findutils", "diffutils", "bc", "kmod", "xz-utils", "util-linux", "base-files"),
)

SCENARIOS: Final = {
    "lvm": _Scenario(
        ("lvm2", "dmsetup"),
        ("dm-mod", "dm-thin-pool"),
        _LVM,
        r"LVM version:\s+([\d.]+)",
        "lvmreport(7), dmsetup(8) and the kernel's document on thin provisioning describe the formats.",
        _prepare_lvm,
    ),
    "quota": _Scenario(
        ("xfsprogs", "e2fsprogs", "quota"),
        ("xfs", "ext4", "quota-v2"),
        _QUOTA,
        r"version ([\d.]+)",
        "xfs(5), ext4(5) and statfs(2) describe the figures.",
        _prepare_nothing,
    ),
    "zfs": _Scenario(
        ("zfs-dkms", "zfsutils-linux", *_BUILD_PACKAGES),
        ("zfs",),
        _ZFS,
        r"zfs-([\d.]+)",
        "zfs-list(8), zfsprops(7) and zpool-list(8) describe the formats.",
        _prepare_zfs,
    ),
}


def record(kind: str, release: str) -> None:
    """Record one release. Blocks.

    Raises:
        MissingDependencyError: a package or a program is missing, or the guest failed.
    """
    scenario = SCENARIOS[kind]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        packages = (*scenario.packages, "busybox-static", "linux-image-cloud-amd64")
        unpack(release, packages, scratch, "main contrib" if kind == "zfs" else "main")
        sections = _run_guest(scenario, scratch / "built/root", scratch)
    version = re.search(scenario.version, sections["version"])
    assert version is not None, sections["version"]
    about = f"Output of real tools of Debian {release} in a guest, recorded by tests/lab/storage_recorder.py. "
    recorded = {"about": about + scenario.documents, **sections}
    name = f"storage/{kind}-{version[1]}.json"
    golden_files.save(name, recorded)
    sys.stdout.write(f"tests/golden/{name}\n")


def _run_guest(scenario: _Scenario, root: Path, scratch: Path) -> dict[str, str]:
    """Run a guest and return the output of each recorded command.

    Args:
        scenario: what it runs.
        root: the unpacked packages.
        scratch: a directory for the guest's files.
    """
    scenario.prepare(root)
    kernel = next(path for path in root.rglob("vmlinuz*") if path.is_file())
    initramfs = scratch / "initramfs"
    initramfs.write_bytes(_initramfs(scenario, root))
    serial = scratch / "serial"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", os.fspath(kernel), "-initrd", os.fspath(initramfs), "-append", "console=ttyS0 quiet"]
    command += ["-serial", f"file:{serial}"]
    for disk in _DISKS:
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
    if "done" not in sections or re.search("failed|not found|unsupported|invalid|cannot", sections["setup"]):
        raise MissingDependencyError(f"the guest did not finish: {text[-4000:]}")
    del sections["done"], sections["setup"]
    return sections


def _initramfs(scenario: _Scenario, root: Path) -> bytes:
    """Turn the unpacked packages into the guest's root file system and return it as an archive."""
    for name in ("dev", "proc", "sys", "modules", "bin", "etc"):
        (root / name).mkdir(exist_ok=True)
    if not (root / "lib64").exists():
        (root / "lib64").symlink_to("usr/lib64")
    if not (root / "bin/busybox").exists():
        (root / "bin/busybox").hardlink_to(root / "usr/bin/busybox")
    order = []
    for path in module_files(root, ("virtio-blk", *scenario.modules)):
        name = path.name.partition(".")[0] + ".ko"
        (root / "modules" / name).write_bytes(module_content(path))
        order.append(name)
    (root / "modules/order").write_text("\n".join(order))
    (root / "init").write_text(_INIT + scenario.script)
    (root / "init").chmod(0o755)
    names = (str(path.relative_to(root)) for path in root.rglob("*"))
    kept = sorted(name for name in names if not _EXCLUDED.match(name))
    return run_program("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=root, stdin="\n".join(kept).encode())


if __name__ == "__main__":
    for debian_release in sys.argv[2:]:
        record(sys.argv[1], debian_release)
