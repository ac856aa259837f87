"""Looking at the QEMUs of a host, and saying what was found."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePath
from urllib.parse import parse_qs, urlsplit

from agent.cli.doctor.argv import Socket, config_files, parse_argv
from agent.cli.doctor.managers import LISTEN, VmContext, change, listen_entry, manager_of, vmid
from agent.config.model import Config
from agent.host import qemu_processes
from agent.host.permissions import User, blocked_paths, describe_denial, fix_commands, process_user
from agent.host.qemu_processes import PROC, arguments
from agent.host.sockets import (
    ESTABLISHED,
    SocketEntry,
    Table,
    is_agent,
    list_sockets,
    normalize_path,
    program_name,
    socket_inodes,
    socket_owners,
)
from agent.model.record import sanitize
from agent.monitors import DiscovererConfig, LibvirtConfig, ListenConfig
from agent.monitors.listen import allowed_ids

WATCHED = "watched"
CONFIGURED = "configured"
UNWATCHED = "unwatched"

MOST_CHARACTERS = 16_384
"""Of a line that is to be run: what is longer is cut, and no command line of a VM's manager is."""

_LOCAL = frozenset({"", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1"})  # noqa: S104 - compared, not bound
_LIBVIRT_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """One monitor of a VM.

    Attributes:
        address: its path, or tcp:host:port, or what is known of it.
        state: `free`, `held`, `calls` (QEMU connects to whoever listens there) or `unknown`.
        holder: who holds it, or listens where it calls: a program's name, or empty.
        holder_pid: its process, or None.
        missing: which permission the agent's user lacks, or empty.
        way: the entry of the config that leads to it, or empty.
        managers: whether the VM's manager needs it for itself.
    """

    address: str
    state: str
    holder: str = ""
    holder_pid: int | None = None
    missing: str = ""
    way: str = ""
    managers: bool = False


@dataclass(frozen=True, slots=True)
class VmReport:
    """One VM.

    Attributes:
        name, uuid, pid: whose; name and uuid as its command line has them.
        manager: who started it.
        state: `watched` (the agent holds one of its monitors), `configured` (the config leads to it and nothing is in the way) or
            `unwatched`.
        way: the entry of the config that leads to it, or empty.
        missing: which permission the agent's user lacks with its manager, or empty.
        monitors: its monitors for QMP.
        change: what a person is to do to have it watched, line by line; empty where nothing.
        page: where docs/monitors.md says more.
    """

    name: str
    uuid: str
    pid: int
    manager: str
    state: str
    way: str
    missing: str
    monitors: tuple[MonitorReport, ...]
    change: tuple[str, ...]
    page: str


@dataclass(frozen=True)
class HostView:
    """What is looked at.

    Attributes:
        user: whom the agent runs as.
        config: its config, where there is one.
        root: where /etc is.
        proc: /proc.
        table: this host's sockets.
    """

    user: User
    config: Config | None = None
    root: Path = Path("/")
    proc: Path = PROC
    table: Table = field(default_factory=list_sockets)

    @property
    def entries(self) -> Sequence[DiscovererConfig]:
        """The config's ways."""
        return self.config.monitors if self.config is not None else ()


def inspect_host(sight: HostView, wanted: str = "*") -> list[VmReport]:
    """Return what there is to say of each QEMU whose name or UUID fits a pattern, by name. Blocks: it reads /proc."""
    vms = [vm for pid in qemu_processes.list_qemus(sight.proc) if (vm := _VmInspector(pid, sight)).is_called(wanted)]
    holders = socket_owners({entry.peer for vm in vms for entry in vm.connections()}, sight.proc)
    return sorted((vm.report(holders) for vm in vms), key=lambda report: (report.name, report.pid))


class _VmInspector:
    """One QEMU's process as it was found."""

    def __init__(self, pid: int, sight: HostView) -> None:
        argv = arguments(pid, sight.proc)
        files = [_config_file(path, pid, sight.proc) for path in config_files(argv)]
        line = parse_argv(argv, files)
        self._sight = sight
        self._uuid = sanitize(line.uuid)
        name, args = sanitize(line.name or f"pid {pid}"), _given(argv, sight.root)
        self._case = VmContext(argv, name, pid, process_user(pid, sight.proc), args)
        self._inodes = socket_inodes(pid, sight.proc)
        self._monitors = [(monitor, self._address(monitor)) for monitor in line.monitors]
        self._manager = manager_of(argv, files, [address for _, address in self._monitors])

    def is_called(self, wanted: str) -> bool:
        """Return whether a pattern is for this VM."""
        return fnmatchcase(self._case.name, wanted) or fnmatchcase(self._uuid, wanted)

    def connections(self) -> Iterator[SocketEntry]:
        """Yield its ends of connections: to its monitors, and whatever else may be to a monitor that was added since it started."""
        inodes = self._sight.table.keys() if self._inodes is None else self._inodes.values()
        yield from (entry for inode in inodes if (entry := self._sight.table.get(inode)) and entry.state == ESTABLISHED)

    def report(self, holders: Mapping[int, int]) -> VmReport:
        """Return what there is to say of it."""
        monitors = tuple(self._monitor(monitor, address, holders) for monitor, address in self._monitors)
        monitors += tuple(self._added(holders, {monitor.address for monitor in monitors}))
        held = next((m for m in monitors if self._is_agent(m.holder_pid)), None)
        lead = held or next((m for m in monitors if m.way and not m.missing and _open(m)), None)
        entry = self._by_manager()
        blocked = self._libvirt_obstacles(entry) if entry is not None else []
        if lead is not None:
            state, way = WATCHED if held is not None else CONFIGURED, lead.way
        elif entry is not None:
            state, way = UNWATCHED if blocked else CONFIGURED, f"libvirt: {entry.libvirt}"
        else:
            state, way = UNWATCHED, next((m.way for m in monitors if m.way), "")
        page, advice = self._manager.page, list[str]()
        if state == UNWATCHED:
            page, advice = (page, self._mend(blocked, recreated=False)) if blocked else self._advice(monitors)
        case, manager = self._case, self._manager.name
        missing = sanitize(describe_denial(blocked[0], self._sight.user)) if blocked else ""
        lines = tuple(sanitize(text, MOST_CHARACTERS) for text in advice)
        return VmReport(case.name, self._uuid, case.pid, manager, state, sanitize(way), missing, monitors, lines, page)

    def _advice(self, monitors: Iterable[MonitorReport]) -> tuple[str, list[str]]:
        """Return what is to be done, the least first, and where docs/monitors.md says more."""
        for monitor in monitors:
            if monitor.managers or monitor.holder_pid is not None:
                continue
            if monitor.state == "calls" and (monitor.missing or not monitor.way):
                return "listen", [_NO_RESTART, *self._door(monitor.address)]
            if monitor.state == "free":
                entry = [] if monitor.way else [_NO_RESTART, "  monitors:", f"    - dial: {_near(monitor.address)}"]
                return "dial", [*entry, *self._mend(self._obstacles(monitor.address))]
        listen = next((e.listen for e in self._sight.entries if isinstance(e, ListenConfig)), LISTEN)
        lines = change(self._manager, self._case, listen, self._door(listen))
        lent = next((m.address for m in monitors if m.managers and m.state == "free" and not self._manager.uri), None)
        if lent is not None:
            lines += [_LENT, "  monitors:", f"    - {_BURST}{lent}"]
        return self._manager.page, lines

    def _door(self, listen: str) -> list[str]:
        """Return what the config takes for this VM to call there, line by line; empty where it has all of it."""
        entry = next((e for e in self._sight.entries if isinstance(e, ListenConfig) and e.listen == listen), None)
        if entry is not None and self._is_let_in(entry):
            return []
        return listen_entry(self._case, listen, entry.users if entry is not None else None)

    def _is_let_in(self, entry: ListenConfig) -> bool:
        uids, gids = allowed_ids(entry, self._sight.user.uid)
        owner = self._case.owner
        return not owner.name or owner.uid in uids or not gids.isdisjoint(owner.gids)

    def _mend(self, places: Iterable[Path], *, recreated: bool = True) -> list[str]:
        commands = [
            command for place in places for command in fix_commands(place, self._sight.user, recreated=recreated)
        ]
        return ["as root:", *(f"  {command}" for command in dict.fromkeys(commands))] if commands else []

    def _obstacles(self, address: str) -> list[Path]:
        """Return what is in the way to a monitor."""
        return blocked_paths(address, self._sight.user) if address.startswith("/") else []

    def _monitor(self, monitor: Socket, address: str, holders: Mapping[int, int]) -> MonitorReport:
        shown = sanitize(address or f"descriptor {monitor.fd}")
        own = re.search(self._manager.own, address) is not None
        entry, way = next(
            ((entry, text) for entry in self._sight.entries if (text := _leads(entry, monitor, address))), (None, "")
        )
        if not address or not self._sight.table:
            return MonitorReport(shown, "unknown", way=way, managers=own)
        connections = list(self._connections(monitor, address))
        pid = next((holders[entry.peer] for entry in connections if entry.peer in holders), None)
        state = "calls" if monitor.calls else "held" if connections else "free"
        blocked = self._obstacles(address) if not monitor.calls and (way or (state == "free" and not own)) else []
        missing = sanitize(describe_denial(blocked[0], self._sight.user)) if blocked else ""
        if isinstance(entry, ListenConfig) and not self._is_let_in(entry):
            missing = f"the agent lets in no process of {self._case.owner.name}"
        holder = sanitize(program_name(arguments(pid, self._sight.proc))) if pid is not None else ""
        return MonitorReport(shown, state, holder, pid, missing, way, managers=own)

    def _by_manager(self) -> LibvirtConfig | None:
        """Return the entry of the config that leads to its manager."""
        uri = self._manager.uri
        entries = (entry for entry in self._sight.entries if uri and isinstance(entry, LibvirtConfig))
        return next((entry for entry in entries if _plain_uri(entry.libvirt) == _plain_uri(uri)), None)

    def _libvirt_obstacles(self, entry: LibvirtConfig) -> list[Path]:
        """Return what is in the way to the socket of a libvirtd."""
        given = parse_qs(urlsplit(entry.libvirt).query).get("socket", [])
        path = next((path for path in given or _LIBVIRT_SOCKETS if Path(path).is_socket()), None)
        return self._obstacles(f"{path}-ro" if entry.read_only and not given else path) if path else []

    def _address(self, monitor: Socket) -> str:
        """Return where a monitor is; of one that was passed as a descriptor, what the kernel says. Empty where that is not known."""
        if monitor.fd is None:
            return monitor.path or f"tcp:{monitor.tcp}"
        entry = self._sight.table.get((self._inodes or {}).get(monitor.fd, 0))
        return entry.address if entry is not None else ""

    def _connections(self, monitor: Socket, address: str) -> Iterator[SocketEntry]:
        """Yield this process's ends of connections to an address, or of those from it."""
        key = _key(address)
        for entry in self.connections():
            there = self._sight.table.get(entry.peer)
            at = (entry.remote or (there.address if there is not None else "")) if monitor.calls else entry.address
            if key and at == key:
                yield entry

    def _added(self, holders: Mapping[int, int], known: Iterable[str]) -> Iterator[MonitorReport]:
        """Yield the monitors that the agent has had QEMU add."""
        keys = {_key(address) for address in known}
        for entry in self.connections() if self._inodes is not None else ():
            pid = holders.get(entry.peer)
            if pid is not None and entry.address.startswith("/") and entry.address not in keys and self._is_agent(pid):
                yield MonitorReport(sanitize(entry.address), "held", "qmp-agent", pid)

    def _is_agent(self, pid: int | None) -> bool:
        return pid is not None and is_agent(pid, self._sight.proc)


def _key(address: str) -> str:
    """Return an address as the table of sockets has it."""
    return f"tcp:{address.rpartition(':')[2]}" if address.startswith("tcp:") else normalize_path(address)


def _near(address: str) -> str:
    """Return where the agent finds a monitor: one that listens at every address of this host, at its loopback."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return f"tcp:127.0.0.1:{port}" if address.startswith("tcp:") and host.strip("[]") in _LOCAL else address


def _plain_uri(uri: str) -> str:
    """Return what tells one libvirtd of this host from another: `qemu/system` or `qemu/session`, by whichever transport."""
    parts = urlsplit(uri)
    return parts.scheme.partition("+")[0] + parts.path


def _leads(entry: DiscovererConfig, monitor: Socket, address: str) -> str:
    """Return an entry of the config as a person would write it, if it leads to a monitor."""
    leads = entry.inbound == monitor.calls and any(_reaches(one, address) for one in entry.addresses)
    return str(entry) if leads else ""


def _open(monitor: MonitorReport) -> bool:
    """Return whether the entry that leads to a monitor gets in: one that visits waits for its turn."""
    return monitor.state != "held" or monitor.way.startswith(_BURST)


def _reaches(entry: str, address: str) -> bool:
    """Return whether an address of the config is that of a monitor."""
    if not entry.startswith("tcp:") or not address.startswith("tcp:"):
        return PurePath(normalize_path(address)).match(normalize_path(entry)) if address else False
    hosts = {text.removeprefix("tcp:").rpartition(":")[0].strip("[]") for text in (entry, address)}
    return _key(entry) == _key(address) and (len(hosts) == 1 or hosts <= _LOCAL)


def _given(argv: Sequence[str], root: Path) -> str | None:
    """Return the arguments that Proxmox adds for a person; None where that is not known."""
    lines = (
        qemu_processes.read(root / "etc/pve/qemu-server" / f"{vmid(argv)}.conf").decode("utf-8", "replace").splitlines()
    )
    now = takewhile(lambda line: not line.startswith("["), lines)  # snapshots come after
    return next((line.removeprefix("args:").strip() for line in now if line.startswith("args:")), "") if lines else None


def _config_file(path: str, pid: int, proc: Path) -> str:
    """Return the text of a file that a process has read, as that process sees it; nothing but a plain file is opened."""
    place = proc / str(pid) / (f"root{path}" if path.startswith("/") else f"cwd/{path}")
    try:
        # Opens nothing yet: some devices act when they are opened.
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        plain_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return qemu_processes.read(f"/proc/self/fd/{descriptor}").decode("utf-8", "replace") if plain_file else ""
    finally:
        os.close(descriptor)


_BURST = "burst: "
_LENT = "or with no restart, but without events where QEMU is older than 11.1 (docs/monitors.md#burst, and #hotplug):"
_NO_RESTART = "in the agent's config; no restart:"


def lines(reports: Sequence[VmReport]) -> Iterator[str]:
    """Yield what was found, for people."""
    for vm in reports:
        yield f"{vm.name}  uuid {vm.uuid or 'none'}  pid {vm.pid}  manager {vm.manager}"
        for monitor in vm.monitors:
            yield f"  {monitor.address}: {_state(monitor)}"
            if monitor.missing:
                yield f"    {monitor.missing}"
        if not vm.monitors:
            yield "  it has no QMP monitor"
        if vm.missing:
            yield f"  {vm.missing}"
        if vm.state == WATCHED:
            yield "  watched"
        elif vm.state == CONFIGURED:
            yield f"  the config leads to it: {vm.way}"
        else:
            led = f", though the config leads to it ({vm.way})" if vm.way else ""
            yield f"  not watched{led}; to have it watched (docs/monitors.md#{vm.page}),"
            yield from (f"    {line}" for line in vm.change)
    if not reports:
        yield "no such QEMU runs here that this user can see"


def _state(monitor: MonitorReport) -> str:
    by = f"{monitor.holder} (pid {monitor.holder_pid})" if monitor.holder_pid is not None else "somebody"
    match monitor.state:
        case "held":
            text = f"held by {by}"
        case "calls":
            text = f"QEMU connects there; {by if monitor.holder_pid is not None else 'nobody'} answers"
        case "free":
            text = "free"
        case _:
            text = "who holds it cannot be told; root can see it"
    return text + ("; the manager needs it" if monitor.managers and monitor.state == "free" else "")
