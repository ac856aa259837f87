"""Sets latency histograms of disks through the sessions, and stores in the journal which histograms the agent has set."""

import logging
import time
from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.app.publisher import RecordPublisher
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import Record, Vm
from agent.qmp.commands import Command
from agent.session.disk_histogram_state_machine import BoundariesNs, HistogramState
from agent.session.latency_histogram_tracker import LatencyHistogramTracker
from agent.session.shared_types import DiskCommandController, VmLifecycleChange

_log = logging.getLogger("agent")


class LatencyHistogramController:
    """Sets latency histograms on disks that have none: implements `DiskCommandController` for the sessions.

    Attributes:
        histograms: the histograms of all disks.
    """

    def __init__(self, boundaries: BoundariesNs, publisher: RecordPublisher) -> None:
        self.histograms = LatencyHistogramTracker(boundaries)
        self._publisher = publisher

    @property
    def is_allowed_by_config(self) -> bool:
        """True if the config lets the agent set histograms."""
        return bool(self.histograms.boundaries)

    @property
    def controller_if_allowed(self) -> DiskCommandController | None:
        """The controller itself; None if the config does not let the agent set histograms."""
        return self if self.is_allowed_by_config else None

    def restore(self) -> None:
        """Restore from the journal which histograms the previous run has set."""
        self.histograms.has_no_journal = self._publisher.delivery.journal is None
        self.histograms.restore(self._publisher.delivery.stored_persistent_entries, time.monotonic())

    def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
        """Store whether the agent is attached to a VM after a lifecycle change."""
        if change is VmLifecycleChange.ATTACHED:
            self.histograms.on_attached(record.vm, record.data.get("pid"))
        elif change in (VmLifecycleChange.GONE, VmLifecycleChange.DETACHED, VmLifecycleChange.MIGRATED_OUT):
            self.histograms.on_detached(record.vm, time.monotonic())

    def on_unplugged(self, event: Record) -> None:
        """Store that a disk was unplugged. `event` is DEVICE_DELETED."""
        self.histograms.on_unplugged(event.vm, event.subject)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Update the known histograms after a poll of disks."""
        if BLOCK in families:
            self.histograms.on_samples(vm, samples)

    async def delete_entries_of_detached_vms(self) -> None:
        """Delete the persistent entries of VMs that have been detached for ten minutes. Call this about once a second."""
        for entry in self.histograms.pop_expired_entries(time.monotonic()):
            await self._publisher.store_entry_in_journal(PersistentEntry(*entry))

    def has_pending_commands(self, vm: Vm) -> bool:
        """Return whether there may be commands to send to a VM now."""
        return self.histograms.has_pending_commands(vm)

    async def pop_pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Store the VM's persistent entry in the journal, then return the commands to send now, each with its disk."""
        commands = self.histograms.pop_pending_commands(vm)
        if commands:
            entry = PersistentEntry(*self.histograms.persistent_entry(vm))
            await self._publisher.store_entry_in_journal(entry)
        return commands

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Handle the end of a command. `done` is whether QEMU confirmed the execution of the command."""
        self.histograms.on_command_done(vm, disk, done=done)
        _log.info("%s: latency histograms of disk %s %s", vm.name, disk, "set" if done else "not set")


class LatencyHistogramStateMetrics(Collector):
    """Prometheus collector of the number of disks by the state of their latency histograms."""

    def __init__(self, controller: LatencyHistogramController) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield the metric, if the agent may set histograms."""
        if not self._controller.is_allowed_by_config:
            return
        metric = GaugeMetricFamily(
            "qmp_agent_latency_histogram_disks",
            "Number of disks by the state of their latency histograms: who has set them, or why there are none.",
            labels=["state"],
        )
        counts = self._controller.histograms.disk_count_by_state()
        for state in HistogramState:
            metric.add_metric([state.value], counts[state])
        yield metric
