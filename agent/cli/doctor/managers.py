"""Table of VM managers: how doctor recognises each one, and the change that lets the agent watch its VMs. Pure.

The command lines are those of Proxmox VE 6 to 9, Ganeti 2.12 to 3.1, Incus 6 and LXD 4 to 5, VDSM 4.5 and KubeVirt 1.x. docs/monitors.md
explains the changes and lists which of them were tested.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from agent.host.permissions import User
from agent.monitors.listen import USUAL_USERS

DEFAULT_LISTEN = "/run/qmp-agent/monitor.sock"
"""The socket for the agent to listen on, if its config has no `listen` entry."""


@dataclass(frozen=True, slots=True)
class VmManager:
    """A VM manager.

    Attributes:
        name: its name.
        signature: a pattern that the command lines of its VMs match, or the files that they read.
        own: a pattern of the monitors that the manager needs, even if they are free now.
        steps: what to do, line by line, with the placeholders {name}, {number}, {front}, {args}, {pid}, {uid}, {chardev}, {escaped} and
            {listen}.
        uri: the libvirt URI, if it is based on libvirt. Otherwise the steps have QEMU connect to the agent.
        section: the section of docs/monitors.md.
    """

    name: str
    signature: str
    own: str
    steps: tuple[str, ...]
    uri: str = ""
    section: str = "listen"


_LIBVIRT = "in the agent's config; no restart and no taint:"

MANAGERS = (
    VmManager(
        "KubeVirt",
        r"manufacturer=KubeVirt|/var/run/kubevirt",
        r".",
        (
            "as root on this node, in the agent's config, while the VM runs here; no taint:",
            "  monitors:",
            "    - libvirt: qemu+unix:///session?socket=/proc/{pid}/root/var/run/libvirt/virtqemud-sock",
        ),
        uri="qemu+unix:///session",
        section="libvirt",
    ),
    VmManager(
        "VDSM",
        r"manufacturer=(oVirt|RHEV|Red Hat,product=RHEL)",
        r".",
        (
            "in the agent's config; no restart and no taint (more than reading needs a VDSM password):",
            "  monitors:",
            "    - libvirt: qemu:///system",
            "      read_only: true",
        ),
        uri="qemu:///system",
        section="libvirt",
    ),
    VmManager(
        "libvirt session",
        r"/\.(config|cache|local)/[^ ]*libvirt/",
        r"/monitor\.sock$",
        (
            _LIBVIRT,
            "  monitors:",
            "    - libvirt: qemu+unix:///session?socket=/run/user/{uid}/libvirt/libvirt-sock",
        ),
        uri="qemu+unix:///session",
        section="libvirt",
    ),
    VmManager(
        "libvirt",
        r"id=charmonitor|/libvirt/qemu/",
        r"/monitor\.sock$",
        (_LIBVIRT, "  monitors:", "    - libvirt: qemu:///system"),
        uri="qemu:///system",
        section="libvirt",
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
            "on the master node, with any `kvm_extra` of `gnt-instance info {name}` kept in front; then stop and start the VM:",
            "  gnt-instance modify -H 'kvm_extra={escaped}' {name}",
        ),
    ),
    VmManager(
        "Incus",
        r"/(incus|lxd)/[^ ]*qemu\.(conf|pid|monitor)",
        r"/qemu\.monitor$",
        (
            "with the present values of these keys kept in front; then restart the VM (LXD: lxc instead of incus):",
            "  incus config set {name} raw.qemu='{chardev}'",
            "  incus config set {name} raw.apparmor='{listen} rw,'",
        ),
    ),
    VmManager(
        "unknown",
        r"",
        r"^$",
        ("start QEMU with these additional arguments:", "  {chardev}"),
    ),
)


def manager_of(argv: Sequence[str], files: Sequence[str] = (), paths: Sequence[str] = ()) -> VmManager:
    """Return the manager of a VM by its command line, the files that it read and the paths of its monitors."""
    text = " ".join((*argv, *files, *paths))
    return next(manager for manager in MANAGERS if re.search(manager.signature, text))


def vmid(argv: Sequence[str]) -> str:
    """Return the number of a VM in Proxmox."""
    match = re.search(r"/qemu-server/(\d+)\.", " ".join(argv))
    return match[1] if match else "VMID"


@dataclass(frozen=True, slots=True)
class VmContext:
    """The VM that steps are for.

    Attributes:
        argv: its command line.
        name: its name.
        pid: its process.
        owner: the user of that process.
        args: the custom arguments that its manager adds already; None if they are unknown.
    """

    argv: Sequence[str]
    name: str
    pid: int
    owner: User
    args: str | None = None


def manager_steps(manager: VmManager, vm: VmContext, listen: str, entry: Sequence[str]) -> list[str]:
    """Return the steps that give a VM another monitor, or that let the agent watch it over libvirtd.

    Args:
        manager: the VM's manager.
        vm: the VM.
        listen: the address that the agent listens on.
        entry: the config lines for that address; empty if the config has them.
    """
    text = " ".join(vm.argv)
    reconnect = "reconnect-ms=5000" if "reconnect-ms=" in text else "reconnect=5"
    chardev = f"-chardev socket,id=qmp-agent,path={listen},{reconnect} -mon chardev=qmp-agent,mode=control"
    number = vmid(vm.argv)
    values = {
        "name": shlex.quote(vm.name),
        "number": number,
        "front": f", with any `args` of `qm config {number}` kept in front" if vm.args is None else "",
        "args": shlex.quote(f"{vm.args or ''} {chardev}".strip()),
        "pid": vm.pid,
        "uid": vm.owner.uid,
        "chardev": chardev,
        "escaped": chardev.replace(",", r"\,"),
        "listen": listen,
    }
    lines = [line.format(**values) for line in manager.steps]
    if not manager.uri and "reconnect-ms=" not in text:
        lines.append("  (QEMU 9.2 and newer: reconnect-ms=5000 instead of reconnect=5)")
    if entry and not manager.uri:
        lines += ["and in the agent's config:", *entry]
    return lines


def listen_entry(vm: VmContext, listen: str, users: Sequence[str] | None = None) -> list[str]:
    """Return the config lines that let a VM connect.

    Args:
        vm: the VM.
        listen: the address.
        users: the users that the config allows already, or None.
    """
    entry = ["  monitors:", f"    - listen: {listen}"]
    if users is not None or vm.owner.name not in ("", *USUAL_USERS):
        entry.append(f"      users: [{', '.join(dict.fromkeys([*(users or ['root']), vm.owner.name]))}]")
    return entry
