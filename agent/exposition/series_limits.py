"""Limits on the number of series of one VM. Pure.

A QEMU process chooses the names of its disks, jobs and other subjects, and Prometheus stores a series for each name. A hostile QEMU could
exhaust Prometheus' memory, so the number of series and the rate of new names are limited. These limits do not apply to records.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.model.family import Family, FieldKind, FieldValues, Sample
from agent.model.metrics import FAMILIES

HOUR_NS = 3600 * 1_000_000_000

_FIELDS_WITHOUT_SERIES = {
    family.name: {f.name for f in family.fields} - {f.name for f in family.exported_fields()} for family in FAMILIES
}
_HISTOGRAM_FIELDS = {
    family.name: [field.name for field in family.fields if field.kind is FieldKind.HISTOGRAM] for family in FAMILIES
}


def _count_series(family: Family, values: FieldValues) -> int:
    """Return the number of series of a subject. A histogram has a series for each bin, one for the sum and one for the count."""
    count = len(values) - sum(map(values.__contains__, _FIELDS_WITHOUT_SERIES[family.name]))
    return count + sum(len(values[name]["counts"]) + 1 for name in _HISTOGRAM_FIELDS[family.name] if name in values)


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """Limits on the series of one VM.

    Attributes:
        series_per_vm: maximum number of series of disks, vCPUs, jobs and other subjects. Series of the VM as a whole do not count.
        new_subjects_per_vm_per_hour: maximum number of subjects with new names, such as plugged disks, within an hour.
    """

    series_per_vm: int = 5000
    new_subjects_per_vm_per_hour: int = 10_000


DEFAULT_SERIES_LIMITS = SeriesLimits()


class SeriesLimiter:
    """Decides which disks, vCPUs, jobs and other subjects of one VM get series."""

    def __init__(self) -> None:
        self._series: dict[str, int] = {}
        self._new_subjects = 0  # in the current hour
        # Subjects that lost their series in the current hour. A dict, because an empty set is three times as large.
        self._departed_subjects: dict[tuple[str, tuple[str, ...]], None] = {}
        self._hour_began_ns = 0

    def select_samples(
        self,
        family: Family,
        previous: Collection[tuple[str, ...]],
        samples: Sequence[Sample],
        time_ns: int,
        limits: SeriesLimits,
    ) -> Sequence[Sample]:
        """Return the samples of a poll that the series limits allow, in their order.

        After the limit on series is reached, all later samples are omitted. After the limit on new subjects is reached, only samples of new
        subjects are omitted.

        Args:
            family: the family of the samples.
            previous: labels of the subjects that had series before this poll.
            samples: all samples of the poll.
            time_ns: time of the poll, nanoseconds since the epoch.
            limits: the limits.
        """
        if not family.labels:
            return samples
        if time_ns - self._hour_began_ns > HOUR_NS:
            self._hour_began_ns, self._new_subjects = time_ns, 0
            self._departed_subjects.clear()
        self._series[family.name] = 0
        available = limits.series_per_vm - sum(self._series.values())
        admitted: list[Sample] = []
        already_known = 0
        for sample in samples:
            needed = _count_series(family, sample.values)
            if needed > available:
                break
            if sample.labels in previous:
                already_known += 1
            elif (family.name, sample.labels) not in self._departed_subjects:
                if self._new_subjects >= limits.new_subjects_per_vm_per_hour:
                    continue
                self._new_subjects += 1
            available -= needed
            self._series[family.name] += needed
            admitted.append(sample)
        if already_known < len(previous):
            departed = {*previous} - {sample.labels for sample in admitted}
            self._departed_subjects |= {(family.name, labels): None for labels in departed}
        return admitted
