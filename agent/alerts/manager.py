"""All alerts of all VMs: thresholds by their guards, severe events by their rules, in one book. Pure: it says what to tell and what to do.

What has to outlive the agent leaves with the record that tells it, to be written in one transaction with it: so that a rung is neither
told twice nor forgotten, wherever the agent is killed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.alerts.active_instances import ActiveInstances
from agent.alerts.levels import MAX_BYTES, ResolvedLevel
from agent.alerts.rules import HOUR, RULES
from agent.alerts.space_metrics import figures, space
from agent.alerts.store import Alert, AlertStore
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, DiskLayer, LevelCrossing, ThresholdPolicy
from agent.alerts.vm_state import NOTHING, VmAlertState
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_LAYER
from agent.model.record import Record, Severity, Vm
from agent.qmp.commands import Command

NOTE_PREFIX = "alerts/"
"""How the names of what is kept begin; a VM's UUID follows."""

AWAY_SECONDS = 60.0
"""How long a VM may be away before its alerts are over: its agent or its monitor may just be starting anew."""

MAX_DISKS = 4096

PolicyLookup = Callable[[Vm, str], ThresholdPolicy]
"""Says what the config wants of a VM's disk."""

DeviceSizeLookup = Callable[[Vm, str], int | None]
"""Says how large the block device is that a VM has at a path; None where that cannot be known."""


_BY_EVENT = {event: [rule for rule in RULES if rule.event == event] for event in {rule.event for rule in RULES}}
_HEEDED = {"RESUME", "STOP", "BLOCK_WRITE_THRESHOLD", *_BY_EVENT}
"""Events that something here begins with, or turns on; what else ends an alert is in the book."""


@dataclass(frozen=True, slots=True)
class PendingAlert:
    """Something to be told.

    Attributes:
        record: the record.
        note: what has to be kept in one transaction with it, as `AlertManager.note` gave it when the record was made: of several records,
            each has its own, so that none is taken as told before it is on disk.
    """

    record: Record
    note: tuple[str, Any]

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return self.record.vm.uuid


class AlertManager:
    """One for the agent."""

    def __init__(self, host: str, planner: PolicyLookup, measurer: DeviceSizeLookup = lambda _vm, _path: None) -> None:
        self.store = AlertStore()
        self._host = host
        self._planner = planner
        self._measurer = measurer
        self._vms: dict[str, VmAlertState] = {}
        self._lives = ActiveInstances()
        self._noted: set[str] = set()

    def set_policy(self, planner: PolicyLookup) -> None:
        """Go by another plan from here on: what it changes shows at the next look at each disk, which is wanted now."""
        self._planner = planner
        for one in self._vms.values():
            for device, guard in one.guards.items():
                guard.plan = planner(one.vm, device)
            one.moved = True
            one.wants |= {"block", "nodes"}

    # Over restarts.

    def restore(self, notes: dict[str, object], now: float) -> None:
        """Take what was kept in an earlier run. A VM that does not come back in time is gone."""
        for name, value in notes.items():
            uuid = name.removeprefix(NOTE_PREFIX)
            self._noted.add(uuid)
            if isinstance(value, dict):
                disks = value.get("disks")
                kept = disks if isinstance(disks, dict) else {}
                self._vms[uuid] = VmAlertState(Vm(self._host, uuid, uuid), kept=kept, gone_at=now)
                self.store.restore(self._host, uuid, value.get("firing"))

    def state_note(self, uuid: str) -> tuple[str, Any]:
        """Return what has to be kept of a VM: a name, and a value that JSON can say, or None where there is nothing."""
        one = self._vms.get(uuid)
        disks = dict(one.kept) if one is not None else {}
        if one is not None:
            disks |= {device: guard.remember() for device, guard in one.guards.items() if guard.told or guard.armed}
        firing = self.store.to_note(uuid)
        (self._noted.add if disks or firing else self._noted.discard)(uuid)
        return NOTE_PREFIX + uuid, {"disks": disks, "firing": firing} if disks or firing else None

    def stale_notes(self) -> list[str]:
        """Return the VMs that are gone and of which something is kept all the same; their `note` says that it need not be."""
        return sorted(self._noted - self._vms.keys())

    def levels(self, vm: Vm, device: str) -> tuple[ResolvedLevel, ...]:
        """Return the rungs of a VM's disk, from the lowest up; none where nothing is wanted or can be said of it."""
        one = self._of(vm)
        guard = one.guards.get(device) if one is not None else None
        return guard.ladder if guard is not None else ()

    # Lives.

    def on_attached(self, vm: Vm, time_ns: int = 0) -> list[PendingAlert]:
        """A VM is there. Where another process of its UUID is there too, that one counts until it is gone or hands over."""
        self._lives.attached(vm)
        one = self._vms.get(vm.uuid)
        over: list[Alert] = []
        if one is not None and one.shut:
            # A new process: what befell the old one is over, but its disks are as full as they were.
            over = [alert for alert in self.store if alert.vm.uuid == vm.uuid and alert.name != "write_threshold"]
        self._hand_over(vm.uuid)
        return self._told(self.store.resolve_all(over, time_ns, "vm_gone"))

    def on_gone(self, vm: Vm, now: float, *, for_good: bool) -> None:
        """A VM is not there any more; where not for good, it has a while to come back."""
        self._lives.gone(vm)
        one = self._vms.get(vm.uuid)
        if one is not None and one.vm == vm and not self._hand_over(vm.uuid):
            one.gone_at, one.shut = (now - AWAY_SECONDS if for_good else now), for_good

    def on_run_state(self, vm: Vm, time_ns: int, *, running: bool, status: str = "") -> list[PendingAlert]:
        """Take what a look says of whether a VM runs; the first one tells what began or ended while nobody listened."""
        self._lives.runs(vm, running)
        self._hand_over(vm.uuid)
        one = self._vms.get(vm.uuid)
        if one is None or one.vm != vm:
            return []
        first, one.met = not one.met, True
        return self._told(self._met(one, time_ns, running=running, status=status)) if first else []

    def _met(self, one: VmAlertState, time_ns: int, *, running: bool, status: str) -> Iterator[Record]:
        over = [alert for alert in self.store if running and alert.fingerprint in one.doubts]
        yield from self.store.resolve_all(over, time_ns, "running")
        if any(alert.vm.uuid == one.vm.uuid and "RESUME" in alert.ends_with for alert in self.store):
            return
        for rule in RULES:
            if rule.status and rule.status == status:
                more = {"help": rule.help, "event": rule.event, "detected_by": DetectedBy.MISSED.value}
                alert = Alert(rule.alert, one.vm, "", "", rule.severity, time_ns, more, ends_with=rule.until)
                yield from _some(self.store.fire(alert))

    def _hand_over(self, uuid: str) -> bool:
        """Let another process of a UUID count where it should; return whether one does now."""
        one = self._vms.get(uuid)
        heir = self._lives.heir(uuid, one.vm if one is not None and one.gone_at is None else None)
        if heir is None:
            return False
        kept = one.kept if one is not None else {}
        if one is not None:
            kept |= {device: guard.remember() for device, guard in one.guards.items()}
        self._vms[uuid] = new = VmAlertState(heir)
        for device, what in kept.items():
            new.guards[device] = guard = ThresholdTracker(self._planner(heir, device))
            guard.recall(what)
        if one is not None and one.gone_at is None:
            new.wants |= {"block", "nodes"}
        else:
            doubts = (a.fingerprint for a in self.store if a.vm.uuid == uuid and "RESUME" in a.ends_with)
            new.doubts = frozenset(doubts) or NOTHING
        return True

    def tick(self, now: float, now_ns: int) -> list[PendingAlert]:
        """Let time pass; call it every second or so."""
        return self._told(self._passed(now, now_ns))

    def _passed(self, now: float, now_ns: int) -> Iterator[Record]:
        yield from self.store.resolve_expired(now_ns)
        for uuid, one in list(self._vms.items()):
            if one.gone_at is not None and now - one.gone_at >= AWAY_SECONDS:
                del self._vms[uuid]
                yield from self.store.resolve_vm(uuid, now_ns)

    # What comes.

    def on_event(self, event: Record, name: str, now_ns: int) -> list[PendingAlert]:
        """Take an event; `name` is QEMU's name of it."""
        if name not in _HEEDED and name not in self.store.ending_events:
            return []  # as most are, and in a flood all
        return self._told(self._happened(event, name, now_ns))

    def _happened(self, event: Record, name: str, now_ns: int) -> Iterator[Record]:
        data = event.data["qemu"]
        if name in ("RESUME", "STOP"):
            self._lives.runs(event.vm, name == "RESUME")
            self._hand_over(event.vm.uuid)
        yield from self.store.resolve_by_event(event.vm, name, event.time_ns)
        one = self._vms.get(event.vm.uuid)
        for rule in _BY_EVENT.get(name, ()):
            if rule.when(data):
                until_ns = now_ns + int(rule.lasts * 1e9) if rule.lasts is not None else 0
                subject, _, guard = one.place(event.subject) if one is not None else (event.subject, "", None)
                guard = guard or (one.guards.get(event.subject) if one is not None else None)
                more = {"help": rule.help, "event": name}
                if rule.alert == "disk_full" and guard is not None:
                    more |= {"detected_by": DetectedBy.ENOSPC.value} | figures(guard)
                # A guest that goes on by itself is not resumed; when somebody pauses and resumes it, that ends nothing.
                ends = rule.until - {"RESUME"} if data.get("action") == "run" else rule.until
                alert = Alert(rule.alert, event.vm, subject, "", rule.severity, event.time_ns, more, until_ns, ends)
                if one is not None:
                    one.doubts -= {alert.fingerprint}
                yield from _some(self.store.fire(alert))
        if name == "BLOCK_WRITE_THRESHOLD":
            yield from self._threshold(event, data, now_ns)

    def _threshold(self, event: Record, data: dict[str, Any], now_ns: int) -> Iterator[Record]:
        """A threshold was exceeded: one of ours is a rung; another's is told as what it is."""
        one = self._of(event.vm)
        node, threshold, by = data.get("node-name"), data.get("write-threshold"), data.get("amount-exceeded")
        if one is None or not isinstance(node, str) or type(threshold) is not int or type(by) is not int:
            return
        one.moved = True
        one.wants |= {"nodes"}
        for device, guard in one.guards.items():
            if guard.owns(node, threshold):
                one.looked -= {device}
                yield from self._tell(one, device, guard, guard.fired(node, threshold, by), event.time_ns)
                return
        device, layer, known = one.place(node)
        one.looked -= {device}
        if known is not None and layer == "storage":
            known.reached(threshold + by)
        more = {"detected_by": DetectedBy.EVENT.value, "device": device, "layer": layer, "node": node, "owner": "other"}
        more |= {"level_bytes": threshold, "exceeded_by_bytes": by} | (figures(known) if known is not None else {})
        until_ns = now_ns + int(HOUR * 1e9)
        level = f"threshold {threshold}"
        alert = Alert("write_threshold", event.vm, device, level, Severity.WARNING, event.time_ns, more, until_ns)
        yield from _some(self.store.fire(alert))

    def on_samples(
        self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int, *, families: Collection[Family] = ()
    ) -> tuple[list[PendingAlert], list[Sample]]:
        """Take what a poll says, which is all that there is of these families; return what is to be told, and how full the disks are.

        Where nothing of that moved it is the list that was returned before, itself.
        """
        one = self._of(vm)
        if one is None:
            return [], []
        layers: dict[str, dict[str, Sample]] = {}
        for sample in samples:
            if sample.family is BLOCK:
                self._written(one, sample, now)
            elif sample.family is BLOCK_LAYER:
                layers.setdefault(sample.subject, {})[sample.labels[1]] = sample
        told = []
        if layers or BLOCK_LAYER in families:
            one.moved = True
            told = self._told(self._seen(one, layers, now, time_ns))
        if one.moved:
            found = (space(device, guard) for device, guard in one.guards.items())
            one.spaces, one.moved = [sample for sample in found if sample is not None], False
        return told, one.spaces

    def _seen(
        self, one: VmAlertState, layers: Mapping[str, dict[str, Sample]], now: float, time_ns: int
    ) -> Iterator[Record]:
        """Take the layers of all disks that there are."""
        for device, both in layers.items():
            yield from self._layers(one, device, both, now, time_ns)
        yield from self._unplugged(one, layers, time_ns)

    def _written(self, one: VmAlertState, sample: Sample, now: float) -> None:
        node, offset = sample.values.get("storage_node", ""), sample.values.get("storage_write_highest_offset_bytes")
        if type(offset) is not int or not 0 <= offset <= MAX_BYTES:
            return
        if len(one.offsets) < MAX_DISKS or node in one.offsets:
            one.offsets[node] = offset
        guard = one.guards.get(sample.subject)
        if guard is None:
            return
        self._measure(one, guard.storage)
        # How fast a device fills changes with each look; of a file nothing does that was not written to.
        one.moved = one.moved or guard.measure == "offset" or offset > guard.offset
        if guard.written(node, offset, now):
            one.wants |= {"nodes"}

    def _measure(self, one: VmAlertState, storage: DiskLayer) -> None:
        """Have a device's size as the host knows it."""
        if storage.driver == "host_device":
            storage.size = self._measurer(one.vm, storage.path) or storage.size

    def _layers(
        self, one: VmAlertState, device: str, both: dict[str, Sample], now: float, time_ns: int
    ) -> Iterator[Record]:
        if "format" not in both or "storage" not in both:
            return
        guard = one.guards.get(device)
        if guard is None:
            if len(one.guards) >= MAX_DISKS:
                return
            guard = one.guards[device] = ThresholdTracker(self._planner(one.vm, device))
        form, storage = DiskLayer.of(both["format"].values), DiskLayer.of(both["storage"].values)
        self._measure(one, storage)
        one.looked |= {device}
        crossings = guard.layers(form, storage, one.offsets.get(storage.node, 0), now)
        yield from self._tell(one, device, guard, crossings, time_ns)

    def _unplugged(self, one: VmAlertState, there: Collection[str], time_ns: int) -> Iterator[Record]:
        """Forget the disks that are not there, and resolve what was told of them, in an earlier run too."""
        for device in one.guards.keys() - set(there):
            del one.guards[device]
        over = [
            alert
            for alert in self.store
            if alert.vm.uuid == one.vm.uuid
            and alert.name == "write_threshold"
            and alert.subject not in there
            and alert.data.get("layer") != "node"
        ]
        return self.store.resolve_all(over, time_ns, "unplugged")

    def _told(self, records: Iterable[Record]) -> list[PendingAlert]:
        return [PendingAlert(record, self.state_note(record.vm.uuid)) for record in records]

    def _tell(
        self, one: VmAlertState, device: str, guard: ThresholdTracker, crossings: Iterable[LevelCrossing], time_ns: int
    ) -> Iterator[Record]:
        for crossing in crossings:
            severity = Severity.CRITICAL if crossing.top else Severity.WARNING
            more = {"detected_by": crossing.detected_by.value, "device": device, "layer": "storage", "owner": "agent"}
            more |= {"level_bytes": crossing.rung.bytes} | figures(guard)
            alert = Alert("write_threshold", one.vm, device, crossing.rung.text, severity, time_ns, more)
            if crossing.firing:
                yield from _some(self.store.fire(alert))
            else:
                yield from _some(self.store.resolve(alert, time_ns, crossing.ended.value, figures(guard)))

    # What is to be done.

    def _of(self, vm: Vm) -> VmAlertState | None:
        one = self._vms.get(vm.uuid)
        return one if one is not None and (one.vm is vm or one.vm == vm) else None

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the collectors that should be asked again, and forget that they should."""
        one = self._of(vm)
        if one is None:
            return NOTHING
        wants, one.wants = one.wants, NOTHING
        return wants

    def pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the thresholds to be set now, each with its disk; they count as set from here on, and `note` says so.

        A look at a slot is good for one order: what was free a while ago may be somebody's by now.
        """
        one = self._of(vm)
        if one is None:
            return []
        looked, one.looked = one.looked, NOTHING
        found = []
        for device in sorted(looked & one.guards.keys()):
            wanted = one.guards[device].order()
            if wanted is not None:
                one.moved = True
                node, value = wanted
                found.append(
                    (device, Command("block-set-write-threshold", {"node-name": node, "write-threshold": value}))
                )
        return found

    def on_command_done(self, vm: Vm, device: str, *, done: bool) -> None:
        """Take note whether a threshold was set. Either way the level is compared next: a write may have passed it meanwhile.

        Where it was not, it may have been all the same: the answer was lost. Then the slot is looked at first.
        """
        one = self._of(vm)
        if one is not None and device in one.guards:
            one.guards[device].on_command_done(done=done)
            one.wants |= {"block" if done else "nodes"}


def _some(record: Record | None) -> list[Record]:
    return [record] if record is not None else []
