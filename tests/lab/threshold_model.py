"""Model of a thin disk and its threshold slot in QEMU, and of an agent that can be killed between any two of its steps."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from agent.alerts.disk_levels import levels_as_used_bytes, parse_disk_level
from agent.alerts.disk_space_values import space_sample
from agent.alerts.disk_threshold_types import DiskThresholdPolicy, ThresholdMode
from agent.alerts.engine import AlertChange, AlertEngine
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Record, Vm

HOST = "hv7"
UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
VM = Vm(HOST, UUID, "web", "/run/web.qmp")
DEVICE = "disk0"
LEVELS = tuple(map(parse_disk_level, ("80%", "90%", "95%")))
HYSTERESIS = 0.02


@dataclass
class Medium:
    """The logical volume or file below a block node. Its data survive the end of QEMU."""

    path: str
    size: int
    end: int = 0
    """End of the highest write ever: the bytes in use of a logical volume, and the length of a file."""


@dataclass
class Node:
    """An open block node with its threshold slot and its highest write offset."""

    name: str
    medium: Medium
    slot: int = 0
    highest: int = 0

    def write(self, end: int) -> dict[str, Any] | None:
        """Write up to `end`. Return the event's data if the write exceeds the threshold (block/write-threshold.c), else None."""
        event = None
        if self.slot and end > self.slot:
            event = {"node-name": self.name, "amount-exceeded": end - self.slot, "write-threshold": self.slot}
            self.slot = 0
        self.highest = max(self.highest, end)
        self.medium.end = max(self.medium.end, end)
        return event


@dataclass(frozen=True)
class Reply:
    """QEMU's reply to a query of the disk: the state of the storage at that time. With `with_nodes`, it has the layers, too."""

    node: Node
    medium: Medium
    with_nodes: bool


class Qemu:
    """A QEMU with one disk: qcow2 on a logical volume, or on a file."""

    def __init__(self, driver: str, size: int) -> None:
        self.driver = driver
        self.size = size
        self.nodes_opened = 1
        self.node = Node("storage1", Medium("/dev/vg/lv1", size))
        self.nodes = {self.node.name: self.node}

    def restart(self) -> None:
        """Replace the QEMU process by a new process that opens the same image."""
        self.node = replace(self.node, slot=0, highest=0)
        self.nodes = {self.node.name: self.node}

    def move(self, *, keeps_old: bool) -> None:
        """Switch to another node. A snapshot keeps the old node. The pivot of a mirror copies the old node's data and closes the node."""
        self.nodes_opened += 1
        old = self.node
        end = 0 if keeps_old else old.medium.end
        self.node = Node(
            f"storage{self.nodes_opened}", Medium(f"/dev/vg/lv{self.nodes_opened}", self.size, end), highest=end
        )
        if not keeps_old:
            del self.nodes[old.name]
        self.nodes[self.node.name] = self.node

    def reply(self, *, with_nodes: bool) -> Reply:
        return Reply(replace(self.node), replace(self.node.medium), with_nodes)

    def samples(self, reply: Reply) -> list[Sample]:
        """Return the samples that the collectors make of a reply."""
        node, medium = reply.node, reply.medium
        offset = {"storage_node": node.name, "storage_write_highest_offset_bytes": node.highest}
        samples = [Sample(BLOCK, (DEVICE,), {"node": "format", **offset})]
        if reply.with_nodes:
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
            samples += [
                Sample(BLOCK_LAYER, (DEVICE, "format"), form),
                Sample(BLOCK_LAYER, (DEVICE, "storage"), storage),
            ]
        return samples


@dataclass
class Journal:
    """A model of the journal: records and entries on disk, and transactions that are not committed yet."""

    stored_persistent_entries: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    pending: list[tuple[Record | None, str, Any]] = field(default_factory=list)

    def put(self, record: Record | None, entry: tuple[str, Any]) -> None:
        self.pending.append((record, entry[0], json.loads(json.dumps(entry[1]))))

    def commit(self, count: int | None = None) -> list[Record]:
        """Commit the oldest `count` transactions; None commits all. Return their records."""
        done = self.pending[:count]
        del self.pending[: len(done)]
        for _, name, value in done:
            if value is None:
                self.stored_persistent_entries.pop(name, None)
            else:
                self.stored_persistent_entries[name] = value
        records = [record for record, _, _ in done if record is not None]
        self.records += records
        return records


class Agent:
    """The part of an agent that handles alerts. A test runs its steps one by one."""

    def __init__(self, qemu: Qemu, journal: Journal, mode: ThresholdMode, now: float) -> None:
        self.qemu = qemu
        self.journal = journal
        self.emitted: list[Record] = []
        self.engine = AlertEngine(HOST, lambda _vm, _disk: DiskThresholdPolicy(mode, LEVELS, HYSTERESIS), self._size_of)
        self.engine.persistence.restore(journal.stored_persistent_entries, now)

    def _size_of(self, _vm: Vm, path: str) -> int | None:
        sizes = {node.medium.path: node.medium.size for node in self.qemu.nodes.values()}
        return sizes.get(path) if self.qemu.driver == "host_device" else None

    def emit(self, pending: list[AlertChange]) -> None:
        for alert in pending:
            self.emitted.append(alert.record)
            self.journal.put(alert.record, alert.entry)

    def on_event(self, data: dict[str, Any], now_ns: int) -> None:
        body = {"event": "BLOCK_WRITE_THRESHOLD", "category": "block", "qemu": data}
        record = Record("qemu.event.block_write_threshold", VM, body, now_ns, data["node-name"])
        self.emit(self.engine.on_event(record, "BLOCK_WRITE_THRESHOLD", now_ns))

    def on_reply(self, reply: Reply, now: float) -> None:
        """Process a reply."""
        families = (BLOCK, BLOCK_LAYER) if reply.with_nodes else (BLOCK,)
        pending, spaces = self.engine.on_disk_samples(
            VM, self.qemu.samples(reply), now, int(now * 1e9), families=families
        )
        trackers = self.engine._processes.processes_with_uuid(UUID)[0].trackers.items()
        assert spaces == [space for disk, tracker in trackers if (space := space_sample(disk, tracker)) is not None]
        self.emit(pending)

    def pending_commands(self) -> list[tuple[str, int]]:
        """Return the thresholds to set, by node. Their entry is put into the journal first."""
        commands = self.engine.threshold_commands.pop_pending_commands(VM)
        if commands:
            self.journal.put(None, self.engine.persistence.entry_of_vm(UUID))
        thresholds = []
        for device, command in commands:
            assert device == DEVICE
            assert command.arguments is not None
            thresholds.append((command.arguments["node-name"], command.arguments["write-threshold"]))
        return thresholds


def levels_in_bytes(size: int) -> dict[str, int]:
    """Return the bytes of each level on a disk of this size, by level."""
    return {level.text: level.bytes for level in levels_as_used_bytes(LEVELS, size)}
