"""How much of /metrics one VM may take. Pure.

The names of disks, jobs and the like are the VM's to choose, and Prometheus keeps an index entry for every name that it ever saw: so
there is a bound to those there are, and one to those that come and go. Records have them all.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.model.family import Family, Kind, Sample, Values
from agent.model.metrics import FAMILIES

HOUR_NS = 3600 * 1_000_000_000

_UNSEEN = {
    family.name: {f.name for f in family.fields} - {f.name for f in family.exported_fields()} for family in FAMILIES
}
_HISTOGRAMS = {
    family.name: [field.name for field in family.fields if field.kind is Kind.HISTOGRAM] for family in FAMILIES
}


def _series(family: Family, values: Values) -> int:
    """Return how many series a subject has; a histogram has one for each bin and two more."""
    count = len(values) - sum(map(values.__contains__, _UNSEEN[family.name]))
    return count + sum(len(values[name]["counts"]) + 1 for name in _HISTOGRAMS[family.name] if name in values)


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """The bounds.

    Attributes:
        series: of one VM's subjects (disks, vCPUs, jobs and the like), all together; the catalogue bounds those of the VM as a whole.
        subjects: that are new to one VM within an hour.
    """

    series_per_vm: int = 5000
    new_subjects_per_hour: int = 10_000


DEFAULT_LIMITS = SeriesLimits()


class SeriesLimiter:
    """The bounds of one VM, and what of them is taken."""

    def __init__(self) -> None:
        self._series: dict[str, int] = {}
        self._new = 0
        self._gone: dict[tuple[str, tuple[str, ...]], None] = {}  # an empty set is three times as large
        self._since_ns = 0

    def admit(
        self,
        family: Family,
        before: Collection[tuple[str, ...]],
        samples: Sequence[Sample],
        time_ns: int,
        limits: SeriesLimits,
    ) -> Sequence[Sample]:
        """Return those samples that get series, which are the first of them, and take what they need instead of what their family had.

        Args:
            family: whose samples these are.
            before: the labels of those that got series last.
            samples: all that there are of it.
            time_ns: when they were seen, nanoseconds since the epoch.
            limits: the bounds.
        """
        if not family.labels:
            return samples
        if time_ns - self._since_ns > HOUR_NS:
            self._since_ns, self._new = time_ns, 0
            self._gone.clear()
        self._series[family.name] = 0
        room = limits.series_per_vm - sum(self._series.values())
        kept: list[Sample] = []
        stay = 0
        for sample in samples:
            need = _series(family, sample.values)
            if need > room:
                break
            if sample.labels in before:
                stay += 1
            elif (family.name, sample.labels) not in self._gone:
                if self._new >= limits.new_subjects_per_hour:
                    continue
                self._new += 1
            room -= need
            self._series[family.name] += need
            kept.append(sample)
        if stay < len(before):
            self._gone |= {(family.name, labels): None for labels in {*before} - {one.labels for one in kept}}
        return kept
