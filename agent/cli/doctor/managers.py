"""Table of VM managers: how `doctor` recognises a manager's VMs, and which change lets the agent watch them. Pure.

The table matches the command lines of Proxmox VE 6 to 9, Ganeti 2.12 to 3.1, Incus 6 and 7, LXD 4 to 5, VDSM 4.5 and KubeVirt 1.x.
The page of each manager in docs/how-to/ lists what was tested.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from agent.host.socket_permissions import User
from agent.monitors.listen import DEFAULT_USERS

DEFAULT_LISTEN = "/run/qmp-agent/monitor.sock"
"""The agent's socket in the advice, if the agent's config has no `listen` entry."""


@dataclass(frozen=True, slots=True)
class VmManager:
    """A VM manager.

    Attributes:
        name: the manager's name.
        signature: a regular expression that identifies the manager's VMs by command line, config files or monitor paths.
        reserved_monitors: a regular expression for the addresses of monitors that the agent must not use. The manager needs them, even
            while it is not connected.
        steps: the change that lets the agent watch a VM, line by line. `manager_steps` replaces the placeholders.
        uri: the libvirt URI; empty if the manager does not use libvirt. If it is empty, the steps make QEMU connect to the agent.
        section: the section of docs/reference/monitors.md that explains the change.
        holds_monitors: whether the manager stays connected to its monitors, so that the agent cannot share them.
    """

    name: str
    signature: str
    reserved_monitors: str
    steps: tuple[str, ...]
    uri: str = ""
    section: str = "listen"
    holds_monitors: bool = False


_LIBVIRT_STEP = "in the agent's config; no restart and no taint:"

MANAGERS = (
    VmManager(
        "KubeVirt",
        r"manufacturer=KubeVirt|/var/run/kubevirt",
        r".",
        (
            "in the config of an agent that runs as root on this node, for all VMs of the node; no restart and no taint:",
            "  monitors:",
            "    - libvirt: auto",
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
            _LIBVIRT_STEP,
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
        (_LIBVIRT_STEP, "  monitors:", "    - libvirt: qemu:///system"),
        uri="qemu:///system",
        section="libvirt",
    ),
    VmManager(
        "Proxmox",
        r"/qemu-server/\d+\.(qmp|pid)",
        r"/qemu-server/|/qmeventd\.sock",
        (
            "as root on this node{keep_args}; then stop and start the VM:",
            "  qm set {vmid} --args {args}",
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
            "  incus config set {name} {project}raw.qemu='{chardev}'",
            "  incus config set {name} {project}raw.apparmor='{listen} rw,'",
        ),
        holds_monitors=True,
    ),
    VmManager(
        "unknown",
        r"",
        r"^$",
        ("start QEMU with these additional arguments:", "  {chardev}"),
    ),
)


def manager_of(argv: Sequence[str], files: Sequence[str] = (), paths: Sequence[str] = ()) -> VmManager:
    """Return the manager of a VM.

    Args:
        argv: the VM's command line.
        files: the texts of the config files that QEMU read.
        paths: the addresses of the VM's monitors.
    """
    text = " ".join((*argv, *files, *paths))
    return next(manager for manager in MANAGERS if re.search(manager.signature, text))


def proxmox_vmid(argv: Sequence[str]) -> str:
    """Return the VMID of a VM in Proxmox; the text `VMID` if the number is unknown."""
    match = re.search(r"/qemu-server/(\d+)\.", " ".join(argv))
    return match[1] if match else "VMID"


def incus_project(argv: Sequence[str]) -> str:
    """Return the project of a VM in Incus or LXD; empty for the default project.

    In any other project, the name of the VM's directory is the project, an underscore and the VM's name.
    """
    match = re.search(r"/([^/_ ]+)_[^/_ ]+/qemu\.(conf|pid)", " ".join(argv))
    return match[1] if match else ""


@dataclass(frozen=True, slots=True)
class VmFactsForAdvice:
    """The facts about a VM that determine the advice.

    Attributes:
        argv: QEMU's command line.
        name: the VM's name.
        pid: the pid of QEMU.
        owner: the user that QEMU runs as.
        args: the value of `args` in Proxmox' config of the VM; None if the config cannot be read.
    """

    argv: Sequence[str]
    name: str
    pid: int
    owner: User
    args: str | None = None


def manager_steps(manager: VmManager, vm: VmFactsForAdvice, listen: str, entry: Sequence[str]) -> list[str]:
    """Return the steps that add a monitor to a VM, or that let the agent watch the VM through libvirt.

    Args:
        manager: the VM's manager.
        vm: the VM.
        listen: the address that the agent listens on.
        entry: the config lines for this address; empty if the config already has these lines.
    """
    text = " ".join(vm.argv)
    reconnect = "reconnect-ms=5000" if "reconnect-ms=" in text else "reconnect=5"
    chardev = f"-chardev socket,id=qmp-agent,path={listen},{reconnect} -mon chardev=qmp-agent,mode=control"
    number, project = proxmox_vmid(vm.argv), incus_project(vm.argv)
    values = {
        "name": shlex.quote(vm.name),
        "project": f"--project {shlex.quote(project)} " if project else "",
        "vmid": number,
        "keep_args": f", with any `args` of `qm config {number}` kept in front" if vm.args is None else "",
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


def config_lines_of_listen_entry(vm: VmFactsForAdvice, listen: str, users: Sequence[str] | None = None) -> list[str]:
    """Return the lines of the agent's config that allow a VM to connect.

    Args:
        vm: the VM.
        listen: the address that the agent listens on.
        users: the users that the config already allows at this address; None if the config does not list users.
    """
    entry = ["  monitors:", f"    - listen: {listen}"]
    if users is not None or vm.owner.name not in ("", *DEFAULT_USERS):
        entry.append(f"      users: [{', '.join(dict.fromkeys([*(users or ['root']), vm.owner.name]))}]")
    return entry
