"""Stores the latest samples of every VM and the state of every monitor, for scrapes and the web page. Pure.

All samples of one family of a VM are replaced at once. So a reader never gets a mixture of two polls. An unplugged disk disappears.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import nan

from agent.exposition.history import MIN_STEP_RATIO, History, HistoryBudget
from agent.exposition.history_recorder import (
    HISTORY_COLUMNS,
    HOST_STEP_SECONDS,
    MAX_POINT_AGE_SECONDS,
    POOL_COLUMNS,
    HistoryRecorder,
    sum_vm_points,
)
from agent.exposition.latency import LatencyWindows
from agent.exposition.rates import LabelValues, PollPair, ValuesBySubject
from agent.exposition.series_limits import DEFAULT_SERIES_LIMITS, SeriesLimiter, SeriesLimits
from agent.model.event_table import EVENT_DEFINITIONS_BY_NAME
from agent.model.family import Family, FieldValues, Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.guest import GUEST_FREEZE
from agent.model.metrics.host_resources import HOST
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.storage_pool import POOL
from agent.model.record import Record, Vm
from agent.session.shared_types import MonitorState, MonitorStatus

DEFAULT_HISTORY_BYTES = 16 << 20
"""Memory limit of the histories of all VMs, in bytes."""
MAX_DEPARTED = 64
"""Maximum number of detached VMs whose history is kept."""


@dataclass(slots=True, eq=False)
class VmView:
    """The latest samples and the state of one attached VM. Objects compare by identity.

    Attributes:
        status: the state of the VM's monitor.
        label_text: the VM's labels in Prometheus' text format, `vm_uuid="...",vm="..."`.
        history_recorder: records the VM's history, for the page's graphs.
        last_response_ns: time of the VM's last response, in nanoseconds since the epoch; 0 before the first response.
        guest_response_ns: time of the last values from the VM's guest agent, in nanoseconds since the epoch; 0 before the first values. The
            time does not change while the guest's file systems are frozen.
        events: number of events by name since the VM was attached.
        dropped_subjects: number of disks and other subjects without series, because the VM exceeds its series limits, by family name.
        polls: the last two polls of each family, by family name; a family that never had samples is absent.
        subject_label_texts: cache of the labels of each subject, such as a disk, in Prometheus' text format, by family name.
        revision: number of changes to this object. Readers compare the number to detect a change.
        series_limiter: applies the series limits to the VM's samples.
        latency_windows: quantiles of the disks' latency; None if no disk ever had a latency histogram.
        space_samples: the last stored list of `block_space` samples; None if the samples have to be stored again.
        space_samples_limits: the series limits that were applied to `space_samples`.
    """

    status: MonitorStatus
    label_text: str
    history_recorder: HistoryRecorder
    last_response_ns: int = 0
    guest_response_ns: int = 0
    events: Counter[str] = field(default_factory=Counter)
    dropped_subjects: Counter[str] = field(default_factory=Counter)
    polls: dict[str, PollPair] = field(default_factory=dict)
    subject_label_texts: dict[str, dict[LabelValues, str]] = field(default_factory=dict)
    revision: int = 0
    series_limiter: SeriesLimiter = field(default_factory=SeriesLimiter)
    latency_windows: LatencyWindows | None = None
    space_samples: Sequence[Sample] | None = None
    space_samples_limits: SeriesLimits | None = None

    def values_with_label_text(self, family: Family, subjects: ValuesBySubject) -> Iterator[tuple[str, FieldValues]]:
        """Yield each subject of one poll, such as a disk: its labels in Prometheus' text format, and its values."""
        texts = self.subject_label_texts.setdefault(family.name, {})
        if len(texts) > 2 * len(subjects) + 8:  # most of the cached texts belong to subjects that no longer exist
            texts.clear()
        for labels, values in subjects.items():
            text = texts.get(labels)
            if text is None:
                subject_labels = zip(family.labels, labels, strict=True)
                text = "".join(
                    (self.label_text, *(f',{name}="{escape_label(value)}"' for name, value in subject_labels))
                )
                texts[labels] = text
            yield text, values


def escape_label(value: str) -> str:
    """Escape backslashes, quotes and line ends in a label's value, as Prometheus' text format requires."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_MIGRATED_AWAY_STATES = frozenset({"finish-migrate", "postmigrate"})
"""Run states of a migration's source after its guest has stopped. The guest runs at the destination now or soon."""


def _run_state(view: VmView) -> object:
    """Return QEMU's run state of a VM; None if the agent has not polled the run state yet."""
    polls = view.polls.get(RUNSTATE.name)
    return polls.current.get((), {}).get("status") if polls is not None else None


def _reports_only_freeze(view: VmView, samples: Sequence[Sample]) -> bool:
    """Return whether the guest agent reports only that the file systems are frozen. Its other values then stay old."""
    return bool(view.guest_response_ns) and any(
        sample.family is GUEST_FREEZE and sample.values.get("frozen") is True for sample in samples
    )


@lru_cache(maxsize=256)
def _has_qemu_and_guest_families(families: tuple[Family, ...]) -> tuple[bool, bool]:
    """Return two flags: whether QEMU reports any of the families, and whether the guest agent reports any of the families."""
    return not all(family.from_host_or_agent or family.from_guest for family in families), any(
        family.from_guest for family in families
    )


class Snapshot:
    """The latest samples and states of all VMs and monitors. All reads and writes are on the event loop, so no lock is needed."""

    def __init__(
        self, limits: SeriesLimits = DEFAULT_SERIES_LIMITS, history_bytes: int = DEFAULT_HISTORY_BYTES
    ) -> None:
        self.limits = limits
        """Series limits of each VM. New limits apply from the next samples on."""
        self.monitors: dict[tuple[object, ...], MonitorStatus] = {}
        """The state of each monitor, by `Monitor.key`."""
        self.host_samples: dict[str, ValuesBySubject] = {}
        """Samples of the host itself, such as its pools: the values of each subject, by family name."""
        self.on_samples_replaced: Callable[[Vm, Sequence[Family]], None] = lambda _vm, _families: None
        """Callback after samples of an attached VM were replaced. The arguments are the VM and the families of the samples."""
        self.host_polls = PollPair()
        """The last two samples of the family `host`, for rates."""
        self.host_history = History(len(HISTORY_COLUMNS))
        """History of the sums over all VMs."""
        self._budget = HistoryBudget(history_bytes, len(HISTORY_COLUMNS))
        self._departed: dict[str, HistoryRecorder] = {}  # by UUID
        self._pool_histories: dict[LabelValues, History] = {}
        self._views: dict[Vm, VmView] = {}

    def one_view_per_uuid(self) -> Iterator[tuple[Vm, VmView]]:
        """Yield the attached VMs, one for each UUID.

        During a migration within the host, two QEMUs have the same UUID. The method yields the first QEMU until its guest has stopped for
        the migration and the second guest runs. So a clone or a compromised QEMU cannot replace another VM by reporting its UUID.
        """
        holders: dict[str, VmView] = {}
        for vm, view in self._views.items():
            holder = holders.setdefault(vm.uuid, view)
            if _run_state(holder) in _MIGRATED_AWAY_STATES and _run_state(view) == "running":
                holders[vm.uuid] = view
        return ((vm, view) for vm, view in self._views.items() if holders[vm.uuid] is view)

    def update_monitor_status(self, status: MonitorStatus) -> None:
        """Store a monitor's new state. If the monitor's VM was detached, remove the VM's samples."""
        self.monitors[status.monitor.key] = status
        if status.vm is None:
            return
        if status.state in (MonitorState.UP, MonitorState.STALLED):
            view = self._views.get(status.vm)
            if view is None:
                vm = status.vm
                recorder = self._departed.pop(vm.uuid, None) or HistoryRecorder(self._budget)
                self._views[vm] = VmView(status, f'vm_uuid="{vm.uuid}",vm="{escape_label(vm.name)}"', recorder)
                self._budget.history_count = len(self._views) + len(self._departed)
            else:
                view.status = status
                view.revision += 1
        elif (view := self._views.get(status.vm)) is not None and view.status.monitor.key == status.monitor.key:
            del self._views[status.vm]
            self._departed[status.vm.uuid] = view.history_recorder
            if len(self._departed) > MAX_DEPARTED:
                del self._departed[next(iter(self._departed))]
            self._budget.history_count = len(self._views) + len(self._departed)

    def vm_history(self, uuid: str) -> History | None:
        """Return the history of a VM that is or recently was attached; None for any other VM."""
        recorder = next(
            (view.history_recorder for vm, view in self.one_view_per_uuid() if vm.uuid == uuid),
            self._departed.get(uuid),
        )
        return recorder.history if recorder is not None else None

    def storage_pool_history(self, labels: LabelValues) -> History | None:
        """Return the history of a pool by the pool's labels; None if the pool has no history."""
        return self._pool_histories.get(labels)

    def view_of(self, vm: Vm) -> VmView | None:
        """Return the samples and the state of an attached VM; None if the VM is not attached."""
        return self._views.get(vm)

    def is_vm_attached(self, vm: Vm) -> bool:
        """Return whether a VM is attached."""
        return vm in self._views

    def remove_monitor(self, key: tuple[object, ...]) -> None:
        """Remove a monitor that is no longer supervised.

        Args:
            key: the key of the monitor, `Monitor.key`.
        """
        self.monitors.pop(key, None)

    def replace_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Replace a VM's samples of some families. Sample objects that are passed again count as unchanged.

        Args:
            vm: the VM.
            families: the polled families. A family without samples has no subjects any more.
            samples: all samples of these families.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        view = self._views.get(vm)
        if view is None:
            return
        from_qemu, from_guest = _has_qemu_and_guest_families(tuple(families))
        if from_qemu:
            view.last_response_ns = time_ns  # earlier than the last time if the clock was set back
        if from_guest and samples and not _reports_only_freeze(view, samples):
            view.guest_response_ns = time_ns
        view.revision += 1
        remaining = len(samples)
        for family in families:
            family_samples = [sample for sample in samples if sample.family is family] if remaining else []
            remaining -= len(family_samples)
            if family_samples or family.name in view.polls:
                self._replace_family(view, family, family_samples, time_ns)
        if BLOCK in families and BLOCK.name in view.polls:  # every poll of the disks has this family
            self._record_history(view, time_ns / 1e9)
        self.on_samples_replaced(vm, families)

    def _record_history(self, view: VmView, time: float) -> None:
        """Append points to the histories of a VM and of the host if their next points are due."""
        if not self._budget.bytes or not view.history_recorder.append_if_due(view.polls, time):
            return
        if self.host_history.is_due(time):
            since = time - MAX_POINT_AGE_SECONDS
            recorders = (other.history_recorder for other in self._views.values())
            self.host_history.append(
                time,
                sum_vm_points(
                    [
                        recorder.last_point_sums
                        for recorder in recorders
                        if recorder.last_point_sums and recorder.history.last_time >= since
                    ]
                ),
            )
            self.host_history.next_time = time + HOST_STEP_SECONDS * MIN_STEP_RATIO

    def _replace_family(self, view: VmView, family: Family, samples: Sequence[Sample], time_ns: int) -> None:
        """Replace all samples of one family."""
        polls = view.polls.get(family.name)
        if polls is None:
            polls = view.polls[family.name] = PollPair()
        elif (
            polls.limits is self.limits
            and not view.dropped_subjects.get(family.name)
            and (polls.equals_last_poll(samples) or polls.update_if_same_series(samples, time_ns))
        ):
            return
        polls.limits = self.limits
        admitted = view.series_limiter.select_samples(family, polls.current, samples, time_ns, self.limits)
        if len(admitted) < len(samples) or family.name in view.dropped_subjects:
            view.dropped_subjects[family.name] = len(samples) - len(admitted)
        polls.update({sample.labels: sample.values for sample in admitted}, time_ns)
        if polls.has_histograms:  # polls with histograms never take the fast path above
            view.latency_windows = view.latency_windows or LatencyWindows()
            view.latency_windows.add_poll(polls.current, time_ns)

    def replace_host_sample(self, sample: Sample, time: float = 0.0) -> None:
        """Store the latest sample of a subject of the host, such as a pool. The series limits do not apply.

        Args:
            sample: the sample.
            time: time of the sample in seconds since the epoch; 0 for a sample that has no history.
        """
        self.host_samples.setdefault(sample.family.name, {})[sample.labels] = sample.values
        if sample.family is HOST:
            self.host_polls.update({sample.labels: sample.values}, round(time * 1e9))
        if time and sample.family is POOL and self._budget.bytes:
            history = self._pool_histories.setdefault(sample.labels, History(len(POOL_COLUMNS)))
            if history.is_due(time):
                history.append(time, [float(sample.values.get(f"{name}_bytes", nan)) for name in POOL_COLUMNS])

    def remove_host_sample(self, family: Family, labels: LabelValues) -> None:
        """Remove the sample of a subject that the host no longer has, such as a pool."""
        self.host_samples.get(family.name, {}).pop(labels, None)
        self._pool_histories.pop(labels, None)

    def latest_values_of_sample_subject(self, vm: Vm, sample: Sample) -> FieldValues | None:
        """Return the latest stored values of the disk or other subject that a sample names; None if no values are stored."""
        view = self._views.get(vm)
        polls = view.polls.get(sample.family.name) if view is not None else None
        return polls.current.get(sample.labels) if polls is not None else None

    def vm_has_samples_of_family(self, vm: Vm, family: Family) -> bool:
        """Return whether a VM has samples of a family now."""
        view = self._views.get(vm)
        return view is not None and family.name in view.polls and bool(view.polls[family.name].current)

    def count_event(self, record: Record) -> None:
        """Count an event of QEMU by name. Events that are not in the event table count as `unknown`, because QEMU may send any name."""
        view = self._views.get(record.vm)
        if view is not None:
            name = record.data["event"]
            view.events[name if name in EVENT_DEFINITIONS_BY_NAME else "unknown"] += record.data.get("count", 1)
            view.revision += 1
