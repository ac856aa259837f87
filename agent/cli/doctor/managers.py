"""What starts VMs, how it is recognised, and what has to be changed there for one to be watched: a row each. Pure.

The command lines are those of Proxmox VE 6 to 9, Ganeti 2.12 to 3.1, Incus 6 and LXD 4 to 5, VDSM 4.5 and KubeVirt 1.x; what a row says is
explained in docs/monitors.md, which says too what of it was tried.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from agent.host.permissions import User
from agent.monitors.listen import USUAL_USERS

LISTEN = "/run/qmp-agent/monitor.sock"
"""Where the agent is to listen, where its config does not say."""


@dataclass(frozen=True, slots=True)
class VmManager:
    """A kind of host.

    Attributes:
        name: as its makers write it.
        sign: a pattern in the command line of the VMs that it starts, or in the files that they read.
        own: a pattern of the monitors that it needs for itself, be they free at the moment or not.
        change: lines that tell a person what to do; {name}, {number}, {front}, {args}, {pid}, {uid}, {chardev}, {escaped} and
            {listen} are filled in.
        uri: how libvirt's name of it begins, where it is libvirt underneath; where not, what `change` says has QEMU call the agent.
        page: the section of docs/monitors.md.
    """

    name: str
    sign: str
    own: str
    change: tuple[str, ...]
    uri: str = ""
    page: str = "listen"


_LIBVIRT = "in the agent's config; no restart, and nothing is tainted:"

MANAGERS = (
    VmManager(
        "KubeVirt",
        r"manufacturer=KubeVirt|/var/run/kubevirt",
        r".",
        (
            "as root on this node, in the agent's config, for as long as the VM is here; nothing is tainted:",
            "  monitors:",
            "    - libvirt: qemu+unix:///session?socket=/proc/{pid}/root/var/run/libvirt/virtqemud-sock",
        ),
        uri="qemu+unix:///session",
        page="libvirt",
    ),
    VmManager(
        "VDSM",
        r"manufacturer=(oVirt|RHEV|Red Hat,product=RHEL)",
        r".",
        (
            "in the agent's config; no restart, and nothing is tainted; to do more than read takes a password of VDSM's:",
            "  monitors:",
            "    - libvirt: qemu:///system",
            "      read_only: true",
        ),
        uri="qemu:///system",
        page="libvirt",
    ),
    VmManager(
        "libvirt, of a user",
        r"/\.(config|cache|local)/[^ ]*libvirt/",
        r"/monitor\.sock$",
        (
            _LIBVIRT,
            "  monitors:",
            "    - libvirt: qemu+unix:///session?socket=/run/user/{uid}/libvirt/libvirt-sock",
        ),
        uri="qemu+unix:///session",
        page="libvirt",
    ),
    VmManager(
        "libvirt",
        r"id=charmonitor|/libvirt/qemu/",
        r"/monitor\.sock$",
        (_LIBVIRT, "  monitors:", "    - libvirt: qemu:///system"),
        uri="qemu:///system",
        page="libvirt",
    ),
    VmManager(
        "Proxmox",
        r"/qemu-server/\d+\.(qmp|pid)",
        r"/qemu-server/|/qmeventd\.sock",
        (
            "as root on this node{front}; then stop and start the VM:",
            "  qm set {number} --args {args}",
        ),
    ),
    VmManager(
        "Ganeti",
        r"/ganeti/kvm-hypervisor/",
        r"/ctrl/[^/]*\.qmp$",
        (
            "on the master node, with what `gnt-instance info {name}` shows as `kvm_extra` in front; then stop and start the VM:",
            "  gnt-instance modify -H 'kvm_extra={escaped}' {name}",
        ),
    ),
    VmManager(
        "Incus",
        r"/(incus|lxd)/[^ ]*qemu\.(conf|pid|monitor)",
        r"/qemu\.monitor$",
        (
            "with what these keys have already in front; then restart the VM (LXD: lxc instead of incus):",
            "  incus config set {name} raw.qemu='{chardev}'",
            "  incus config set {name} raw.apparmor='{listen} rw,'",
        ),
    ),
    VmManager(
        "none known",
        r"",
        r"^$",
        ("start QEMU with these arguments too:", "  {chardev}"),
    ),
)


def manager_of(argv: Sequence[str], files: Sequence[str] = (), paths: Sequence[str] = ()) -> VmManager:
    """Return who started a VM, by its command line, the files that it read and the paths of its monitors."""
    text = " ".join((*argv, *files, *paths))
    return next(manager for manager in MANAGERS if re.search(manager.sign, text))


def vmid(argv: Sequence[str]) -> str:
    """Return Proxmox' number of a VM."""
    found = re.search(r"/qemu-server/(\d+)\.", " ".join(argv))
    return found[1] if found else "VMID"


@dataclass(frozen=True, slots=True)
class VmContext:
    """A VM that a change is for.

    Attributes:
        argv: its command line.
        name: its name.
        pid: its process.
        owner: whose that is.
        args: arguments that its manager adds for a person already; None where that is not known.
    """

    argv: Sequence[str]
    name: str
    pid: int
    owner: User
    args: str | None = None


def change(manager: VmManager, case: VmContext, listen: str, entry: Sequence[str]) -> list[str]:
    """Return what a person is to do for a VM whose monitors are all taken.

    Args:
        manager: who started it.
        case: the VM.
        listen: where the agent listens, or is to listen.
        entry: what its config takes for that, line by line; empty where it has all of it.
    """
    text = " ".join(case.argv)
    reconnect = "reconnect-ms=5000" if "reconnect-ms=" in text else "reconnect=5"
    chardev = f"-chardev socket,id=qmp-agent,path={listen},{reconnect} -mon chardev=qmp-agent,mode=control"
    number = vmid(case.argv)
    given = {
        "name": shlex.quote(case.name),
        "number": number,
        "front": f", with what `qm config {number}` shows as `args` in front" if case.args is None else "",
        "args": shlex.quote(f"{case.args or ''} {chardev}".strip()),
        "pid": case.pid,
        "uid": case.owner.uid,
        "chardev": chardev,
        "escaped": chardev.replace(",", r"\,"),
        "listen": listen,
    }
    lines = [line.format(**given) for line in manager.change]
    if not manager.uri and "reconnect-ms=" not in text:
        lines.append("  (QEMU 9.2 and newer: reconnect-ms=5000 in place of reconnect=5)")
    if entry and not manager.uri:
        lines += ["and in the agent's config:", *entry]
    return lines


def listen_entry(case: VmContext, listen: str, users: Sequence[str] | None = None) -> list[str]:
    """Return the lines of the config that let a VM call; `users` are those that it names already."""
    entry = ["  monitors:", f"    - listen: {listen}"]
    if users is not None or case.owner.name not in ("", *USUAL_USERS):
        entry.append(f"      users: [{', '.join(dict.fromkeys([*(users or ['root']), case.owner.name]))}]")
    return entry
