"""Config value for the boundaries between the bins of latency histograms."""

from itertools import pairwise
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from agent.common.durations_and_sizes import parse_seconds
from agent.qmp.commands import MAX_HISTOGRAM_BOUNDARIES

MIN_BOUNDARY_SECONDS = 0.000001
MAX_BOUNDARY_SECONDS = 3600.0

DEFAULT_BOUNDARIES_NS = (
    *(digit * decade for decade in (10**5, 10**6, 10**7, 10**8, 10**9) for digit in (1, 2, 5)),
    10**10,
)
"""Default boundaries: from 100 us to 10 s, three in each decade."""


def _parse_boundaries(value: object) -> tuple[int, ...]:
    if isinstance(value, bool):
        return DEFAULT_BOUNDARIES_NS if value else ()
    expected = (
        f"should be true, false, or a list of up to {MAX_HISTOGRAM_BOUNDARIES} ascending durations from 1us to 1h"
    )
    if not isinstance(value, list | tuple) or len(value) > MAX_HISTOGRAM_BOUNDARIES:
        raise ValueError(expected)
    seconds = [parse_seconds(item) for item in value]
    boundaries = tuple(round(item * 1_000_000_000) for item in seconds)
    if not all(lower < upper for lower, upper in pairwise(boundaries)):
        raise ValueError(expected)
    if any(not MIN_BOUNDARY_SECONDS <= item <= MAX_BOUNDARY_SECONDS for item in seconds):
        raise ValueError(expected)
    return boundaries


LatencyBoundaries = Annotated[
    tuple[int, ...],
    BeforeValidator(_parse_boundaries),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {
                    "type": "array",
                    "maxItems": MAX_HISTOGRAM_BOUNDARIES,
                    "items": {
                        "anyOf": [
                            {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(us|ms|s|m|h)$"},
                            {"type": "number", "minimum": MIN_BOUNDARY_SECONDS, "maximum": MAX_BOUNDARY_SECONDS},
                        ]
                    },
                },
            ]
        }
    ),
]
"""`true` for the default boundaries, or a list of durations such as `[1ms, 10ms]`; parsed to nanoseconds. Empty without histograms."""
