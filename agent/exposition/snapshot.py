"""The last samples of every VM and the state of every monitor, as the scrape and the page read them. Pure.

A family of a VM is replaced whole, so a reader sees one poll's answer or the next one's, and a disk that was unplugged is not in it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.exposition.rates import Labels, PollPair, Subjects
from agent.exposition.series_limits import DEFAULT_LIMITS, SeriesLimiter, SeriesLimits
from agent.exposition.summary import History, remember
from agent.model.events import EVENTS
from agent.model.family import Family, Sample, Values
from agent.model.metrics.block import BLOCK
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, Vm
from agent.session.api import MonitorState, MonitorStatus


@dataclass(slots=True, eq=False)
class VmView:
    """What is known of one VM; equal to itself alone.

    Attributes:
        status: its session's state.
        labels: its own labels in the text format, `vm_uuid="...",vm="..."`.
        replied_ns: when it last answered, nanoseconds since the epoch; 0 is never.
        events: how many of each event it sent while we listened.
        left_out: by family name, how many subjects have no series because there are too many.
        pairs: by family name, its last two polls; a family that the VM never had anything of is not there.
        texts: by family name, each subject's labels in the text format, made when they are first wanted.
        history: what the VM did of late.
        turn: counts the changes to any of this, so that who looks on can tell whether there is something new.
        cap: what it may take.
    """

    status: MonitorStatus
    labels: str
    last_response_ns: int = 0
    events: Counter[str] = field(default_factory=Counter)
    dropped_subjects: Counter[str] = field(default_factory=Counter)
    pairs: dict[str, PollPair] = field(default_factory=dict)
    texts: dict[str, dict[Labels, str]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    revision: int = 0
    limiter: SeriesLimiter = field(default_factory=SeriesLimiter)

    def named(self, family: Family, now: Subjects) -> Iterator[tuple[str, Values]]:
        """Yield, of what there was of a family at one poll, each subject's labels in the text format and its values."""
        texts = self.texts.setdefault(family.name, {})
        if len(texts) > 2 * len(now) + 8:  # most are of subjects that are gone
            texts.clear()
        for labels, values in now.items():
            text = texts.get(labels)
            if text is None:
                named = zip(family.labels, labels, strict=True)
                text = texts[labels] = "".join((self.labels, *(f',{name}="{escape(value)}"' for name, value in named)))
            yield text, values


def escape(value: str) -> str:
    """Return a label's value as the text format has it."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _running(view: VmView) -> object:
    """Return whether a VM's guest runs; None where that is not known yet."""
    pair = view.pairs.get(RUNSTATE.name)
    return pair.now.get((), {}).get("running") if pair is not None else None


class Snapshot:
    """Written by the sessions, read by whoever looks; both on the event loop, so that nothing is read half-written."""

    def __init__(self, limits: SeriesLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        """What each VM may take; may be set at any time, and holds from the next samples on."""
        self.monitors: dict[tuple[object, ...], MonitorStatus] = {}
        self._views: dict[Vm, VmView] = {}

    def views(self) -> Iterator[tuple[Vm, VmView]]:
        """Yield the VMs; of several with one UUID (a migration within the host) the first, until that does not run and a later one does.

        So no QEMU that was taken over puts itself in another's place by saying that other's UUID.
        """
        holders: dict[str, VmView] = {}
        for vm, view in self._views.items():
            holder = holders.setdefault(vm.uuid, view)
            if _running(holder) is False and _running(view):
                holders[vm.uuid] = view
        return ((vm, view) for vm, view in self._views.items() if holders[vm.uuid] is view)

    def status(self, status: MonitorStatus) -> None:
        """Take a change of state. A VM that is gone has no series."""
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
        """Take all that a VM has of these families. The same samples again, the very ones, say nothing new."""
        view = self._views.get(vm)
        if view is None:
            return
        if not all(family.host_only for family in families):
            view.last_response_ns = time_ns  # an earlier one than before is the clock put right
        view.revision += 1
        for family in families:
            mine = [sample for sample in samples if sample.family is family] if len(families) > 1 else samples
            pair = view.pairs.get(family.name)
            if pair is None:
                if not mine:
                    continue
                pair = view.pairs[family.name] = PollPair()
            elif pair.limits is self.limits and not view.dropped_subjects[family.name] and pair.holds(mine):
                continue
            pair.limits = self.limits
            kept = view.limiter.admit(family, pair.now, mine, time_ns, self.limits)
            if len(kept) < len(mine) or family.name in view.dropped_subjects:
                view.dropped_subjects[family.name] = len(mine) - len(kept)
            pair.take({sample.labels: sample.values for sample in kept}, time_ns)
        if BLOCK in families and BLOCK.name in view.pairs:  # the one question that every VM is asked at every poll
            remember(view.pairs, view.history)

    def values(self, vm: Vm, sample: Sample) -> Values | None:
        """Return the values that are known of a sample's subject."""
        view = self._views.get(vm)
        pair = view.pairs.get(sample.family.name) if view is not None else None
        return pair.now.get(sample.labels) if pair is not None else None

    def event(self, record: Record) -> None:
        """Count an event; those nobody knows count as one kind, since their names are the guest's QEMU's to choose."""
        view = self._views.get(record.vm)
        if view is not None:
            name = record.data["event"]
            view.events[name if name in EVENTS else "unknown"] += record.data.get("count", 1)
            view.revision += 1
