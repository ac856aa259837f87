"""Known facts about one VM: samples, rates, history, alerts and pools. The functions that find causes read these facts. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

from agent.exposition.rates import LabelValues, PollPair, ValuesBySubject
from agent.exposition.snapshot import Snapshot, VmView
from agent.model.family import Family, FieldValues
from agent.model.metrics.host_resources import HOST
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL
from agent.model.metrics.vm_process_and_interfaces import VCPU

MAX_RATE_AGE = 60.0
"""Maximum age of rates in seconds. Older rates do not explain the current state."""
MAX_MISSED_POLLS = 3
"""Maximum age of rates in polling intervals. The larger of this limit and `MAX_RATE_AGE` applies."""


class CauseFinding(NamedTuple):
    """Evidence that one cause applies to a VM.

    Attributes:
        subject: the disk, job, pool or other part of the VM; empty for the VM as a whole.
        sentence: the evidence with figures, in plain words.
        figures: the figures of the sentence, in base units such as bytes and seconds.
    """

    subject: str
    sentence: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Samples, state, alerts and pools of one VM, from which `explain` finds causes.

    Attributes:
        view: the VM's state and samples.
        pools: the samples of the host's pools.
        host: the last sample of the family `host`; empty before the first sample.
        alerts: the VM's firing alerts, in the form of /overview.
        now: the present time in seconds since the epoch.
    """

    view: VmView
    now: float
    pools: ValuesBySubject = field(default_factory=dict)
    alerts: Sequence[Mapping[str, Any]] = ()
    host: FieldValues = field(default_factory=dict)

    @classmethod
    def from_samples(
        cls, snapshot: Snapshot, view: VmView, alerts: Sequence[Mapping[str, Any]], now: float
    ) -> "Evidence":
        """Return the evidence about a VM, from the stored samples and the VM's alerts."""
        return cls(
            view,
            now,
            snapshot.host_samples.get(POOL.name, {}),
            alerts,
            snapshot.host_samples.get(HOST.name, {}).get((), {}),
        )

    def latest_values_by_subject(self, family: Family) -> ValuesBySubject:
        """Return the last values of a family for each subject, such as a disk; empty without values."""
        poll = self.view.polls.get(family.name)
        return poll.current if poll is not None else {}

    def whole_vm_values(self, family: Family) -> FieldValues:
        """Return the last values of a family that describes the whole VM."""
        return self.latest_values_by_subject(family).get((), {})

    def whole_vm_number(self, family: Family, name: str) -> float | None:
        """Return a number of a family that describes the whole VM; None if unknown."""
        return finite_number_or_none(self.whole_vm_values(family), name)

    def counter_rates(self, family: Family, labels: LabelValues, names: Iterable[str]) -> dict[str, float]:
        """Return how much the counters of one subject, such as a disk, increase per second; empty if the last two polls are too old."""
        poll = self._fresh_poll(family)
        return poll.rates_for_labels(labels, names) if poll is not None else {}

    def counter_rate(self, family: Family, name: str, labels: LabelValues = ()) -> float | None:
        """Return the increase per second of one counter; None if unknown or too old."""
        return self.counter_rates(family, labels, (name,)).get(name)

    def _fresh_poll(self, family: Family) -> PollPair | None:
        poll = self.view.polls.get(family.name)
        if poll is None:
            return None
        interval = (poll.time_ns - poll.previous_ns) / 1e9 if poll.previous_ns else 0.0
        return poll if self.now - poll.time_ns / 1e9 <= max(MAX_RATE_AGE, MAX_MISSED_POLLS * interval) else None

    def pools_of_disks(self) -> Iterator[tuple[LabelValues, list[str], FieldValues]]:
        """Yield each pool with images of the VM: the pool's label values, the VM's disks, and the pool's values."""
        disks: dict[LabelValues, list[str]] = {}
        for (device, _layer), values in self.latest_values_by_subject(BLOCK_STORAGE).items():
            if "pool" in values:
                of_pool = disks.setdefault((values["pool"], values.get("kind", "")), [])
                if device not in of_pool:
                    of_pool.append(device)
        for labels, devices in disks.items():
            if labels in self.pools:
                yield labels, devices, self.pools[labels]

    def vcpu_count(self) -> int:
        """Return the number of vCPUs whose threads are known."""
        return len(self.latest_values_by_subject(VCPU))

    def alerts_named(self, *names: str) -> list[Mapping[str, Any]]:
        """Return the firing alerts with one of these names."""
        return [alert for alert in self.alerts if alert["alert"] in names]


def finite_number_or_none(values: Mapping[str, Any], name: str) -> float | None:
    """Return a value of a sample if it is a finite number; otherwise None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return value
