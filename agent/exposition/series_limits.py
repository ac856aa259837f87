"""Limits on the series of one VM. Pure.

The VM chooses the names of its disks, jobs and other subjects, and Prometheus keeps an index entry for every name it has ever scraped.
So both the number of series and the rate of new names are limited. These limits do not affect records.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agent.model.family import Family, Kind, Sample, Values
from agent.model.metrics import FAMILIES

HOUR_NS = 3600 * 1_000_000_000

_NO_SERIES = {
    family.name: {f.name for f in family.fields} - {f.name for f in family.exported_fields()} for family in FAMILIES
}
_HISTOGRAMS = {
    family.name: [field.name for field in family.fields if field.kind is Kind.HISTOGRAM] for family in FAMILIES
}


def _count_series(family: Family, values: Values) -> int:
    """Return how many series a subject has. A histogram has one series for each bin, and two more."""
    count = len(values) - sum(map(values.__contains__, _NO_SERIES[family.name]))
    return count + sum(len(values[name]["counts"]) + 1 for name in _HISTOGRAMS[family.name] if name in values)


def has_same_series(family: Family, previous: Mapping[tuple[str, ...], Values], samples: Collection[Sample]) -> bool:
    """Return whether these samples have the series of the previous ones, so that the limits need not be applied again.

    The answer is False for a histogram, because the number of its bins may have changed.
    """
    histograms = _HISTOGRAMS[family.name]
    if len(samples) != len(previous):
        return False
    for sample in samples:
        names, before = sample.values.keys(), previous.get(sample.labels)
        if before is None or before.keys() != names or not names.isdisjoint(histograms):
            return False
    return True


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """The limits.

    Attributes:
        series_per_vm: maximum series of one VM's subjects (disks, vCPUs, jobs and others). Series without a subject are few and fixed.
        new_subjects_per_hour: maximum new subjects of one VM within an hour.
    """

    series_per_vm: int = 5000
    new_subjects_per_hour: int = 10_000


DEFAULT_LIMITS = SeriesLimits()


class SeriesLimiter:
    """Applies the limits to one VM."""

    def __init__(self) -> None:
        self._series: dict[str, int] = {}
        self._new = 0
        self._departed: dict[tuple[str, tuple[str, ...]], None] = {}  # a dict: an empty set is three times as large
        self._hour_began_ns = 0

    def admit(
        self,
        family: Family,
        previous: Collection[tuple[str, ...]],
        samples: Sequence[Sample],
        time_ns: int,
        limits: SeriesLimits,
    ) -> Sequence[Sample]:
        """Return the samples of one family that get series: the first ones within the limits. They replace the family's previous series.

        Args:
            family: the samples' family.
            previous: labels of the subjects that have series now.
            samples: all samples of the family.
            time_ns: time of the poll, nanoseconds since the epoch.
            limits: the limits.
        """
        if not family.labels:
            return samples
        if time_ns - self._hour_began_ns > HOUR_NS:
            self._hour_began_ns, self._new = time_ns, 0
            self._departed.clear()
        self._series[family.name] = 0
        available = limits.series_per_vm - sum(self._series.values())
        admitted: list[Sample] = []
        staying = 0
        for sample in samples:
            needed = _count_series(family, sample.values)
            if needed > available:
                break
            if sample.labels in previous:
                staying += 1
            elif (family.name, sample.labels) not in self._departed:
                if self._new >= limits.new_subjects_per_hour:
                    continue
                self._new += 1
            available -= needed
            self._series[family.name] += needed
            admitted.append(sample)
        if staying < len(previous):
            departed = {*previous} - {sample.labels for sample in admitted}
            self._departed |= {(family.name, labels): None for labels in departed}
        return admitted
