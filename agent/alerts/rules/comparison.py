"""Comparisons of a value with a limit, for alert rules. Pure."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ComparedValue = bool | float | str
"""A value that a condition compares. Two values can be compared if both are flags, both numbers or both texts."""


class Operator(StrEnum):
    """How a value is compared with a limit."""

    ABOVE = ">"
    AT_LEAST = ">="
    BELOW = "<"
    AT_MOST = "<="
    EQUAL = "=="
    UNEQUAL = "!="
    INCREASES = "increases"
    """The value is higher than at the previous poll. This operator has no limit."""


NUMERIC = frozenset({Operator.ABOVE, Operator.AT_LEAST, Operator.BELOW, Operator.AT_MOST})
"""Operators that compare numbers only."""


_FUNCTIONS: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.ABOVE: operator.gt,
    Operator.AT_LEAST: operator.ge,
    Operator.BELOW: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.EQUAL: operator.eq,
    Operator.UNEQUAL: operator.ne,
}


def _kind_of(value: object) -> str:
    """Return the kind of a value: `flag`, `number` or `text`; empty for any other value."""
    if isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else ""


def compare(value: object, comparison: Operator, limit: ComparedValue) -> bool | None:
    """Return whether a value meets a limit; None if the value is missing or of another type than the limit."""
    kind = _kind_of(limit)
    if _kind_of(value) != kind or (comparison in NUMERIC and kind != "number"):
        return None
    return _FUNCTIONS[comparison](value, limit)


def with_hysteresis(comparison: Operator, limit: ComparedValue, hysteresis: float) -> ComparedValue:
    """Return the limit at which a firing alert is resolved: the configured limit, moved by the hysteresis."""
    if isinstance(limit, bool | str):
        return limit
    return limit - hysteresis if comparison in (Operator.ABOVE, Operator.AT_LEAST) else limit + hysteresis


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """A comparison of one field of a sample or of an event's data.

    Attributes:
        path: Path of the field in nested JSON objects: the outermost key first, the field's own name last.
        operator: The operator. `check` cannot evaluate `INCREASES`, because that operator needs two polls.
        limit: What the field is compared with.
    """

    path: tuple[str, ...]
    operator: Operator
    limit: ComparedValue

    def check(self, data: Mapping[str, Any]) -> bool | None:
        """Return whether the field meets the limit; None if the field is missing or of another type."""
        value: Any = data
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return compare(value, self.operator, self.limit)

    def __str__(self) -> str:
        if self.operator is Operator.INCREASES:
            return f"{'.'.join(self.path)} {self.operator}"
        limit = str(self.limit).lower() if isinstance(self.limit, bool) else self.limit
        return f"{'.'.join(self.path)} {self.operator} {f'{limit:g}' if isinstance(limit, float) else limit}"


def check_all(tests: tuple[FieldComparison, ...], data: Mapping[str, Any]) -> bool | None:
    """Return whether all comparisons are true.

    Return None if no comparison is false, and the field of at least one comparison is missing or of another type.
    """
    results = [test.check(data) for test in tests]
    return False if False in results else None if None in results else True
