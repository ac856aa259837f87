"""Finds the smallest change that lets the agent watch a VM, and describes this change as steps for the operator.

The steps for each VM manager, such as Proxmox, are in the table `MANAGERS` of `managers`.
"""

from collections.abc import Iterable
from pathlib import Path

from agent.cli.doctor.addresses import dial_address
from agent.cli.doctor.managers import (
    DEFAULT_LISTEN,
    VmFactsForAdvice,
    VmManager,
    config_lines_of_listen_entry,
    manager_steps,
)
from agent.cli.doctor.model import HostToInspect, MonitorReport, MonitorSocketUse
from agent.host.socket_permissions import find_paths_denied_to_user, fix_commands
from agent.monitors import ListenConfig
from agent.monitors.listen import allowed_uids_and_gids

DIAL_PER_POLL_PREFIX = "dial_per_poll: "
_DIAL_PER_POLL_STEP = (
    "or without a restart, but without events before QEMU 11.1 (docs/reference/monitors.md#dial_per_poll and #hotplug):"
)
_CONFIG_STEP = "in the agent's config; no restart:"


def find_change_to_watch_vm(
    host: HostToInspect, manager: VmManager, vm: VmFactsForAdvice, monitors: Iterable[MonitorReport]
) -> tuple[str, list[str]]:
    """Find the smallest change that lets the agent watch a VM.

    Returns:
        The section of docs/reference/monitors.md that explains the change, and the steps, line by line.
    """
    monitors = list(monitors)
    for monitor in monitors:
        if monitor.used_by_manager or monitor.holder_pid is not None:
            continue
        if monitor.state is MonitorSocketUse.CONNECTS and (monitor.missing or not monitor.entry):
            return "listen", [_CONFIG_STEP, *_listen_steps(host, vm, monitor.address)]
        if monitor.state is MonitorSocketUse.FREE:
            entry = ["  monitors:", f"    - dial: {dial_address(monitor.address)}"]
            steps = [] if monitor.entry else [_CONFIG_STEP, *entry]
            return "dial", [*steps, *permission_steps(host, paths_blocking_dial(host, monitor.address))]
    listen = next((e.listen for e in host.config_monitors_entries if isinstance(e, ListenConfig)), DEFAULT_LISTEN)
    steps = manager_steps(manager, vm, listen, _listen_steps(host, vm, listen))
    shared = next((m.address for m in monitors if m.used_by_manager and m.state is MonitorSocketUse.FREE), None)
    if shared is not None and not manager.uri and not manager.holds_monitors:
        steps += [_DIAL_PER_POLL_STEP, "  monitors:", f"    - {DIAL_PER_POLL_PREFIX}{shared}"]
    return manager.section, steps


def permission_steps(host: HostToInspect, paths: Iterable[Path], *, recreated: bool = True) -> list[str]:
    """Return the commands that give the agent's user access to paths.

    Args:
        host: the host.
        paths: the files and directories to which the user has no access.
        recreated: whether each start of the VM creates the last path again. If so, the operator has to repeat the command.
    """
    commands = [command for path in paths for command in fix_commands(path, host.user, recreated=recreated)]
    return ["as root:", *(f"  {command}" for command in dict.fromkeys(commands))] if commands else []


def paths_blocking_dial(host: HostToInspect, address: str) -> list[Path]:
    """Return the directories and the socket whose permissions keep the agent's user from connecting to a monitor."""
    return find_paths_denied_to_user(address, host.user) if address.startswith("/") else []


def listen_entry_allows_vm(host: HostToInspect, entry: ListenConfig, vm: VmFactsForAdvice) -> bool:
    """Return whether a `listen` entry allows the user of a VM's process to connect."""
    uids, gids = allowed_uids_and_gids(entry, host.user.uid)
    return not vm.owner.name or vm.owner.uid in uids or not gids.isdisjoint(vm.owner.gids)


def _listen_steps(host: HostToInspect, vm: VmFactsForAdvice, listen: str) -> list[str]:
    """Return the config lines that let a VM connect to the agent's address; empty if the config already has these lines."""
    entry = next((e for e in host.config_monitors_entries if isinstance(e, ListenConfig) and e.listen == listen), None)
    if entry is not None and listen_entry_allows_vm(host, entry, vm):
        return []
    return config_lines_of_listen_entry(vm, listen, entry.users if entry is not None else None)
