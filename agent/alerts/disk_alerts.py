"""Alerts of disks that fill: levels compared at each poll, and QEMU's write thresholds. Pure: it returns records and commands."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from agent.alerts.levels import MAX_BYTES
from agent.alerts.rules import HOUR
from agent.alerts.space_metrics import space_figures, space_sample
from agent.alerts.store import Alert, AlertStore
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy, DiskLayer, LevelCrossing, ThresholdPolicy
from agent.alerts.vm_state import EMPTY, VmAlertState
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_LAYER
from agent.model.record import Record, Severity, Vm
from agent.qmp.commands import Command

MAX_DISKS = 4096

PolicyLookup = Callable[[Vm, str], ThresholdPolicy]
"""Returns the config's policy for a VM's disk."""

DeviceSizeLookup = Callable[[Vm, str], int | None]
"""Returns the size in bytes of the block device that a VM has at a path; None where it is not known."""


class DiskAlerts:
    """Disk usage, thresholds and their alerts, for all VMs."""

    def __init__(self, store: AlertStore, policy_of: PolicyLookup, size_of: DeviceSizeLookup) -> None:
        self.policy_of = policy_of
        self._store = store
        self._size_of = size_of

    def set_policy(self, policy_of: PolicyLookup, states: Iterable[VmAlertState]) -> None:
        """Use another policy. It applies to each disk at its next poll, which is due now."""
        self.policy_of = policy_of
        for state in states:
            for device, tracker in state.trackers.items():
                tracker.policy = policy_of(state.vm, device)
            state.space_changed = True
            state.refreshes |= {"block", "nodes"}

    # Polls.

    def on_samples(
        self,
        state: VmAlertState,
        samples: Sequence[Sample],
        families: Collection[Family],
        now: float,
        time_ns: int,
    ) -> Iterator[Record]:
        """Process a poll, which has all samples of these families; yield the records of alerts that changed."""
        layers: dict[str, dict[str, Sample]] = {}
        for sample in samples:
            if sample.family is BLOCK:
                self._on_counters(state, sample, now)
            elif sample.family is BLOCK_LAYER:
                layers.setdefault(sample.subject, {})[sample.labels[1]] = sample
        if layers or BLOCK_LAYER in families:
            state.space_changed = True
            for device, by_layer in layers.items():
                yield from self._on_layers(state, device, by_layer, now, time_ns)
            yield from self._remove_unplugged(state, layers, time_ns)

    def space(self, state: VmAlertState) -> list[Sample]:
        """Return a VM's space samples; the same list as before where nothing changed."""
        if state.space_changed:
            samples = (space_sample(device, tracker) for device, tracker in state.trackers.items())
            state.space, state.space_changed = [sample for sample in samples if sample is not None], False
        return state.space

    def _on_counters(self, state: VmAlertState, sample: Sample, now: float) -> None:
        node, offset = sample.values.get("storage_node", ""), sample.values.get("storage_write_highest_offset_bytes")
        if type(offset) is not int or not 0 <= offset <= MAX_BYTES:
            return
        if len(state.offsets) < MAX_DISKS or node in state.offsets:
            state.offsets[node] = offset
        tracker = state.trackers.get(sample.subject)
        if tracker is None:
            return
        self._set_device_size(state, tracker.storage)
        # A device's growth rate changes at each poll; a file's usage changes only if it was written.
        state.space_changed = state.space_changed or tracker.measure == "offset" or offset > tracker.offset
        if tracker.on_poll(node, offset, now):
            state.refreshes |= {"nodes"}

    def _set_device_size(self, state: VmAlertState, storage: DiskLayer) -> None:
        """Set a device's size to what the host's kernel reports, which may have been extended under QEMU."""
        if storage.driver == "host_device":
            storage.size = self._size_of(state.vm, storage.path) or storage.size

    def _on_layers(
        self, state: VmAlertState, device: str, by_layer: Mapping[str, Sample], now: float, time_ns: int
    ) -> Iterator[Record]:
        if "format" not in by_layer or "storage" not in by_layer:
            return
        tracker = state.trackers.get(device)
        if tracker is None:
            if len(state.trackers) >= MAX_DISKS:
                return
            tracker = state.trackers[device] = ThresholdTracker(self.policy_of(state.vm, device))
        form, storage = (DiskLayer.from_values(by_layer[layer].values) for layer in ("format", "storage"))
        self._set_device_size(state, storage)
        state.fresh_slots |= {device}
        crossings = tracker.on_layers(form, storage, state.offsets.get(storage.node, 0), now)
        yield from self._report(state, device, tracker, crossings, time_ns)

    def _remove_unplugged(self, state: VmAlertState, devices: Collection[str], time_ns: int) -> Iterator[Record]:
        """Remove the disks that are gone, and resolve their alerts, those of an earlier run too."""
        for device in state.trackers.keys() - set(devices):
            del state.trackers[device]
        unplugged = [
            alert
            for alert in self._store.of_vm(state.vm.uuid)
            if alert.name == "write_threshold" and alert.subject not in devices and alert.data.get("layer") != "node"
        ]
        return self._store.resolve(unplugged, time_ns, "unplugged")

    # Events.

    def on_threshold_event(
        self, state: VmAlertState, event: Record, qemu: Mapping[str, Any], now_ns: int
    ) -> Iterator[Record]:
        """Process BLOCK_WRITE_THRESHOLD: an own threshold is a level; another client's is an alert of its own."""
        node, threshold, exceeded_by = (qemu.get(key) for key in ("node-name", "write-threshold", "amount-exceeded"))
        if not isinstance(node, str) or type(threshold) is not int or type(exceeded_by) is not int:
            return
        state.space_changed = True
        state.refreshes |= {"nodes"}
        for device, tracker in state.trackers.items():
            if tracker.slot.owns(node, threshold):
                state.fresh_slots -= {device}
                crossings = tracker.on_event(node, threshold, exceeded_by)
                yield from self._report(state, device, tracker, crossings, event.time_ns)
                return
        device, layer, located = state.locate(node)
        state.fresh_slots -= {device}
        if located is not None and layer == "storage":
            located.raise_offset(threshold + exceeded_by)
        more = {"detected_by": DetectedBy.EVENT.value, "device": device, "layer": layer, "node": node, "owner": "other"}
        figures = space_figures(located) if located is not None else {}
        until_ns = now_ns + int(HOUR * 1e9)
        level = f"threshold {threshold}"
        data = {**more, "level_bytes": threshold, "exceeded_by_bytes": exceeded_by, **figures}
        alert = Alert("write_threshold", event.vm, device, level, Severity.WARNING, event.time_ns, data, until_ns)
        yield from self._store.fire(alert)

    def _report(
        self,
        state: VmAlertState,
        device: str,
        tracker: ThresholdTracker,
        crossings: Iterable[LevelCrossing],
        time_ns: int,
    ) -> Iterator[Record]:
        """Fire or resolve the alert of each crossing."""
        for crossing in crossings:
            severity = Severity.CRITICAL if crossing.is_highest else Severity.WARNING
            more = {"detected_by": crossing.detected_by.value, "device": device, "layer": "storage", "owner": "agent"}
            more |= {"level_bytes": crossing.level.bytes} | space_figures(tracker)
            alert = Alert("write_threshold", state.vm, device, crossing.level.text, severity, time_ns, more)
            if crossing.firing:
                yield from self._store.fire(alert)
            else:
                reason = crossing.resolved_by.value
                yield from self._store.resolve([alert], time_ns, reason, space_figures(tracker))

    # Commands.

    def pending_commands(self, state: VmAlertState) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its disk. The thresholds count as set from here on.

        A read of a slot is good for one command: another client may have set a threshold since.
        """
        fresh, state.fresh_slots = state.fresh_slots, EMPTY
        commands = []
        for device in sorted(fresh & state.trackers.keys()):
            threshold = state.trackers[device].take_command()
            if threshold is not None:
                state.space_changed = True
                arguments = dict(zip(("node-name", "write-threshold"), threshold, strict=True))
                commands.append((device, Command("block-set-write-threshold", arguments)))
        return commands

    def on_command_done(self, state: VmAlertState, device: str, *, done: bool) -> None:
        """Process a command's outcome: whether QEMU confirmed it.

        The level is compared next, because a write may have passed it in the meantime. After a failure the slot is read first: QEMU may
        have executed the command although its response was lost.
        """
        if device in state.trackers:
            state.trackers[device].on_command_done(done=done)
            state.refreshes |= {"block" if done else "nodes"}
