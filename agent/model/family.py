"""The metrics table's types: field, family of fields, sample. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, NamedTuple

Values = dict[str, Any]
"""A sample's fields: numbers in base units, flags, texts. A value that QEMU did not report is absent."""


class Kind(StrEnum):
    """The type of a field, which decides how it is exported."""

    COUNTER = auto()
    """A number that never falls during the process's life; a series."""
    GAUGE = auto()
    """A number that rises and falls; a series."""
    FLAG = auto()
    """True or false; a series of 1 or 0."""
    STATE = auto()
    """One value of an enumeration; a series with the value 1 and the enumeration's value in a label with the field's name."""
    NAME = auto()
    """An identifier for joins with other series; a series with the value 1 and the identifier in a label with the field's name."""
    HISTOGRAM = auto()
    """Counts by duration, read from QEMU's BlockLatencyHistogramInfo; a histogram."""
    TEXT = auto()
    """Text; in records only."""
    DETAIL = auto()
    """JSON as QEMU sent it; in records only."""


COUNTER, GAUGE, FLAG, STATE, NAME, HISTOGRAM, TEXT, DETAIL = Kind


class Unit(StrEnum):
    """The unit that QEMU or the kernel uses; records and series use seconds, bytes and ratios."""

    BASE = ""
    NANOSECONDS = "ns"
    MICROSECONDS = "us"
    MILLISECONDS = "ms"
    MEGABITS = "Mbit/s"
    MEBIBYTES = "MiB"
    PERCENT = "%"
    TICKS = "clock ticks"
    KIBIBYTES = "kB"
    """1024 bytes; the kernel's name for it."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row: a field of a QMP reply or of a file in /proc or /sys.

    Attributes:
        path: the path in the reply's item, separated by dots.
        name: the name in the record. The series has it too, after the family's prefix. Counters end in `_total`; units are base units.
        kind: the type, which decides how it is exported.
        help: the help text; the command and the path are added to it.
        unit: the unit of the source.
    """

    path: str
    name: str
    kind: Kind
    help: str
    unit: Unit = Unit.BASE


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The fields of one type of sample: `qemu.sample.<name>` in records, `qemu_<name>_<field>` in series. Compared by identity.

    Attributes:
        name: the family's name.
        source: the QMP command, event or files that it is read from.
        help: the help text of the family as a whole.
        labels: the labels of its series in addition to those of the VM, `vm_uuid` and `vm`; a sample has their values in this order.
        fields: the rows.
        unavailable: numbers by which QEMU says that a value is unknown.
        on_change: whether a record is emitted only after a change.
        host_only: whether it is read from the host. Its samples do not show that QEMU responds.
        per_host: whether its samples belong to the host, and not to a VM; its series then have no labels of a VM.
    """

    name: str
    source: str
    help: str
    labels: tuple[str, ...]
    fields: tuple[Field, ...]
    unavailable: frozenset[int] = frozenset()
    on_change: bool = False
    host_only: bool = False
    per_host: bool = False
    type: str = field(init=False)
    """The type of its samples' records."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", f"qemu.sample.{self.name}")

    def series(self, field: Field) -> str:
        """Return the name of the field's series."""
        return f"qemu_{self.name}_{field.name}"

    def exported_fields(self) -> Iterator[Field]:
        """Yield the fields that have a series."""
        return (field for field in self.fields if field.kind not in (Kind.TEXT, Kind.DETAIL))


class Sample(NamedTuple):
    """The values of one subject from one poll.

    Attributes:
        family: the family that the values belong to.
        labels: the values of the family's labels.
        values: the fields.
    """

    family: Family
    labels: tuple[str, ...]
    values: Values

    @property
    def subject(self) -> str:
        """The subject of its record: the first label, or empty for the VM as a whole."""
        return self.labels[0] if self.labels else ""

    @property
    def data(self) -> Values:
        """The data of its record: the labels and the fields."""
        return dict(zip(self.family.labels, self.labels, strict=True)) | self.values
