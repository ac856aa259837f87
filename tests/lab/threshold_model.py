"""A small model of QEMU's threshold slot, of a thin disk under it, and of an agent that can be killed between any two of its steps."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from agent.alerts.levels import MAX_BYTES, parse_level, resolve_levels
from agent.alerts.manager import NOTE_PREFIX, AlertManager, PendingAlert
from agent.alerts.space_metrics import space_sample
from agent.alerts.threshold_types import ThresholdMode, ThresholdPolicy
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_LAYER
from agent.model.record import Record, Vm

HOST = "hv7"
UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
VM = Vm(HOST, UUID, "web", "/run/web.qmp")
DEVICE = "disk0"
LEVELS = tuple(map(parse_level, ("80%", "90%", "95%")))
HYSTERESIS = 0.02


@dataclass
class Medium:
    """What a node lies on: a logical volume or a file, which keeps what was written over any QEMU."""

    path: str
    size: int
    end: int = 0
    """Where the highest write to it ever ended: what a logical volume has in use, and how long a file is."""


@dataclass
class Node:
    """An open block node, with QEMU's own slot and counter."""

    name: str
    medium: Medium
    slot: int = 0
    highest: int = 0

    def write(self, end: int) -> dict[str, Any] | None:
        """Write up to `end`, as block/write-threshold.c sees it: before the write; return the event's data, if there is one."""
        event = None
        if self.slot and end > self.slot:
            event = {"node-name": self.name, "amount-exceeded": end - self.slot, "write-threshold": self.slot}
            self.slot = 0
        self.highest = max(self.highest, end)
        self.medium.end = max(self.medium.end, end)
        return event


@dataclass(frozen=True)
class Look:
    """An answer of QEMU's: the storage as it was when it was asked; `with_nodes`: the layers too, and not the counters alone."""

    node: Node
    medium: Medium
    with_nodes: bool


class Qemu:
    """One QEMU with one disk: qcow2 on a logical volume, or on a file."""

    def __init__(self, driver: str, size: int) -> None:
        self.driver = driver
        self.size = size
        self.made = 1
        self.node = Node("storage1", Medium("/dev/vg/lv1", size))
        self.nodes = {self.node.name: self.node}

    def restart(self) -> None:
        """Open everything anew."""
        self.node = replace(self.node, slot=0, highest=0)
        self.nodes = {self.node.name: self.node}

    def move(self, *, keeps_old: bool) -> None:
        """Go on with another node: over a snapshot the old one stays, over a mirror's pivot it goes, and its data come along."""
        self.made += 1
        old = self.node
        end = 0 if keeps_old else old.medium.end
        self.node = Node(f"storage{self.made}", Medium(f"/dev/vg/lv{self.made}", self.size, end), highest=end)
        if not keeps_old:
            del self.nodes[old.name]
        self.nodes[self.node.name] = self.node

    def look(self, *, with_nodes: bool) -> Look:
        return Look(replace(self.node), replace(self.node.medium), with_nodes)

    def samples(self, look: Look) -> list[Sample]:
        """Return what the collectors make of an answer."""
        node, medium = look.node, look.medium
        offset = {"storage_node": node.name, "storage_write_highest_offset_bytes": node.highest}
        made = [Sample(BLOCK, (DEVICE,), {"node": "format", **offset})]
        if look.with_nodes:
            is_file = self.driver == "file"
            storage = {
                "node": node.name,
                "driver": self.driver,
                "path": medium.path,
                "write_threshold_bytes": node.slot,
            }
            storage |= {
                "size_bytes": medium.end if is_file else medium.size,
                "allocated_bytes": medium.end if is_file else 0,
            }
            form = {"node": "format", "driver": "qcow2", "path": medium.path, "size_bytes": medium.size}
            made += [Sample(BLOCK_LAYER, (DEVICE, "format"), form), Sample(BLOCK_LAYER, (DEVICE, "storage"), storage)]
        return made


@dataclass
class Journal:
    """What is on disk of what the agent tells and keeps, and what is on its way there."""

    notes: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    coming: list[tuple[Record | None, str, Any]] = field(default_factory=list)

    def put(self, record: Record | None, note: tuple[str, Any]) -> None:
        self.coming.append((record, note[0], json.loads(json.dumps(note[1]))))

    def commit(self, count: int | None = None) -> list[Record]:
        """Have the oldest transactions on disk, or all; return their records."""
        done = self.coming[:count]
        del self.coming[: len(done)]
        for _, name, value in done:
            if value is None:
                self.notes.pop(name, None)
            else:
                self.notes[name] = value
        found = [record for record, _, _ in done if record is not None]
        self.records += found
        return found


class Agent:
    """The alerts' part of an agent, as app.py and session.py drive it, in single steps."""

    def __init__(self, qemu: Qemu, journal: Journal, mode: ThresholdMode, now: float) -> None:
        self.qemu = qemu
        self.journal = journal
        self.told: list[Record] = []
        self.alert_manager = AlertManager(
            HOST, lambda _vm, _disk: ThresholdPolicy(mode, LEVELS, HYSTERESIS), self._measure
        )
        self.alert_manager.restore({k: v for k, v in journal.notes.items() if k.startswith(NOTE_PREFIX)}, now)

    def _measure(self, _vm: Vm, path: str) -> int | None:
        sizes = {node.medium.path: node.medium.size for node in self.qemu.nodes.values()}
        return sizes.get(path) if self.qemu.driver == "host_device" else None

    def tell(self, told: list[PendingAlert]) -> None:
        for one in told:
            self.told.append(one.record)
            self.journal.put(one.record, one.note)

    def event(self, data: dict[str, Any], now_ns: int) -> None:
        body = {"event": "BLOCK_WRITE_THRESHOLD", "category": "block", "qemu": data}
        record = Record("qemu.event.block_write_threshold", VM, body, now_ns, data["node-name"])
        self.tell(self.alert_manager.on_event(record, "BLOCK_WRITE_THRESHOLD", now_ns))

    def hear(self, look: Look, now: float) -> None:
        """Take an answer."""
        families = (BLOCK, BLOCK_LAYER) if look.with_nodes else (BLOCK,)
        told, spaces = self.alert_manager.on_samples(
            VM, self.qemu.samples(look), now, int(now * 1e9), families=families
        )
        trackers = self.alert_manager._vms[UUID].trackers.items()
        assert spaces == [found for disk, tracker in trackers if (found := space_sample(disk, tracker)) is not None]
        self.tell(told)

    def pending_commands(self) -> list[tuple[str, int]]:
        """Return what is to be set, by node; `journal` gets the note that goes before it."""
        orders = self.alert_manager.pending_commands(VM)
        if orders:
            self.journal.put(None, self.alert_manager.state_note(UUID))
        found = []
        for device, ask in orders:
            assert device == DEVICE
            assert ask.arguments is not None
            found.append((ask.arguments["node-name"], ask.arguments["write-threshold"]))
        return found


def ladder(size: int) -> dict[str, int]:
    """Return the rungs on a disk of that size, by level."""
    return {level.text: level.bytes for level in resolve_levels(LEVELS, size)}


assert MAX_BYTES == 2**63 - 1
