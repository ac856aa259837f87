"""Inspects each QEMU process of a host: its monitors, their clients, and whether the agent can watch the VM. Blocks."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from agent.cli.doctor.addresses import entry_matches_monitor, libvirt_driver_and_path, socket_table_address
from agent.cli.doctor.advice import (
    DIAL_PER_POLL_PREFIX,
    find_change_to_watch_vm,
    listen_entry_allows_vm,
    paths_blocking_dial,
    permission_steps,
)
from agent.cli.doctor.argv import MonitorSocket, parse_argv, readconfig_paths
from agent.cli.doctor.managers import VmFactsForAdvice, manager_of, proxmox_vmid
from agent.cli.doctor.model import HostToInspect, MonitorReport, MonitorSocketUse, VmReport, VmWatchState
from agent.cli.doctor.network_devices import describe_network_devices_without_tap
from agent.host import qemu_processes
from agent.host.qemu_processes import read_command_line
from agent.host.socket_permissions import describe_denial, read_process_user
from agent.host.unix_and_tcp_sockets import (
    AGENT_PROGRAM_NAME,
    ESTABLISHED,
    SocketTableEntry,
    find_pids_by_socket_inode,
    is_agent_process,
    program_name,
    socket_inodes,
)
from agent.model.record import sanitize
from agent.monitors import LibvirtConfig, ListenConfig
from agent.monitors.libvirt.config import AUTO

MAX_STEP_CHARACTERS = 16_384
"""Maximum length of a line of advice. Longer lines are truncated. No manager's command is that long."""

_DESCRIPTOR_PATH = re.compile(r"/proc/self/fd/([0-9]{1,9})/(.+)")

_LIBVIRT_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")


def inspect_host(host: HostToInspect, pattern: str = "*") -> list[VmReport]:
    """Inspect each QEMU process of the host whose VM's name or UUID matches a pattern, such as `web-*`.

    Returns:
        The reports, sorted by name.
    """
    all_vms = [_VmInspector(pid, host) for pid in qemu_processes.list_qemu_pids(host.proc)]
    selected = [vm for vm in all_vms if vm.matches_name_or_uuid(pattern)]
    holders = find_pids_by_socket_inode(
        {entry.peer for vm in selected for entry in vm.established_sockets_of_qemu()}, host.proc
    )
    reports = (
        replace(
            vm.build_report(holders),
            same_uuid=vm.describe_vms_with_same_uuid(all_vms, migrating=False),
            migration_ends=vm.describe_vms_with_same_uuid(all_vms, migrating=True),
        )
        for vm in selected
    )
    return sorted(reports, key=lambda report: (report.name, report.pid))


class _VmInspector:
    """Inspects one QEMU process.

    Attributes:
        vm: the facts about the VM that advice depends on.
        uuid: the VM's UUID; empty if the command line does not have it.
        incoming: whether QEMU was started with `-incoming`, to wait for a migration.
        start: sort key that orders the processes by their start times.
    """

    def __init__(self, pid: int, host: HostToInspect) -> None:
        argv = read_command_line(pid, host.proc)
        files = [_read_config_file(path, pid, host.proc) for path in readconfig_paths(argv)]
        line = parse_argv(argv, files)
        self._host = host
        self._line = line
        self.uuid = sanitize(line.uuid)
        self.incoming = line.incoming
        self.start = qemu_processes.start_ticks(pid, host.proc), pid
        name, args = sanitize(line.name or f"pid {pid}"), _read_proxmox_args(argv, host.root)
        self.vm = VmFactsForAdvice(argv, name, pid, read_process_user(pid, host.proc), args)
        self._inodes = socket_inodes(pid, host.proc)
        self._monitors = [(monitor, self._address_of(monitor)) for monitor in line.monitors]
        self._manager = manager_of(argv, files, [address for _, address in self._monitors])

    def matches_name_or_uuid(self, pattern: str) -> bool:
        """Return whether the VM's name or UUID matches a pattern."""
        return fnmatchcase(self.vm.name, pattern) or fnmatchcase(self.uuid, pattern)

    def describe_vms_with_same_uuid(self, others: Iterable["_VmInspector"], *, migrating: bool) -> tuple[str, ...]:
        """Return the names and pids of other processes with this VM's UUID.

        Args:
            others: all processes.
            migrating: True selects the processes that may be the other end of a migration within this host. False selects all others.
                The destination of a migration has the option `-incoming`, and starts later than the source.
        """
        sharing = (vm for vm in others if vm is not self and self.uuid and vm.uuid == self.uuid)
        chosen = (vm for vm in sharing if max(vm, self, key=lambda end: end.start).incoming is migrating)
        return tuple(f"{vm.vm.name} (pid {vm.vm.pid})" for vm in chosen)

    def established_sockets_of_qemu(self) -> Iterator[SocketTableEntry]:
        """Yield this process's socket of each established connection. Monitors that were added after QEMU's start are included.

        Yield the established sockets of all processes if the descriptors of this process cannot be read.
        """
        table = self._host.socket_table
        inodes = table.keys() if self._inodes is None else self._inodes.values()
        yield from (entry for inode in inodes if (entry := table.get(inode)) and entry.state == ESTABLISHED)

    def build_report(self, holders: Mapping[int, int]) -> VmReport:
        """Return the report on this VM.

        Args:
            holders: the pids of the processes that own the peer sockets of connections, by the peer socket's inode.
        """
        monitors = tuple(self._inspect_monitor(monitor, address, holders) for monitor, address in self._monitors)
        monitors += tuple(self._hotplugged_monitors(holders))
        held_by_agent = next((m for m in monitors if self._is_agent(m.holder_pid)), None)
        reachable = held_by_agent or next((m for m in monitors if m.entry and not m.missing and _can_connect(m)), None)
        libvirt = self._find_libvirt_entry()
        blocked = self._paths_blocking_libvirt(libvirt) if libvirt is not None else []
        if reachable is not None:
            state, entry = (
                VmWatchState.WATCHED if held_by_agent is not None else VmWatchState.CONFIGURED,
                reachable.entry,
            )
        elif libvirt is not None:
            state, entry = VmWatchState.UNWATCHED if blocked else VmWatchState.CONFIGURED, f"libvirt: {libvirt.libvirt}"
        else:
            state, entry = VmWatchState.UNWATCHED, next((m.entry for m in monitors if m.entry), "")
        if state is VmWatchState.UNWATCHED and not self._host.is_root and any(map(_is_held_by_unknown, monitors)):
            state = VmWatchState.UNKNOWN
        section, steps = self._manager.section, list[str]()
        if state is VmWatchState.UNWATCHED and blocked:
            steps = permission_steps(self._host, blocked, recreated=False)
        elif state is VmWatchState.UNWATCHED:
            section, steps = find_change_to_watch_vm(self._host, self._manager, self.vm, monitors)
        return VmReport(
            self.vm.name,
            self.uuid,
            self.vm.pid,
            self._manager.name,
            state,
            sanitize(entry),
            self._describe_denial(blocked),
            monitors,
            tuple(sanitize(step, MAX_STEP_CHARACTERS) for step in steps),
            section,
            network=describe_network_devices_without_tap(self._line, self.vm.pid, self._host.proc.parent),
        )

    def _inspect_monitor(self, monitor: MonitorSocket, address: str, holders: Mapping[int, int]) -> MonitorReport:
        shown = sanitize(address or f"descriptor {monitor.fd}")
        used = re.search(self._manager.reserved_monitors, address) is not None
        entry = next(
            (entry for entry in self._host.config_monitors_entries if entry_matches_monitor(entry, monitor, address)),
            None,
        )
        text = str(entry) if entry is not None else ""
        if not address or not self._host.socket_table:
            return MonitorReport(shown, MonitorSocketUse.UNKNOWN, entry=text, used_by_manager=used)
        connections = list(self._connections_of(monitor, address))
        pid = next((holders[entry.peer] for entry in connections if entry.peer in holders), None)
        state = MonitorSocketUse.HELD if connections else MonitorSocketUse.FREE
        state = MonitorSocketUse.CONNECTS if monitor.connects else state
        may_connect = entry is not None or (state is MonitorSocketUse.FREE and not used)
        missing = (
            self._describe_denial(paths_blocking_dial(self._host, address))
            if may_connect and not monitor.connects
            else ""
        )
        if isinstance(entry, ListenConfig) and not listen_entry_allows_vm(self._host, entry, self.vm):
            missing = f"the agent refuses connections of the processes of {self.vm.owner.name}"
        holder = sanitize(program_name(read_command_line(pid, self._host.proc))) if pid is not None else ""
        return MonitorReport(shown, state, holder, pid, missing, text, used)

    def _describe_denial(self, blocked: Sequence[Path]) -> str:
        return sanitize(describe_denial(blocked[0], self._host.user)) if blocked else ""

    def _find_libvirt_entry(self) -> LibvirtConfig | None:
        """Return the config entry for the libvirtd of the VM, or None."""
        uri = self._manager.uri
        entries = (entry for entry in self._host.config_monitors_entries if uri and isinstance(entry, LibvirtConfig))
        instances = {AUTO, libvirt_driver_and_path(uri)}
        return next((entry for entry in entries if libvirt_driver_and_path(entry.libvirt) in instances), None)

    def _paths_blocking_libvirt(self, entry: LibvirtConfig) -> list[Path]:
        """Return the paths whose permissions keep the agent's user from connecting to a libvirtd."""
        if entry.libvirt == AUTO:
            return []
        in_uri = parse_qs(urlsplit(entry.libvirt).query).get("socket", [])
        path = next((path for path in in_uri or _LIBVIRT_SOCKETS if Path(path).is_socket()), None)
        return paths_blocking_dial(self._host, f"{path}-ro" if entry.read_only and not in_uri else path) if path else []

    def _address_of(self, monitor: MonitorSocket) -> str:
        """Return the address of a monitor; empty if unknown. The kernel's socket table has the address of an inherited descriptor."""
        if monitor.fd is None:
            return self._resolve_descriptor(monitor.path) or f"tcp:{monitor.tcp}"
        entry = self._host.socket_table.get((self._inodes or {}).get(monitor.fd, 0))
        return entry.address if entry is not None else ""

    def _resolve_descriptor(self, path: str) -> str:
        """Return a path in which `/proc/self/fd/N` is replaced by the directory that descriptor N of the process has open.

        Incus gives QEMU such a path, because the path of a Unix socket has at most 107 characters.
        """
        match = _DESCRIPTOR_PATH.fullmatch(path)
        if match is None:
            return path
        try:
            folder = (self._host.proc / str(self.vm.pid) / "fd" / match[1]).readlink()
        except OSError:
            return path
        return str(folder / match[2]) if folder.is_absolute() else path

    def _connections_of(self, monitor: MonitorSocket, address: str) -> Iterator[SocketTableEntry]:
        """Yield QEMU's socket of each connection of a monitor."""
        key = _table_key(monitor, address)
        for entry in self.established_sockets_of_qemu():
            peer = self._host.socket_table.get(entry.peer)
            remote = entry.remote or (peer.address if peer is not None else "")
            if key and key == (remote if monitor.connects else entry.address):
                yield entry

    def _hotplugged_monitors(self, holders: Mapping[int, int]) -> Iterator[MonitorReport]:
        """Yield the monitors that a running agent has hot-plugged into QEMU."""
        keys = {_table_key(monitor, address) for monitor, address in self._monitors}
        for entry in self.established_sockets_of_qemu() if self._inodes is not None else ():
            pid = holders.get(entry.peer)
            if pid is not None and entry.address.startswith("/") and entry.address not in keys and self._is_agent(pid):
                yield MonitorReport(sanitize(entry.address), MonitorSocketUse.HELD, AGENT_PROGRAM_NAME, pid)

    def _is_agent(self, pid: int | None) -> bool:
        return pid is not None and is_agent_process(pid, self._host.proc)


def _table_key(monitor: MonitorSocket, address: str) -> str:
    """Return a monitor's address in the form of the kernel's socket table: the path with which QEMU created the socket, or `tcp:PORT`."""
    return socket_table_address(monitor.path or address)


def _is_held_by_unknown(monitor: MonitorReport) -> bool:
    """Return whether a process that doctor cannot see is the client of a monitor."""
    return monitor.state is MonitorSocketUse.HELD and monitor.holder_pid is None


def _can_connect(monitor: MonitorReport) -> bool:
    """Return whether the agent can connect to a configured monitor. If another client is connected, only a `dial_per_poll` entry works."""
    return monitor.state is not MonitorSocketUse.HELD or monitor.entry.startswith(DIAL_PER_POLL_PREFIX)


def _read_proxmox_args(argv: Sequence[str], root: Path) -> str | None:
    """Return the value of `args` in Proxmox' config of the VM; empty if not set, None if the config cannot be read."""
    path = root / "etc/pve/qemu-server" / f"{proxmox_vmid(argv)}.conf"
    lines = qemu_processes.read_file(path).decode("utf-8", "replace").splitlines()
    current = takewhile(lambda line: not line.startswith("["), lines)  # the sections of the snapshots follow
    args = (line.removeprefix("args:").strip() for line in current if line.startswith("args:"))
    return next(args, "") if lines else None


def _read_config_file(path: str, pid: int, proc: Path) -> str:
    """Return the text of a file in a process's mount namespace; empty if the file is not regular or cannot be read."""
    path_in_process = proc / str(pid) / (f"root{path}" if path.startswith("/") else f"cwd/{path}")
    try:
        # O_PATH does not open the file itself. Opening a device can have side effects.
        descriptor = os.open(path_in_process, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return qemu_processes.read_file(f"/proc/self/fd/{descriptor}").decode("utf-8", "replace") if is_regular else ""
    finally:
        os.close(descriptor)
