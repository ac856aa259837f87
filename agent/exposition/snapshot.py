"""The latest samples of every VM and the state of every monitor, for scrapes and the page. Pure.

All samples of a VM's family are replaced at once. So a reader never sees parts of two polls, and an unplugged disk disappears.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
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
        status: its session's state.
        labels: its own labels in the text format, `vm_uuid="...",vm="..."`.
        last_response_ns: time of its last response, nanoseconds since the epoch; 0 if there was none.
        events: number of events by name since the VM was attached.
        dropped_subjects: by family name, number of subjects without series because of the limits.
        polls: by family name, the family's last two polls; families that the VM never had are absent.
        label_texts: by family name, each subject's labels in the text format, built at their first use.
        history: recent points of the sparklines.
        revision: number of changes to this state, so that readers can detect a change.
        limiter: applies the series limits.
    """

    status: MonitorStatus
    labels: str
    last_response_ns: int = 0
    events: Counter[str] = field(default_factory=Counter)
    dropped_subjects: Counter[str] = field(default_factory=Counter)
    polls: dict[str, PollPair] = field(default_factory=dict)
    label_texts: dict[str, dict[Labels, str]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    revision: int = 0
    limiter: SeriesLimiter = field(default_factory=SeriesLimiter)

    def labeled(self, family: Family, subjects: Subjects) -> Iterator[tuple[str, Values]]:
        """Yield the labels in the text format and the values of each subject of one poll."""
        texts = self.label_texts.setdefault(family.name, {})
        if len(texts) > 2 * len(subjects) + 8:  # most belong to subjects that are gone
            texts.clear()
        for labels, values in subjects.items():
            text = texts.get(labels)
            if text is None:
                own = zip(family.labels, labels, strict=True)
                text = texts[labels] = "".join((self.labels, *(f',{name}="{escape(value)}"' for name, value in own)))
            yield text, values


def escape(value: str) -> str:
    """Return a label's value escaped for the text format."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _running(view: VmView) -> object:
    """Return whether a VM's guest runs; None if that is not known yet."""
    polls = view.polls.get(RUNSTATE.name)
    return polls.current.get((), {}).get("running") if polls is not None else None


class Snapshot:
    """Written by the sessions and read by the endpoint, all on the event loop, so a reader never sees a partial update."""

    def __init__(self, limits: SeriesLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        """Series limits of each VM. New limits apply to the next samples."""
        self.monitors: dict[tuple[object, ...], MonitorStatus] = {}
        self.host: dict[str, Subjects] = {}
        """Samples of the host itself, such as its pools: by family name, the values of each subject."""
        self._views: dict[Vm, VmView] = {}

    def views(self) -> Iterator[tuple[Vm, VmView]]:
        """Yield the VMs, one for each UUID.

        If several VMs have one UUID (a migration within the host), the first VM is used until it stops running and a later one runs.
        So a compromised QEMU cannot replace another VM by reporting that VM's UUID.
        """
        holders: dict[str, VmView] = {}
        for vm, view in self._views.items():
            holder = holders.setdefault(vm.uuid, view)
            if _running(holder) is False and _running(view):
                holders[vm.uuid] = view
        return ((vm, view) for vm, view in self._views.items() if holders[vm.uuid] is view)

    def status(self, status: MonitorStatus) -> None:
        """Store a monitor's new state. A VM that is gone has no series."""
        self.monitors[status.monitor.key] = status
        if status.vm is None:
            return
        if status.state in (MonitorState.UP, MonitorState.STALLED):
            view = self._views.get(status.vm)
            if view is None:
                vm = status.vm
                self._views[vm] = VmView(status, f'vm_uuid="{vm.uuid}",vm="{escape(vm.name)}"')
            else:
                view.status = status
                view.revision += 1
        elif (view := self._views.get(status.vm)) is not None and view.status.monitor.key == status.monitor.key:
            del self._views[status.vm]

    def ended(self, key: tuple[object, ...]) -> None:
        """Forget a monitor."""
        self.monitors.pop(key, None)

    def samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Replace a VM's samples of these families. Samples identical to the stored ones change nothing.

        Args:
            vm: the VM.
            families: the polled families; a family without samples has no subjects now.
            samples: the samples.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        view = self._views.get(vm)
        if view is None:
            return
        if not all(family.host_only for family in families):
            view.last_response_ns = time_ns  # the time may go back when the clock is set
        view.revision += 1
        remaining = len(samples)
        for family in families:
            own = [sample for sample in samples if sample.family is family] if remaining else []
            remaining -= len(own)
            self._replace(view, family, own, time_ns)
        if BLOCK in families and BLOCK.name in view.polls:  # the one family that is part of every poll
            update_history(view.polls, view.history)

    def _replace(self, view: VmView, family: Family, samples: Sequence[Sample], time_ns: int) -> None:
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

    def host_sample(self, sample: Sample) -> None:
        """Store the latest sample of a subject of the host. There are few, and no guest chooses their names, so they have no limit."""
        self.host.setdefault(sample.family.name, {})[sample.labels] = sample.values

    def remove_host_sample(self, family: Family, labels: Labels) -> None:
        """Remove a subject of the host."""
        self.host.get(family.name, {}).pop(labels, None)

    def values(self, vm: Vm, sample: Sample) -> Values | None:
        """Return the stored values of a sample's subject."""
        view = self._views.get(vm)
        polls = view.polls.get(sample.family.name) if view is not None else None
        return polls.current.get(sample.labels) if polls is not None else None

    def event(self, record: Record) -> None:
        """Count an event. Unknown events share one name, because the VM's QEMU chooses their names."""
        view = self._views.get(record.vm)
        if view is not None:
            name = record.data["event"]
            view.events[name if name in EVENTS else "unknown"] += record.data.get("count", 1)
            view.revision += 1
