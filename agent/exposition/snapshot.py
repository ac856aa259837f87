"""The latest samples of every VM and the state of every monitor, for scrapes and the page. Pure.

All samples of one family of a VM are replaced at once. So a reader never gets a mixture of two polls, and an unplugged disk disappears.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agent.exposition.rates import Labels, PollPair, Subjects
from agent.exposition.series_limits import DEFAULT_LIMITS, SeriesLimiter, SeriesLimits, has_same_series
from agent.exposition.summary import History, update_history
from agent.model.events import EVENTS
from agent.model.family import Family, Sample, Values
from agent.model.metrics.block import BLOCK
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, Vm
from agent.session.api import MonitorState, MonitorStatus


@dataclass(slots=True, eq=False)
class VmView:
    """The present state of one VM; compared by identity.

    Attributes:
        status: the state of the VM's monitor.
        labels: the VM's labels in Prometheus' text format, `vm_uuid="...",vm="..."`.
        last_response_ns: time of the VM's last response, nanoseconds since the epoch; 0 if there was none.
        guest_response_ns: time of the last values from the VM's guest agent, nanoseconds since the epoch; 0 if there were none.
        events: number of events by name since the VM was attached.
        dropped_subjects: by family name, number of subjects that have no series because the VM exceeds its series limits.
        polls: by family name, the family's last two polls; a family that never had samples is absent.
        label_texts: by family name, each subject's labels in Prometheus' text format; each text is built when it is first used.
        history: the VM's activity at its last polls, for the page's sparklines.
        revision: number of changes to this state. A reader compares it to detect a change.
        limiter: applies the series limits to the VM's samples.
    """

    status: MonitorStatus
    labels: str
    last_response_ns: int = 0
    guest_response_ns: int = 0
    events: Counter[str] = field(default_factory=Counter)
    dropped_subjects: Counter[str] = field(default_factory=Counter)
    polls: dict[str, PollPair] = field(default_factory=dict)
    label_texts: dict[str, dict[Labels, str]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    revision: int = 0
    limiter: SeriesLimiter = field(default_factory=SeriesLimiter)

    def labeled_values(self, family: Family, subjects: Subjects) -> Iterator[tuple[str, Values]]:
        """Yield the labels, in Prometheus' text format, and the values of each subject of one poll."""
        texts = self.label_texts.setdefault(family.name, {})
        if len(texts) > 2 * len(subjects) + 8:  # most belong to subjects that are gone
            texts.clear()
        for labels, values in subjects.items():
            text = texts.get(labels)
            if text is None:
                subject_labels = zip(family.labels, labels, strict=True)
                text = "".join((self.labels, *(f',{name}="{escape_label(value)}"' for name, value in subject_labels)))
                texts[labels] = text
            yield text, values


def escape_label(value: str) -> str:
    """Return a label's value as Prometheus' text format requires it: with escaped backslashes, quotes and line ends."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_HANDED_OVER = frozenset({"finish-migrate", "postmigrate"})
"""Run states of the source of a migration whose guest runs in the destination, or will run there."""


def _run_state(view: VmView) -> object:
    """Return QEMU's RunState of a VM; None if the agent has not polled that yet."""
    polls = view.polls.get(RUNSTATE.name)
    return polls.current.get((), {}).get("status") if polls is not None else None


class Snapshot:
    """The state of all VMs and monitors. Sessions write it and the endpoint reads it, all on the event loop, so no lock is needed."""

    def __init__(self, limits: SeriesLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        """Series limits of each VM. New limits apply to the next samples."""
        self.monitors: dict[tuple[object, ...], MonitorStatus] = {}
        self.host: dict[str, Subjects] = {}
        """Samples of the host itself, such as its pools: by family name, the values of each subject."""
        self.on_replaced: Callable[[Vm, Sequence[Family]], None] = lambda _vm, _families: None
        """Called after the samples of some families of an attached VM were replaced."""
        self._views: dict[Vm, VmView] = {}

    def views(self) -> Iterator[tuple[Vm, VmView]]:
        """Yield the VMs, one for each UUID.

        Several VMs have one UUID during a migration within the host. The first of them is used until its guest has stopped for the
        migration and another one runs. So neither a clone nor a compromised QEMU replaces another VM by reporting that VM's UUID.
        """
        holders: dict[str, VmView] = {}
        for vm, view in self._views.items():
            holder = holders.setdefault(vm.uuid, view)
            if _run_state(holder) in _HANDED_OVER and _run_state(view) == "running":
                holders[vm.uuid] = view
        return ((vm, view) for vm, view in self._views.items() if holders[vm.uuid] is view)

    def update_status(self, status: MonitorStatus) -> None:
        """Store a monitor's new state. A VM that is gone has no series."""
        self.monitors[status.monitor.key] = status
        if status.vm is None:
            return
        if status.state in (MonitorState.UP, MonitorState.STALLED):
            view = self._views.get(status.vm)
            if view is None:
                vm = status.vm
                self._views[vm] = VmView(status, f'vm_uuid="{vm.uuid}",vm="{escape_label(vm.name)}"')
            else:
                view.status = status
                view.revision += 1
        elif (view := self._views.get(status.vm)) is not None and view.status.monitor.key == status.monitor.key:
            del self._views[status.vm]

    def is_attached(self, vm: Vm) -> bool:
        """Return whether a VM is attached."""
        return vm in self._views

    def remove_monitor(self, key: tuple[object, ...]) -> None:
        """Remove a monitor that is no longer supervised.

        Args:
            key: the key of the monitor, `Monitor.key`.
        """
        self.monitors.pop(key, None)

    def replace_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Replace a VM's samples of some families. Sample objects that are already stored change nothing.

        Args:
            vm: the VM.
            families: the polled families. If one of them has no samples, the VM has no such subjects now.
            samples: all samples of these families.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        view = self._views.get(vm)
        if view is None:
            return
        if not all(family.host_only or family.from_guest for family in families):
            view.last_response_ns = time_ns  # the time may go back when the clock is set
        if samples and any(family.from_guest for family in families):
            view.guest_response_ns = time_ns
        view.revision += 1
        remaining = len(samples)
        for family in families:
            family_samples = [sample for sample in samples if sample.family is family] if remaining else []
            remaining -= len(family_samples)
            self._replace_family(view, family, family_samples, time_ns)
        if BLOCK in families and BLOCK.name in view.polls:  # the one family that is part of every poll
            update_history(view.polls, view.history)
        self.on_replaced(vm, families)

    def _replace_family(self, view: VmView, family: Family, samples: Sequence[Sample], time_ns: int) -> None:
        """Replace all samples of one family."""
        polls = view.polls.get(family.name)
        if polls is None:
            if not samples:
                return
            polls = view.polls[family.name] = PollPair()
        elif polls.limits is self.limits and not view.dropped_subjects[family.name]:
            if polls.is_current(samples):
                return
            if has_same_series(family, polls.current, samples):
                polls.update({sample.labels: sample.values for sample in samples}, time_ns)
                return
        polls.limits = self.limits
        admitted = view.limiter.admit(family, polls.current, samples, time_ns, self.limits)
        if len(admitted) < len(samples) or family.name in view.dropped_subjects:
            view.dropped_subjects[family.name] = len(samples) - len(admitted)
        polls.update({sample.labels: sample.values for sample in admitted}, time_ns)

    def replace_host_sample(self, sample: Sample) -> None:
        """Store the latest sample of a subject of the host, such as a storage pool. No limit applies, because no guest chooses the name."""
        self.host.setdefault(sample.family.name, {})[sample.labels] = sample.values

    def remove_host_sample(self, family: Family, labels: Labels) -> None:
        """Remove the sample of a subject that the host no longer has."""
        self.host.get(family.name, {}).pop(labels, None)

    def stored_values(self, vm: Vm, sample: Sample) -> Values | None:
        """Return the stored values of the subject of a sample; None if no values are stored."""
        view = self._views.get(vm)
        polls = view.polls.get(sample.family.name) if view is not None else None
        return polls.current.get(sample.labels) if polls is not None else None

    def has_samples(self, vm: Vm, family: Family) -> bool:
        """Return whether a VM has samples of a family now."""
        view = self._views.get(vm)
        return view is not None and family.name in view.polls and bool(view.polls[family.name].current)

    def count_event(self, record: Record) -> None:
        """Count an event of QEMU. All events without a row in the event table count under one name, because QEMU may send any name."""
        view = self._views.get(record.vm)
        if view is not None:
            name = record.data["event"]
            view.events[name if name in EVENTS else "unknown"] += record.data.get("count", 1)
            view.revision += 1
