"""Latency histograms of all VMs' disks: which histograms the agent has set, and the commands that set missing histograms. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.model.family import FieldValues, Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import Vm
from agent.qmp.commands import MAX_HISTOGRAM_BOUNDARIES, Command, set_histograms_command
from agent.session.disk_histogram_state_machine import BoundariesNs, DiskHistogramStateMachine, HistogramState

HISTOGRAM_ENTRY_PREFIX = "latency_histograms/"
"""Prefix of the name of a VM's persistent entry. The VM's UUID and its monitor follow."""

DETACHED_VM_RETENTION_SECONDS = 600.0
"""How long the histograms of a detached VM are kept."""

MAX_COMMANDS_PER_POLL = 16
"""Maximum number of commands after one poll. A command takes about 2 ms of QEMU's main loop, which reads the monitor byte by byte."""

_HISTOGRAMS = ("read_latency_seconds", "write_latency_seconds", "flush_latency_seconds", "zone_append_latency_seconds")
_OPERATIONS = ("reads_total", "writes_total", "flushes_total")

EntryNameAndValue = tuple[str, Any]
"""The name and the JSON value of a persistent entry, which the journal keeps across restarts. The value None deletes the entry."""


@dataclass(slots=True)
class _VmHistograms:
    """The histograms of one VM.

    Attributes:
        pid: pid of the VM's process; None if unknown.
        detached_at: when the VM was detached, in seconds on the monotonic clock; None while the VM is attached.
        disks: the disks' histograms by the disks' names.
        pending: names of the disks whose histograms the agent may set now.
    """

    pid: int | None = None
    detached_at: float | None = None
    disks: dict[str, DiskHistogramStateMachine] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)

    def state_to_store(self) -> dict[str, Any] | None:
        """Return the boundaries that the agent set, as a JSON value to store; None if the agent set none."""
        own = {
            disk: list(histograms.own_boundaries)
            for disk, histograms in self.disks.items()
            if histograms.own_boundaries is not None
        }
        return {"pid": self.pid, "disks": own} if own else None


def _entry_name(vm: Vm) -> str:
    return f"{HISTOGRAM_ENTRY_PREFIX}{vm.uuid}/{vm.monitor}"


class LatencyHistogramTracker:
    """The latency histograms of all disks.

    Attributes:
        boundaries: the boundaries of the histograms that the agent sets; empty if the agent sets none.
        has_no_journal: whether the agent has no journal. Without a journal, histograms with exactly `boundaries` count as set by an
            earlier run.
    """

    def __init__(self, boundaries: BoundariesNs = ()) -> None:
        self.boundaries = boundaries
        self.has_no_journal = False
        self._vms: dict[str, _VmHistograms] = {}  # by the name of the persistent entry
        self._stored: set[str] = set()  # names of the stored persistent entries

    def restore(self, entries: Mapping[str, object], now: float) -> None:
        """Restore the entries of an earlier run. Each VM counts as detached at `now`, in seconds on the monotonic clock."""
        for name, value in entries.items():
            if not name.startswith(HISTOGRAM_ENTRY_PREFIX):
                continue
            self._stored.add(name)
            fields = value if isinstance(value, dict) else {}
            pid, disks = fields.get("pid"), fields.get("disks")
            vm = self._vms[name] = _VmHistograms(pid if type(pid) is int else None, now)
            for disk, own in (disks if isinstance(disks, dict) else {}).items():
                if (boundaries := _parse_boundaries(own)) is not None:
                    vm.disks[disk] = DiskHistogramStateMachine(own_boundaries=boundaries)

    def on_attached(self, vm: Vm, pid: int | None) -> None:
        """Mark a VM as attached, and forget the histograms of an earlier process. `pid` is None if the VM's pid is unknown."""
        vm_histograms = self._vms.get(_entry_name(vm))
        if vm_histograms is None or vm_histograms.pid != pid:
            vm_histograms = self._vms[_entry_name(vm)] = _VmHistograms(pid)
        vm_histograms.detached_at = None
        vm_histograms.pending = []
        for histograms in vm_histograms.disks.values():
            histograms.state = HistogramState.UNREAD

    def on_detached(self, vm: Vm, now: float) -> None:
        """Mark a VM as detached at `now`, in seconds on the monotonic clock."""
        if (vm_histograms := self._vms.get(_entry_name(vm))) is not None:
            vm_histograms.detached_at, vm_histograms.pending = now, []

    def on_unplugged(self, vm: Vm, disk: str) -> None:
        """Mark a disk as unplugged. A poll can still show the disk."""
        vm_histograms = self._vms.get(_entry_name(vm))
        if vm_histograms is not None and (histograms := vm_histograms.disks.get(disk)) is not None:
            histograms.is_unplugged = True

    def on_samples(self, vm: Vm, samples: Sequence[Sample]) -> None:
        """Update the disks' histograms from all samples of a poll of the VM's disks."""
        vm_histograms = self._vms.get(_entry_name(vm))
        if vm_histograms is None:
            return
        disks, vm_histograms.disks, vm_histograms.pending = vm_histograms.disks, {}, []
        for sample in samples:
            if sample.family is not BLOCK or "target" in sample.values:
                continue  # libvirt's own statistics do not show whether a disk has histograms
            disk = sample.subject
            histograms = vm_histograms.disks[disk] = disks.get(disk) or DiskHistogramStateMachine()
            self._update_disk(histograms, sample.values)
            if histograms.may_set:
                vm_histograms.pending.append(disk)

    def _update_disk(self, histograms: DiskHistogramStateMachine, values: FieldValues) -> None:
        histogram = next((values[name] for name in _HISTOGRAMS if name in values), None)
        if (
            self.has_no_journal
            and histograms.state is HistogramState.UNREAD
            and histograms.own_boundaries is None
            and histogram is not None
        ):
            histograms.own_boundaries = self.boundaries
        histograms.on_poll(
            histogram["boundaries_seconds"] if histogram is not None else None,
            tuple(values.get(name, 0) for name in _OPERATIONS),
            values.get("qdev", ""),
        )

    def has_pending_commands(self, vm: Vm) -> bool:
        """Return whether `pop_pending_commands` may return commands."""
        vm_histograms = self._vms.get(_entry_name(vm)) if self.boundaries else None
        return vm_histograms is not None and bool(vm_histograms.pending)

    def pop_pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the commands that set histograms now, each with its disk. After this call, these histograms count as set."""
        vm_histograms = self._vms.get(_entry_name(vm))
        if vm_histograms is None or not self.boundaries:
            return []
        disks, vm_histograms.pending = vm_histograms.pending[:MAX_COMMANDS_PER_POLL], []
        commands = []
        for disk in disks:
            histograms = vm_histograms.disks[disk]
            histograms.on_command_send(self.boundaries)
            commands.append((disk, set_histograms_command(histograms.device, self.boundaries)))
        return commands

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the outcome of the command for a disk. `done` is whether QEMU confirmed the command."""
        vm_histograms = self._vms.get(_entry_name(vm))
        if vm_histograms is not None and (histograms := vm_histograms.disks.get(disk)) is not None:
            histograms.on_command_done(done=done)

    def persistent_entry(self, vm: Vm) -> EntryNameAndValue:
        """Return a VM's persistent entry. The value is None if the agent has set no histograms."""
        name = _entry_name(vm)
        vm_histograms = self._vms.get(name)
        value = vm_histograms.state_to_store() if vm_histograms is not None else None
        (self._stored.add if value is not None else self._stored.discard)(name)
        return name, value

    def pop_expired_entries(self, now: float) -> Iterator[EntryNameAndValue]:
        """Remove each VM that was detached `DETACHED_VM_RETENTION_SECONDS` ago. Yield a removed VM's stored entry with the value None."""
        for name, vm_histograms in list(self._vms.items()):
            if (
                vm_histograms.detached_at is not None
                and now - vm_histograms.detached_at >= DETACHED_VM_RETENTION_SECONDS
            ):
                del self._vms[name]
                if name in self._stored:
                    self._stored.discard(name)
                    yield name, None

    def disk_state(self, vm: Vm, disk: str) -> HistogramState:
        """Return the state of a disk's histograms."""
        vm_histograms = self._vms.get(_entry_name(vm))
        histograms = vm_histograms.disks.get(disk) if vm_histograms is not None else None
        return histograms.state if histograms is not None else HistogramState.UNREAD

    def disk_count_by_state(self) -> Counter[HistogramState]:
        """Return the number of disks of attached VMs in each state."""
        attached = (vm_histograms for vm_histograms in self._vms.values() if vm_histograms.detached_at is None)
        return Counter(histograms.state for vm_histograms in attached for histograms in vm_histograms.disks.values())


def _parse_boundaries(own: object) -> BoundariesNs | None:
    """Return the boundaries that an earlier run stored; None if the stored value is not valid."""
    if not isinstance(own, list) or not 0 < len(own) <= MAX_HISTOGRAM_BOUNDARIES:
        return None
    return tuple(own) if all(type(bound) is int for bound in own) else None
