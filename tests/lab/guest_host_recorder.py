"""Records what the agent, the kernel and its tools report on a host with cgroups of version 2, virtual functions and quotas of XFS.

    python -m tests.lab.guest_host_recorder bookworm   # root, a download of 250 MB and five minutes

This machine's kernel need not have them: a guest is the host, see tests/lab/guest_host.py. In it run this machine's agent and three of its
QEMUs. One has a virtual function and an image on a directory with a quota. A helper in the cgroup of the second one, and the third one
itself, use too much memory, and the kernel kills them. The result is tests/golden/guest_host/linux-VERSION.json.
"""

import base64
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.images import build_boot_sector
from tests.lab import golden_files
from tests.lab.debian_release import unpack
from tests.lab.guest_host import OUT, GuestHost, build_module

_REPOSITORY: Final = Path(__file__).parents[2]
_SECONDS: Final = 3600
_PAUSE_US: Final = 220_000
"""Time between two writes of a guest. It sleeps meanwhile, so that the agent has the processors."""
_VF: Final = "0000:01:10.0"
_CGROUP_FILES: Final = (
    *("memory.current", "memory.max", "memory.swap.current", "memory.events", "cpu.stat"),
    *("cpu.pressure", "memory.pressure", "io.pressure"),
)

_VF_COUNTERS: Final = """\
// Adds ndo_get_vf_stats to igb. The card counts the packets of its virtual functions, but this driver does not read the counters.
#include <linux/etherdevice.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/rtnetlink.h>

static struct net_device_ops operations;
static u8 __iomem *registers;

static int get_vf_stats(struct net_device *device, int vf, struct ifla_vf_stats *stats)
{
	u8 __iomem *of_vf = registers + 0x10000 + 0x100 * vf;

	stats->rx_packets = readl(of_vf + 0x10);
	stats->tx_packets = readl(of_vf + 0x14);
	stats->rx_bytes = readl(of_vf + 0x18);
	stats->tx_bytes = readl(of_vf + 0x34);
	return 0;
}

static int __init start(void)
{
	struct net_device *device = dev_get_by_name(&init_net, "eth0");

	if (!device)
		return -ENODEV;
	registers = pci_iomap(to_pci_dev(device->dev.parent), 0, 0);
	operations = *device->netdev_ops;
	operations.ndo_get_vf_stats = get_vf_stats;
	rtnl_lock();
	device->netdev_ops = &operations;
	rtnl_unlock();
	return 0;
}

module_init(start);
MODULE_LICENSE("GPL");
"""

_NETLINK: Final = """\
import socket, sys
from agent.host.rtnetlink import encode_link_request
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
    connection.sendto(encode_link_request(socket.if_nametoindex("eth0")), (0, 0))
    sys.stdout.buffer.write(connection.recv(1 << 20))
"""

_HOG: Final = """\
held = []
while True:
    held.append(b"x" * (1 << 20))
"""
"""A program that uses more and more memory."""

_CONFIG: Final = f"""\
host: hv7
monitors: [{{dial: "/tmp/*.qmp"}}]
intervals: {{poll: 10s, storage: 2s}}
timeouts: {{greeting: 2m, response: 2m}}
jsonl: {{path: {OUT}/records.jsonl}}
web: {{listen_address: "127.0.0.1:9179"}}
"""

_SCRIPT: Final = f"""\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C PYTHONPATH={_REPOSITORY} PYTHONDONTWRITEBYTECODE=1
set -x
cd /tmp
record() {{ # NAME COMMAND...
    local name=$1
    shift
    "$@" >{OUT}/$name
}}
wait_for() {{ # COMMAND...
    until "$@" >/dev/null 2>&1; do sleep 1; done
}}
cgroup=/sys/fs/cgroup/machine.slice
record_cgroup() {{ # NAME
    for file in {" ".join(_CGROUP_FILES)}; do
        echo "=== $file"
        cat $cgroup/helped/$file
    done >{OUT}/$1
}}
run_in() {{ # CGROUP SCORE COMMAND...
    echo $BASHPID >$cgroup/$1/cgroup.procs
    echo $2 >/proc/self/oom_score_adj
    shift 2
    exec "$@"
}}
qemu() {{ # NAME NUMBER IMAGE ARGUMENTS...
    local name=$1 number=$2 image=$3
    shift 3
    qemu-img create -q -f qcow2 $image 200M
    run_in $name 0 qemu-system-x86_64 -accel tcg -nodefaults -display none -m 64 -name $name \
        -uuid 00000000-0000-0000-0000-00000000000$number -qmp unix:/tmp/$name.qmp,server=on,wait=off \
        -drive if=none,id=boot,format=raw,readonly=on,file={OUT}/boot.raw -device virtio-blk-pci,drive=boot,bootindex=1 \
        -drive if=none,id=image,file=$image -device virtio-blk-pci,id=disk0,drive=image "$@" &
}}
has_record() {{ grep "\\"type\\":\\"qemu.$1\\"" {OUT}/records.jsonl | grep -q "\\"vmname\\":\\"$2\\""; }}

record kernel uname -r
record qemu qemu-system-x86_64 --version
ip link set lo up
echo "+memory +cpu +io" >/sys/fs/cgroup/cgroup.subtree_control
mkdir $cgroup
echo "+memory +cpu +io" >$cgroup/cgroup.subtree_control
mkdir $cgroup/passed $cgroup/helped $cgroup/killed

truncate -s 512M /dev/shm/xfs
mkfs.xfs -q /dev/shm/xfs
mkdir /tmp/xfs
mount -o loop,prjquota /dev/shm/xfs /tmp/xfs
mkdir /tmp/xfs/images
xfs_quota -x -c 'project -s -p /tmp/xfs/images 42' -c 'limit -p bhard=60m 42' /tmp/xfs

device=/sys/class/net/eth0/device
ip link set eth0 up
echo 2 >$device/sriov_numvfs
ip link set eth0 vf 0 mac 52:54:00:12:34:56
ip link set eth0 vf 1 mac 52:54:00:12:34:57
record uncounted.ip ip -statistics -details link show eth0
record uncounted.netlink {sys.executable} -c '{_NETLINK}'
number=2
for interface in /sys/bus/pci/devices/0000:01:10.*/net/*; do
    interface=${{interface##*/}}
    ip link set $interface up
    ip addr add 10.0.2.1$number/24 dev $interface
    wait_for busybox ping -I $interface -c 1 -W 5 10.0.2.2
    busybox ping -I $interface -c $number -W 5 10.0.2.2
    ip link set $interface down
    number=$((number + 5))
done
busybox insmod {OUT}/vf_counters.ko
echo {_VF} >/sys/bus/pci/devices/{_VF}/driver/unbind
echo vfio-pci >/sys/bus/pci/devices/{_VF}/driver_override
echo {_VF} >/sys/bus/pci/drivers_probe

{sys.executable} -m agent run --config {OUT}/agent.yaml >{OUT}/agent.log 2>&1 &
wait_for curl -s 127.0.0.1:9179/healthz
qemu passed 1 /tmp/xfs/images/disk0.qcow2 -device vfio-pci,host=01:10.0,id=hostdev0
passed=$!
qemu helped 2 /dev/shm/helped.qcow2
qemu killed 3 /dev/shm/killed.qcow2
killed=$!
wait_for has_record sample.net passed
wait_for has_record sample.cgroup killed
wait_for has_record sample.cgroup helped
wait_for grep -q '"pool":"/tmp/xfs/images"' {OUT}/records.jsonl
record counted.ip ip -statistics -details link show eth0
record counted.netlink {sys.executable} -c '{_NETLINK}'
record sysfs find /sys/bus/pci/devices/{_VF}/ /sys/bus/pci/devices/{_VF}/physfn/ /sys/kernel/iommu_groups -type l -printf '%p -> %l\\n'
record interfaces find /sys/bus/pci/devices/{_VF}/physfn/net/ -mindepth 1 -maxdepth 1 -printf '%p\\n'
record descriptors find /proc/$passed/fd -type l -printf '%l\\n'
record arguments cat /proc/$passed/cmdline

record_cgroup cgroup.before
echo $(($(cat $cgroup/helped/memory.current) + (24 << 20))) >$cgroup/helped/memory.max
(run_in helped 1000 {sys.executable} -S -c '{_HOG}')
record_cgroup cgroup.after
wait_for has_record alert.cgroup_oom helped

echo 8M >$cgroup/killed/memory.max
wait $killed
wait_for has_record vm.gone killed
record killed.events cat $cgroup/killed/memory.events

sync -f /tmp/xfs
sleep 12
kill -STOP $passed
sync -f /tmp/xfs
sleep 4
record quota xfs_quota -x -c 'report -p -b -n -N' /tmp/xfs
record metrics curl -s 127.0.0.1:9179/metrics
kill %1
wait %1
record done true
"""

_SERIES: Final = re.compile(r"qemu_(net_|pool_(size|used|free)_|block_space_(limit|used|free)|cgroup_oom|alert_firing)")
_RECORDS: Final = re.compile(r"qemu\.(alert\..*|vm\..*)")


def record(release: str) -> None:
    """Run the guest, and write what it recorded. Blocks.

    Args:
        release: the Debian release of the kernel.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        scratch, packages = Path(folder), Path(folder, "packages")
        packages.mkdir()
        unpack(release, ("linux-image-amd64", "linux-headers-amd64"), packages)
        module = build_module(packages / "built/root", _VF_COUNTERS, "vf_counters", scratch)
        recorded = run(packages / "built/root", module, scratch)
    recorded["about"] = f"A host with a kernel of Debian {release}, recorded by tests/lab/guest_host_recorder.py."
    name = f"guest_host/linux-{recorded['kernel'].partition('-')[0]}.json"
    golden_files.save(name, recorded)
    sys.stdout.write(f"tests/golden/{name}\n")


def run(kernel: Path, module: Path, scratch: Path) -> dict[str, Any]:
    """Run the guest, and return what it recorded. Blocks.

    Args:
        kernel: directory of the unpacked kernel package.
        module: the built module vf_counters.
        scratch: an existing directory for the guest's files.
    """
    out = scratch / "out"
    out.mkdir()
    (out / module.name).write_bytes(module.read_bytes())
    (out / "boot.raw").write_bytes(build_boot_sector(sectors_per_write=16, pause_us=_PAUSE_US).ljust(1 << 20, b"\0"))
    (out / "agent.yaml").write_text(_CONFIG)
    console = GuestHost(kernel, out, scratch).run(_SCRIPT, _SECONDS)
    assert (out / "done").exists(), console[-8000:]
    return _recording(out)


def _recording(out: Path) -> dict[str, Any]:
    def text(name: str) -> str:
        return (out / name).read_text()

    def encoded(name: str) -> str:
        return base64.b64encode((out / name).read_bytes()).decode()

    def cgroup(name: str) -> dict[str, str]:
        parts = (part.partition("\n") for part in text(name).split("=== ")[1:])
        return {file: content for file, _, content in parts}

    records = [json.loads(line) for line in text("records.jsonl").splitlines()]
    return {
        "about": "",
        "kernel": text("kernel").strip(),
        "qemu": text("qemu").splitlines()[0],
        "uncounted": {"ip": text("uncounted.ip"), "netlink": encoded("uncounted.netlink")},
        "counted": {"ip": text("counted.ip"), "netlink": encoded("counted.netlink")},
        "sysfs": sorted(text("sysfs").splitlines()),
        "interfaces": text("interfaces").split(),
        "descriptors": sorted(set(text("descriptors").splitlines())),
        "arguments": text("arguments").split("\0")[:-1],
        "cgroup": {"before": cgroup("cgroup.before"), "after": cgroup("cgroup.after")},
        "killed": text("killed.events"),
        "quota": text("quota"),
        "metrics": [line for line in text("metrics").splitlines() if _SERIES.match(line)],
        "records": [
            {key: each.get(key) for key in ("time", "type", "vmname", "subject", "data")}
            for each in records
            if _RECORDS.fullmatch(each["type"])
        ],
    }


if __name__ == "__main__":
    assert os.geteuid() == 0, "the recorder needs root"
    for debian_release in sys.argv[1:]:
        record(debian_release)
