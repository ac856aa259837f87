"""The types of the metrics table: a field, a family (the fields of one type of sample), and a sample. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, NamedTuple

FieldValues = dict[str, Any]
"""A sample's fields by name: numbers in base units, flags, texts. A value that QEMU did not report is absent."""


class FieldKind(StrEnum):
    """The type of a field, which decides how the field is exported to Prometheus."""

    COUNTER = auto()
    """A number that never falls while the QEMU process runs; exported as a counter."""
    GAUGE = auto()
    """A number that can rise and fall; exported as a gauge."""
    FLAG = auto()
    """True or false; exported as a gauge with the value 1 or 0."""
    STATE = auto()
    """A value of an enumeration; exported as a label of a gauge with the value 1. The label has the field's name."""
    NAME = auto()
    """An identifier for joins in PromQL; exported as a label of a gauge with the value 1. The label has the field's name."""
    HISTOGRAM = auto()
    """Counts of operations by duration, from QEMU's BlockLatencyHistogramInfo; exported as a histogram."""
    TEXT = auto()
    """Text; only in records, not exported to Prometheus."""
    DETAIL = auto()
    """JSON as QEMU sent it; only in records, not exported to Prometheus."""


COUNTER, GAUGE, FLAG, STATE, NAME, HISTOGRAM, TEXT, DETAIL = FieldKind


class Unit(StrEnum):
    """The unit in which QEMU or the kernel reports a value. Records and series use base units: seconds, bytes and ratios."""

    BASE = ""
    NANOSECONDS = "ns"
    MICROSECONDS = "us"
    MILLISECONDS = "ms"
    MEGABITS = "Mbit/s"
    MEBIBYTES = "MiB"
    PERCENT = "%"
    TICKS = "clock ticks"
    SECTORS = "sectors of 512 bytes"
    PAGES = "pages"
    KIBIBYTES = "kB"
    """1024 bytes. /proc calls this unit kB."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the metrics table: a value that the agent reads from a QMP reply or from a file in /proc or /sys.

    Attributes:
        path: the keys that lead to the value in the reply's JSON object and its nested objects, separated by dots.
        name: the name of the value in records. The Prometheus metric is `qemu_<family>_<name>`. Names of counters end in `_total`.
        kind: the type of the value, which decides whether and how the value is exported to Prometheus.
        help: the help text. On /metrics, the family's source and the path follow the text.
        unit: the unit in which QEMU or the kernel reports the value.
    """

    path: str
    name: str
    kind: FieldKind
    help: str
    unit: Unit = Unit.BASE


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The fields of one type of sample: `qemu.sample.<name>` in records, `qemu_<name>_<field>` in series. Families compare by identity.

    Attributes:
        name: the family's name.
        source: the QMP commands or the files that have the values.
        help: the help text of the family as a whole.
        labels: names of the Prometheus labels in addition to `vm_uuid` and `vm`. A sample has the values in this order.
        fields: the rows of the metrics table.
        unavailable: numbers that QEMU sends in place of an unknown value.
        on_change: whether a record is emitted only if a value has changed since the last record.
        from_host_or_agent: whether the values come from the host's kernel or from the agent itself. The samples do not prove that QEMU
            responds.
        per_host: whether the samples belong to the host, and not to a VM. Metrics of a host have no labels of a VM.
        from_guest: whether the guest agent reports the values. The samples do not prove that QEMU responds.
    """

    name: str
    source: str
    help: str
    labels: tuple[str, ...]
    fields: tuple[Field, ...]
    unavailable: frozenset[int] = frozenset()
    on_change: bool = False
    from_host_or_agent: bool = False
    per_host: bool = False
    from_guest: bool = False
    type: str = field(init=False)
    """The record type of the family's samples."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", f"qemu.sample.{self.name}")

    def metric_name(self, field: Field) -> str:
        """Return the name of the field's Prometheus metric."""
        return f"qemu_{self.name}_{field.name}"

    def exported_fields(self) -> Iterator[Field]:
        """Yield the fields that are exported to Prometheus."""
        return (field for field in self.fields if field.kind not in (FieldKind.TEXT, FieldKind.DETAIL))


class Sample(NamedTuple):
    """The values of one disk, vCPU, job or other subject in one poll.

    Attributes:
        family: the family that the values belong to.
        labels: the values of the family's labels, which identify the subject; empty for the VM as a whole.
        values: the fields by name.
    """

    family: Family
    labels: tuple[str, ...]
    values: FieldValues

    @property
    def subject(self) -> str:
        """The `subject` of the sample's record: the value of the first label; empty for the VM as a whole."""
        return self.labels[0] if self.labels else ""

    @property
    def data(self) -> FieldValues:
        """The `data` of the sample's record: the labels and the fields, by name."""
        return dict(zip(self.family.labels, self.labels, strict=True)) | self.values
