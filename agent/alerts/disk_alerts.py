"""Alerts of disks: exceeded levels, QEMU's write thresholds, and corrupt images. The rules for I/O errors are in `failure_rules`.

Pure: the module returns records and commands.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from agent.alerts.disk_levels import MAX_SIZE_BYTES
from agent.alerts.disk_space_values import disk_space_values, space_sample
from agent.alerts.disk_threshold_types import DetectedBy, DiskLayer, DiskLevelCrossing, DiskThresholdPolicy
from agent.alerts.disk_usage import DiskUsage
from agent.alerts.failure_rules import HOUR
from agent.alerts.highest_write_offsets import HighestWriteStore, ImageKey
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.rules.process_state import EMPTY_SET, VmProcessState
from agent.alerts.store import AlertStore
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.collectors.base import MAX_SAMPLES
from agent.host.pools.base import UnknownPool
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_LAYER, BLOCK_NAMES
from agent.model.record import Record, Severity, Vm
from agent.qmp.commands import Command

MAX_DISKS = 4096
"""Maximum number of disks of one VM."""

ThresholdPolicyLookup = Callable[[Vm, str], DiskThresholdPolicy]
"""Returns the config's policy for a disk. The arguments are the VM and the disk's device."""

DeviceSizeLookup = Callable[[Vm, str], int | None]
"""Returns the current size of a host block device in bytes; None if unknown. The arguments are the VM and the device's path."""

DeviceIdentityLookup = Callable[[Vm, str], str]
"""Returns an identifier of a host block device that survives a reboot, such as its WWID; empty if unknown.

The arguments are the VM and the device's path.
"""

PoolLookup = Callable[[Vm, str, str], PoolUsage | UnknownPool | None]
"""Returns the pool of a disk image; None while the agent searches for the pool.

The arguments are the VM, the disk's device and the image's path.
"""

MAX_ALIASES = 4 * MAX_DISKS
"""Maximum number of other names of a VM's disks, such as block nodes. The names that were polled longest ago are removed first."""

Value = TypeVar("Value")


def _put_bounded(values: dict[str, Value], key: str, value: Value, maximum: int) -> None:
    """Store a value in a dictionary. If the dictionary then has more than `maximum` entries, remove the oldest entry."""
    values[key] = value
    if len(values) > maximum:
        del values[next(iter(values))]


class DiskAlerts:
    """Alerts of exceeded levels, write thresholds and corrupt images, for the disks of all VMs."""

    def __init__(
        self,
        store: AlertStore,
        highest_writes: HighestWriteStore,
        policy_lookup: ThresholdPolicyLookup,
        size_lookup: DeviceSizeLookup,
        pool_lookup: PoolLookup,
        identity_lookup: DeviceIdentityLookup,
    ) -> None:
        self._store = store
        self._highest_writes = highest_writes
        self._policy_lookup = policy_lookup
        self._size_lookup = size_lookup
        self._pool_lookup = pool_lookup
        self._identity_lookup = identity_lookup

    def set_threshold_policy(self, policy_lookup: ThresholdPolicyLookup, states: Iterable[VmProcessState]) -> None:
        """Replace the threshold policy, and schedule a poll of all disks now. The policy applies to each disk from that poll on."""
        self._policy_lookup = policy_lookup
        for state in states:
            for device, tracker in state.trackers.items():
                tracker.policy = policy_lookup(state.vm, device)
            state.space_changed = True
            state.collectors_to_poll |= {"block", "nodes"}

    def restore_disks(self, state: VmProcessState, entries: Mapping[str, Any]) -> None:
        """Restore the threshold trackers of the disks of a QEMU process.

        Args:
            state: the state of the process.
            entries: the values that an earlier run of the agent stored, by device.
        """
        for device, value in entries.items():
            state.trackers[device] = tracker = self._new_tracker(state, device)
            tracker.restore(value)

    def _new_tracker(self, state: VmProcessState, device: str) -> ThresholdTracker:
        return ThresholdTracker(self._policy_lookup(state.vm, device))

    # Polls.

    def on_samples(
        self,
        state: VmProcessState,
        samples: Sequence[Sample],
        families: Collection[Family],
        now: float,
        time_ns: int,
    ) -> Iterator[Record]:
        """Handle a poll of disks; yield a record for each alert that fires or is resolved. `samples` are all samples of `families`."""
        layers: dict[str, dict[str, Sample]] = {}
        if BLOCK_NAMES in families:  # replace all aliases, because the nodes of a finished job no longer exist
            named = (sample for sample in samples if sample.family is BLOCK_NAMES)
            state.aliases = {name: sample.subject for sample in named for name in sample.values.get("names", ())}
        for sample in samples:
            if sample.family is BLOCK:
                self._on_counters(state, sample, now)
            elif sample.family is BLOCK_LAYER:
                layers.setdefault(sample.subject, {})[sample.labels[1]] = sample
        if layers or BLOCK_LAYER in families:
            state.space_changed = True
            state.layers = {
                str(sample.values.get("node", "")): (device, layer, str(sample.values.get("path", "")))
                for device, by_layer in layers.items()
                for layer, sample in by_layer.items()
            }
            for device, by_layer in layers.items():
                yield from self._check_space_levels(state, device, by_layer, now, time_ns)
                yield from self._resolve_corrupt_image(state, device, by_layer, time_ns)
            if len(samples) < MAX_SAMPLES:  # a disk that is missing in a truncated reply may still exist
                yield from self._remove_unplugged_disks(state, layers, time_ns)

    def space_samples(self, state: VmProcessState) -> list[Sample]:
        """Return a VM's `block_space` samples. If nothing has changed, the list is the same object as before."""
        if state.space_changed:
            samples = (space_sample(device, tracker) for device, tracker in state.trackers.items())
            state.space, state.space_changed = [sample for sample in samples if sample is not None], False
        return state.space

    def _on_counters(self, state: VmProcessState, sample: Sample, now: float) -> None:
        device, values = sample.subject, sample.values
        for alias in ("backend", "node"):
            if (name := values.get(alias)) and state.aliases.get(name) != device:
                _put_bounded(state.aliases, name, device, MAX_ALIASES)
        node, offset = values.get("storage_node", ""), values.get("storage_write_highest_offset_bytes")
        if type(offset) is not int or not 0 <= offset <= MAX_SIZE_BYTES:
            return
        tracker = state.trackers.get(device)
        if tracker is None:
            _put_bounded(state.offsets, node, offset, MAX_DISKS)
            return
        usage = tracker.usage
        if tracker.is_unchanged_since_last_poll(node, offset, self._pool_lookup(state.vm, device, usage.storage.path)):
            return
        _put_bounded(state.offsets, node, offset, MAX_DISKS)
        self._set_device_size(state, usage.storage)
        self._set_pool(state, device, usage, usage.storage)
        # The growth rate of a device changes at each poll. The usage of a file changes only if the guest has written.
        state.space_changed = state.space_changed or usage.used_bytes_measure == "offset" or offset > usage.offset
        state.space_changed = state.space_changed or usage.limit != tracker.shown_limit or usage.is_raw_on_thin_volume
        if tracker.on_poll(node, offset, now):
            state.collectors_to_poll |= {"nodes"}
        else:
            self._store_highest_write(usage)

    def _store_highest_write(self, usage: DiskUsage) -> None:
        """Store the highest write offset of a disk's image, because QEMU resets the offset when it opens the image again."""
        if usage.used_bytes_measure == "offset" and not usage.is_raw:
            image = ImageKey(usage.storage.path, usage.format.size, usage.storage.identity)
            self._highest_writes.update_highest_offset(image, usage.offset)

    def _set_device_size(self, state: VmProcessState, storage: DiskLayer) -> None:
        """Set a block device's size to the size in the host's kernel, because QEMU does not notice that a device was extended."""
        if storage.driver == "host_device":
            storage.size = self._size_lookup(state.vm, storage.path) or storage.size

    def _set_pool(self, state: VmProcessState, device: str, usage: DiskUsage, storage: DiskLayer) -> None:
        """Set the pool of a disk's image, and the bytes that the volume under the image occupies in the pool."""
        usage.pool = pool = self._pool_lookup(state.vm, device, storage.path)
        usage.volume_allocated_bytes = None
        if storage.driver == "host_device" and isinstance(pool, PoolUsage):
            usage.volume_allocated_bytes = pool.volume_allocated_bytes_of_disk(state.vm, device)

    def _check_space_levels(
        self, state: VmProcessState, device: str, by_layer: Mapping[str, Sample], now: float, time_ns: int
    ) -> Iterator[Record]:
        if "format" not in by_layer or "storage" not in by_layer:
            return
        tracker = state.trackers.get(device)
        if tracker is None:
            if len(state.trackers) >= MAX_DISKS:
                return
            tracker = state.trackers[device] = self._new_tracker(state, device)
        image_format, storage = (DiskLayer.from_values(by_layer[layer].values) for layer in ("format", "storage"))
        self._set_device_size(state, storage)
        if storage.driver == "host_device":
            storage.identity = self._identity_lookup(state.vm, storage.path)
        state.slots_read |= {device} if storage.write_threshold is not None else EMPTY_SET
        self._set_pool(state, device, tracker.usage, storage)
        image = ImageKey(storage.path, image_format.size, storage.identity)
        offset = max(state.offsets.get(storage.node, 0), self._highest_writes.offset_of(image))
        crossings = tracker.on_layers(image_format, storage, offset, now)
        yield from self._report_crossings(state, device, tracker, crossings, time_ns)
        self._store_highest_write(tracker.usage)

    def _remove_unplugged_disks(
        self, state: VmProcessState, devices: Collection[str], time_ns: int
    ) -> Iterator[Record]:
        """Remove all disks except `devices`. Resolve the alerts of the removed disks, including alerts of an earlier run."""
        for device in state.trackers.keys() - set(devices):
            del state.trackers[device]
        alerts_of_unplugged_disks = [
            alert for alert in self._store.alerts_of_owner(state.owner) if alert.subject not in devices
        ]
        unplugged = [
            alert
            for alert in alerts_of_unplugged_disks
            if (alert.name == "write_threshold" and alert.data.get("layer") != "node")
            or (alert.name == "image_corrupted" and "path" in alert.data)
        ]
        return self._store.resolve(unplugged, time_ns, "unplugged")

    # Events.

    def on_threshold_event(
        self, state: VmProcessState, event: Record, qemu: Mapping[str, Any], now_ns: int
    ) -> Iterator[Record]:
        """Handle BLOCK_WRITE_THRESHOLD.

        If the agent set the threshold, report the levels that the write crossed. Otherwise fire an alert of the threshold itself.

        Args:
            state: The process.
            event: The event.
            qemu: The event's data from QEMU.
            now_ns: The current time in nanoseconds since the epoch.
        """
        node, threshold, exceeded_by = (qemu.get(key) for key in ("node-name", "write-threshold", "amount-exceeded"))
        if not isinstance(node, str) or type(threshold) is not int or type(exceeded_by) is not int:
            return
        state.space_changed = True
        state.collectors_to_poll |= {"nodes"}
        owner = "other"
        for device, tracker in state.trackers.items():
            if tracker.slot.was_set_by_agent(node, threshold):
                state.slots_read -= {device}
                crossings = tracker.on_event(node, threshold, exceeded_by)
                if isinstance(tracker.usage.pool, PoolUsage):
                    tracker.usage.pool.on_read_request(tracker.usage.pool)
                yield from self._report_crossings(state, device, tracker, crossings, event.time_ns)
                if node not in tracker.usage.past_nodes:
                    return
                owner = "agent"  # the image is now a backing file, and a job such as a commit writes to it
        yield from self._fire_node_threshold(state, event, node, threshold, exceeded_by, owner, now_ns)

    def _fire_node_threshold(
        self,
        state: VmProcessState,
        event: Record,
        node: str,
        threshold: int,
        exceeded_by: int,
        owner: str,
        now_ns: int,
    ) -> Iterator[Record]:
        """Fire the alert of a write threshold that does not belong to an alert level of a disk."""
        device, layer, path = self._locate_node(state, node)
        tracker = state.trackers.get(device)
        state.slots_read -= {device}
        figures: dict[str, Any] = {}
        if tracker is not None and node == tracker.usage.storage.node:
            tracker.usage.on_threshold_exceeded(threshold + exceeded_by)
            figures = disk_space_values(tracker.usage)
        location = {"device": device, "layer": layer, "node": node, "owner": owner} | ({"path": path} if path else {})
        sizes = {"level_bytes": threshold, "exceeded_by_bytes": exceeded_by, **figures}
        data = {"detected_by": DetectedBy.EVENT.value, **location, **sizes}
        attributes = {"level": f"threshold {threshold}", "until_ns": now_ns + int(HOUR * 1e9)}
        yield from self._store.fire(
            state.build_alert("write_threshold", device, Severity.WARNING, event.time_ns, data, **attributes)
        )

    def _locate_node(self, state: VmProcessState, node: str) -> tuple[str, str, str]:
        """Return the device, the layer and the path of a block node.

        For a node of no known disk, return the node's name as the device, the layer `node` and an empty path.
        """
        for device, tracker in state.trackers.items() if node else ():
            if node == tracker.usage.storage.node:
                return device, "storage", tracker.usage.storage.path
            if node == tracker.usage.format.node:
                return device, "format", tracker.usage.format.path
        for device, tracker in state.trackers.items():
            if node in tracker.usage.past_nodes:
                return device, "backing", tracker.usage.past_nodes[node]
        if node in state.layers:
            device, layer, path = state.layers[node]
            return device, "backing" if layer.startswith("backing") else layer, path
        return node, "node", ""

    def device_of_event(self, state: VmProcessState, subject: str, qemu: Mapping[str, Any]) -> tuple[str, bool]:
        """Return the device of an event, and whether this device is certain.

        Args:
            state: The process.
            subject: The event's subject: a device, a block backend or a block node.
            qemu: The event's data from QEMU.
        """
        if subject in state.trackers or not subject:
            return subject, bool(subject)
        for name in (subject, qemu.get("device"), qemu.get("node-name")):
            if not isinstance(name, str) or not name:
                continue
            if name in state.aliases:
                return state.aliases[name], True
            device, layer, _ = self._locate_node(state, name)
            if layer != "node":
                return device, True
        # Omit a node name that QEMU generated: operators do not know the name, and each new name would create a time series.
        return ("" if subject.startswith("#") else subject), isinstance(qemu.get("qom-path"), str)

    # Corrupt images.

    def image_fields(self, state: VmProcessState, qemu: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that identify the image of a BLOCK_IMAGE_CORRUPTED event; none if the event names no node."""
        node = qemu.get("node-name")
        if not isinstance(node, str) or not node:
            return {}
        _, layer, path = self._locate_node(state, node)
        return {"node": node, "is_marked": qemu.get("fatal") is True} | ({"path": path} if layer != "node" else {})

    def _resolve_corrupt_image(
        self, state: VmProcessState, device: str, by_layer: Mapping[str, Sample], time_ns: int
    ) -> Iterator[Record]:
        """Resolve the alert of a disk's corrupt image if the image was replaced or repaired."""
        alert = self._store.find(state.owner, "image_corrupted", device)
        if alert is None or time_ns < alert.seen_ns:
            return
        path, node = alert.data.get("path"), alert.data.get("node")
        images = [sample.values for sample in by_layer.values()]
        same_path = [image for image in images if image.get("path") == path] if path else images
        if not same_path or (path and node and all(image.get("node") != node for image in images)):
            yield from self._store.resolve([alert], time_ns, "replaced")
        elif alert.data.get("is_marked") and not any(image.get("corrupt") for image in same_path):
            yield from self._store.resolve([alert], time_ns, "repaired")

    def _report_crossings(
        self,
        state: VmProcessState,
        device: str,
        tracker: ThresholdTracker,
        crossings: Iterable[DiskLevelCrossing],
        time_ns: int,
    ) -> Iterator[Record]:
        """Fire or resolve the alert of each crossed level."""
        for crossing in crossings:
            severity = Severity.CRITICAL if crossing.is_highest_of_several_levels else Severity.WARNING
            data = {"detected_by": crossing.detected_by.value, "device": device, "layer": "storage", "owner": "agent"}
            data |= {"level_bytes": crossing.level.bytes} | disk_space_values(tracker.usage)
            alert = state.build_alert("write_threshold", device, severity, time_ns, data, level=crossing.level.text)
            if crossing.firing:
                yield from self._store.fire(alert)
            else:
                reason = crossing.resolved_by.value
                yield from self._store.resolve([alert], time_ns, reason, disk_space_values(tracker.usage))

    # Commands.

    def pop_pending_commands(self, state: VmProcessState) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its device. After this call, these thresholds count as set.

        QEMU stores one threshold for each block node, and other clients may also set thresholds. So the agent sends at most one command
        after each read of the stored threshold.
        """
        slots_read, state.slots_read = state.slots_read, EMPTY_SET
        commands = []
        for device in sorted(slots_read & state.trackers.keys()):
            threshold = state.trackers[device].mark_next_threshold_as_set()
            if threshold is not None:
                state.space_changed = True
                arguments = dict(zip(("node-name", "write-threshold"), threshold, strict=True))
                commands.append((device, Command("block-set-write-threshold", arguments)))
        return commands

    def on_command_done(self, state: VmProcessState, device: str, *, done: bool) -> None:
        """Handle the outcome of the command that set a disk's threshold; `done` is whether QEMU confirmed the command.

        After a success, the agent polls the disk, because a write may have crossed a level in the meantime. After a failure, the agent
        reads the threshold from QEMU, because QEMU may have executed the command although its response was lost.
        """
        if device in state.trackers:
            state.trackers[device].on_command_done(done=done)
            state.collectors_to_poll |= {"block" if done else "nodes"}
