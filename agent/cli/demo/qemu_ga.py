"""QEMU's arguments and the files with which the Linux guest runs the real guest agent, qemu-ga.

The guest has a file system on a separate disk, a network interface without a network, and a virtio-serial port for the guest agent. For
tests, a second port leads to a shell in the guest.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

QEMU_GA_PATH: Final = Path("/usr/sbin/qemu-ga")
"""Debian's qemu-ga, from the package qemu-guest-agent."""

KERNEL_MODULES: Final = ("virtio_console", "virtio_net", "ext4")
"""Kernel modules that the guest needs for the port, the network interface and the file system."""

GUEST_SCRIPT: Final = """\
for module in $(cat /modules/agent-order); do
    [ -e /sys/module/$module ] || insmod /modules/$module.ko
done
hostname ${GUEST_NAME:-linux-guest}
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
mke2fs /dev/vdb >/dev/null
mount -t ext4 /dev/vdb /data
for port in /sys/class/virtio-ports/*; do
    case "$(cat $port/name)" in
    org.qemu.guest_agent.0) export CHANNEL=/dev/${port##*/} ;;
    lab.shell.0) shell=/dev/${port##*/} ;;
    esac
done
qemu-ga -d -m virtio-serial -p $CHANNEL -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log
if [ -n "$shell" ]; then
    exec 3<>$shell
    while true; do
        if read -r line <&3; then
            eval "$line" >&3 2>&3 </dev/null
        else
            sleep 0.2
        fi
    done &
fi
if [ -n "$FILL_SECONDS" ]; then
    number=0
    while true; do
        dd if=/dev/zero of=/data/$number bs=256k count=1 2>/dev/null || rm -f /data/*
        number=$((number + 1))
        sleep $FILL_SECONDS
    done &
fi
"""
"""Shell script that runs in the guest before the guest begins to write to /dev/vda.

FILL_SECONDS: interval in seconds at which a file is added to /data.
"""

_OS_RELEASE: Final = """\
ID=busybox
NAME="Busybox"
PRETTY_NAME="Busybox, the guest of qmp-agent's demo"
VERSION_ID=1
"""


def add_guest_agent_files(root: Path, ldd: Callable[[Path], bytes]) -> None:
    """Add the guest agent's files to the root of an initramfs.

    Args:
        root: the directory.
        ldd: returns the output of `ldd` for a program.
    """
    for name in ("data", "etc", "run", "usr/sbin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "guest-agent").write_text(GUEST_SCRIPT)
    (root / "etc/os-release").write_text(_OS_RELEASE)
    shutil.copy(QEMU_GA_PATH, root / "bin" / "qemu-ga")
    for library in re.findall(r"(/\S+) \(0x", ldd(QEMU_GA_PATH).decode()):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def guest_agent_device_arguments(folder: Path, name: str, disk: Path, *, shell: bool) -> list[str]:
    """Return QEMU's arguments for the guest's virtio-serial ports, network interface and data disk.

    Args:
        folder: the directory of the ports' sockets, NAME.qga and NAME.shell.
        name: the guest's name.
        disk: the raw image of the file system.
        shell: whether to add a port that leads to a shell.
    """
    arguments = ["-device", "virtio-serial-pci,id=serial0"]
    channels = [("qga0", "org.qemu.guest_agent.0", "qga"), *([("shell0", "lab.shell.0", "shell")] if shell else [])]
    for chardev, port, suffix in channels:
        arguments += ["-chardev", f"socket,id={chardev},path={folder / name}.{suffix},server=on,wait=off"]
        arguments += ["-device", f"virtserialport,id={chardev}-port,chardev={chardev},name={port}"]
    arguments += ["-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,id=nic0,netdev=net0"]
    arguments += ["-blockdev", f"driver=raw,node-name=data,file.driver=file,file.filename={disk}"]
    return [*arguments, "-device", "virtio-blk-pci,id=data0,drive=data"]
