"""All alerts of all VMs: thresholds by their guards, severe events by their rules, in one book. Pure: it says what to tell and what to do.

What has to outlive the agent leaves with the record that tells it, to be written in one transaction with it: so that a rung is neither
told twice nor forgotten, wherever the agent is killed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.book import Alert, Book
from agent.alerts.guard import Crossing, Guard, Layer, Learnt, Mode, Plan
from agent.alerts.ladder import MAX_BYTES
from agent.alerts.rules import HOUR, RULES
from agent.catalogue.metrics import BLOCK, BLOCK_LAYER, BLOCK_SPACE
from agent.catalogue.model import Sample
from agent.qmp.commands import Ask
from agent.record import Record, Severity, Vm

NOTE = "alerts/"
"""How the names of what is kept begin; a VM's UUID follows."""

AWAY_SECONDS = 60.0
"""How long a VM may be away before its alerts are over: its agent or its monitor may just be starting anew."""

MAX_DISKS = 4096

Planner = Callable[[Vm, str], Plan]
"""Says what the config wants of a VM's disk."""


@dataclass(frozen=True, slots=True)
class Told:
    """Something to be told.

    Attributes:
        record: the record.
        uuid: the VM of which `Overseer.note` then has something new to be kept, in one transaction with the record.
    """

    record: Record
    uuid: str


@dataclass(slots=True)
class _Vm:
    vm: Vm
    guards: dict[str, Guard] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)  # by storage node
    wants: set[str] = field(default_factory=set)
    gone_at: float | None = None


class Overseer:
    """One for the agent."""

    def __init__(self, host: str, planner: Planner) -> None:
        self.book = Book()
        self._host = host
        self._planner = planner
        self._vms: dict[str, _Vm] = {}

    # Over restarts.

    def recall(self, notes: dict[str, object], now: float) -> None:
        """Take what was kept in an earlier run. A VM that does not come back in time is gone."""
        for name, value in notes.items():
            uuid = name.removeprefix(NOTE)
            if isinstance(value, dict):
                disks = value.get("disks")
                kept = disks if isinstance(disks, dict) else {}
                self._vms[uuid] = _Vm(Vm(self._host, uuid, uuid), kept=kept, gone_at=now)
                self.book.recall(self._host, uuid, value.get("firing"))

    def note(self, uuid: str) -> tuple[str, Any]:
        """Return what has to be kept of a VM: a name, and a value that JSON can say, or None where there is nothing."""
        one = self._vms.get(uuid)
        disks = (
            {device: guard.remember() for device, guard in one.guards.items() if guard.told or guard.armed}
            if one is not None
            else {}
        )
        firing = self.book.remember(uuid)
        return NOTE + uuid, {"disks": disks, "firing": firing} if disks or firing else None

    # Lives.

    def attached(self, vm: Vm) -> None:
        """A VM is there."""
        one = self._vms.get(vm.uuid)
        kept = one.kept if one is not None else {}
        if one is not None:
            kept |= {device: guard.remember() for device, guard in one.guards.items()}
        self._vms[vm.uuid] = _Vm(vm, kept=kept)

    def gone(self, vm: Vm, now: float, *, for_good: bool) -> None:
        """A VM is not there any more; where not for good, it has a while to come back."""
        one = self._vms.get(vm.uuid)
        if one is not None and one.vm == vm:
            one.gone_at = now - AWAY_SECONDS if for_good else now

    def tick(self, now: float, now_ns: int) -> list[Told]:
        """Let time pass; call it every second or so."""
        records = self.book.expired(now_ns)
        for uuid, one in list(self._vms.items()):
            if one.gone_at is not None and now - one.gone_at >= AWAY_SECONDS:
                del self._vms[uuid]
                records += self.book.gone(uuid, now_ns)
        return [Told(record, record.vm.uuid) for record in records]

    # What comes.

    def event(self, event: Record, name: str, now_ns: int) -> list[Told]:
        """Take an event; `name` is QEMU's name of it."""
        data = event.data["qemu"]
        records = self.book.ended_by(event.vm, name, event.time_ns)
        for rule in RULES:
            if rule.event == name and rule.when(data):
                until_ns = now_ns + int(rule.lasts * 1e9) if rule.lasts is not None else 0
                more = {"help": rule.help, "event": name} | self._full(event, rule.alert)
                alert = Alert(
                    rule.alert, event.vm, event.subject, "", rule.severity, event.time_ns, more, until_ns, rule.until
                )
                records += _some(self.book.fire(alert))
        if name == "BLOCK_WRITE_THRESHOLD":
            records += self._threshold(event, data, now_ns)
        return [Told(record, event.vm.uuid) for record in records]

    def _full(self, event: Record, alert: str) -> dict[str, Any]:
        """Return what is known of a disk that is full."""
        one = self._vms.get(event.vm.uuid)
        guard = one.guards.get(event.subject) if one is not None else None
        if alert != "disk_full" or guard is None:
            return {}
        return {"learnt": Learnt.ENOSPC.value} | _figures(guard)

    def _threshold(self, event: Record, data: dict[str, Any], now_ns: int) -> list[Record]:
        """A threshold was exceeded: one of ours is a rung; another's is told as what it is."""
        one = self._vms.get(event.vm.uuid)
        node, threshold, by = data.get("node-name"), data.get("write-threshold"), data.get("amount-exceeded")
        if one is None or not isinstance(node, str) or type(threshold) is not int or type(by) is not int:
            return []
        for device, guard in one.guards.items():
            if guard.armed == (node, threshold):
                one.wants.add("nodes")
                return list(self._tell(one, device, guard, guard.fired(node, threshold, by), event.time_ns))
        device, layer, known = _place(one, node)
        one.wants.add("nodes")
        more = {"learnt": Learnt.EVENT.value, "device": device, "layer": layer, "node": node, "owner": "other"}
        more |= {"level_bytes": threshold, "exceeded_by_bytes": by} | (_figures(known) if known is not None else {})
        level = f"threshold {threshold}"
        alert = Alert(
            "write_threshold", event.vm, device, level, Severity.WARNING, event.time_ns, more, now_ns + int(HOUR * 1e9)
        )
        return _some(self.book.fire(alert))

    def samples(self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int) -> tuple[list[Told], list[Sample]]:
        """Take what a poll says; return what is to be told, and how full the disks are."""
        one = self._vms.get(vm.uuid)
        if one is None or one.vm != vm:
            return [], []
        records: list[Record] = []
        layers: dict[str, dict[str, Sample]] = {}
        for sample in samples:
            if sample.family is BLOCK:
                self._written(one, sample, now)
            elif sample.family is BLOCK_LAYER:
                layers.setdefault(sample.subject, {})[sample.labels[1]] = sample
        for device, both in layers.items():
            records += self._layers(one, device, both, now, time_ns)
        if layers:
            for device in one.guards.keys() - layers.keys():
                records += self._unplugged(one, device, time_ns)
        told = [Told(record, vm.uuid) for record in records]
        return told, [space for device, guard in one.guards.items() if (space := _space(device, guard)) is not None]

    def _written(self, one: _Vm, sample: Sample, now: float) -> None:
        node, offset = sample.values.get("storage_node", ""), sample.values.get("storage_write_highest_offset_bytes")
        if type(offset) is not int or not 0 <= offset <= MAX_BYTES:
            return
        if len(one.offsets) < MAX_DISKS or node in one.offsets:
            one.offsets[node] = offset
        guard = one.guards.get(sample.subject)
        if guard is not None and guard.written(node, offset, now):
            one.wants.add("nodes")

    def _layers(self, one: _Vm, device: str, both: dict[str, Sample], now: float, time_ns: int) -> Iterator[Record]:
        if "format" not in both or "storage" not in both:
            return
        guard = one.guards.get(device)
        if guard is None:
            if len(one.guards) >= MAX_DISKS:
                return
            guard = one.guards[device] = Guard(self._planner(one.vm, device))
            guard.recall(one.kept.get(device))
        form, storage = Layer.of(both["format"].values), Layer.of(both["storage"].values)
        yield from self._tell(
            one, device, guard, guard.layers(form, storage, one.offsets.get(storage.node, 0), now), time_ns
        )

    def _unplugged(self, one: _Vm, device: str, time_ns: int) -> list[Record]:
        del one.guards[device]
        mine = [alert for alert in self.book if alert.vm.uuid == one.vm.uuid and alert.subject == device]
        return [record for alert in mine if (record := self.book.resolve(alert, time_ns, "unplugged")) is not None]

    def _tell(
        self, one: _Vm, device: str, guard: Guard, crossings: Iterator[Crossing], time_ns: int
    ) -> Iterator[Record]:
        for crossing in crossings:
            severity = Severity.CRITICAL if crossing.top else Severity.WARNING
            more = {"learnt": crossing.learnt.value, "device": device, "layer": "storage", "owner": "agent"}
            more |= {"level_bytes": crossing.rung.bytes} | _figures(guard)
            alert = Alert("write_threshold", one.vm, device, crossing.rung.level.text, severity, time_ns, more)
            if crossing.firing:
                yield from _some(self.book.fire(alert))
            else:
                yield from _some(self.book.resolve(alert, time_ns, "space", _figures(guard)))

    # What is to be done.

    def wants(self, vm: Vm) -> set[str]:
        """Return the collectors that should be asked again, and forget that they should."""
        one = self._vms.get(vm.uuid)
        if one is None or one.vm != vm:
            return set()
        wants, one.wants = one.wants, set()
        return wants

    def orders(self, vm: Vm) -> list[tuple[str, Ask]]:
        """Return the thresholds to be set now, each with its disk; they count as set from here on, and `note` says so."""
        one = self._vms.get(vm.uuid)
        found = []
        for device, guard in one.guards.items() if one is not None and one.vm == vm else ():
            wanted = guard.wanted()
            if wanted is not None:
                guard.armed = wanted
                found.append(
                    (device, Ask("block-set-write-threshold", {"node-name": wanted[0], "write-threshold": wanted[1]}))
                )
        return found

    def ordered(self, vm: Vm, device: str, *, done: bool) -> None:
        """Take note whether a threshold was set. Either way the level is compared next: a write may have passed it meanwhile."""
        one = self._vms.get(vm.uuid)
        if one is not None and device in one.guards:
            if done:
                one.wants.add("block")
            else:
                one.guards[device].armed = None
                one.guards[device].storage.node = ""  # it is not what it was: look again before anything is set
                one.wants.add("nodes")


def _some(record: Record | None) -> list[Record]:
    return [record] if record is not None else []


def _place(one: _Vm, node: str) -> tuple[str, str, Guard | None]:
    """Return the disk and the layer that a node belongs to; the node itself where it is no known disk's."""
    for device, guard in one.guards.items():
        if node == guard.storage.node:
            return device, "storage", guard
        if node == guard.format.node:
            return device, "format", guard
    return node, "node", None


def _figures(guard: Guard) -> dict[str, Any]:
    """Return what people want to know of a disk that fills."""
    figures: dict[str, Any] = {"node": guard.storage.node, "path": guard.storage.path, "measure": guard.measure}
    figures |= {"used_bytes": guard.used, "limit_bytes": guard.limit, "headroom_bytes": guard.limit - guard.used}
    if guard.growth is not None:
        figures["growth_bytes_per_second"] = round(guard.growth, 1)
    if guard.full_in is not None:
        figures["full_in_seconds"] = round(guard.full_in, 1)
    return figures


def _space(device: str, guard: Guard) -> Sample | None:
    """Return a disk's fullness as a sample, or None where it cannot fill."""
    if not guard.thin or guard.plan.mode is Mode.OFF:
        return None
    values = {key: value for key, value in _figures(guard).items() if key not in ("node", "path")}
    values |= {"levels_exceeded": guard.told, "foreign_threshold": guard.foreign}
    if guard.armed is not None:
        values["armed_threshold_bytes"] = guard.armed[1]
    return Sample(BLOCK_SPACE, (device,), values)
