"""The decision whether a record or the limit of its topic is wrong, after Kafka rejected the record as too large."""

import pytest

from agent.delivery.sinks.kafka.topic_size_limit import TopicSizeLimit


@pytest.mark.parametrize(
    ("limit", "smallest_other", "size", "too_large"),
    [
        (30_000, 500, 60_000, True),
        (30_000, 60_000, 60_000, True),  # the other record is too large too, but ordinary ones fit
        (30_000, None, 60_000, True),
        (200, 500, 60_000, False),  # the topic accepts no record
        (1_000_000, 500, 60_000, False),  # the limit was raised after the rejection
        (None, 500, 60_000, True),
        (None, None, 1_000, False),
    ],
)
def test_a_record_is_too_large_if_ordinary_ones_fit(
    limit: int | None, smallest_other: int | None, size: int, *, too_large: bool
) -> None:
    assert TopicSizeLimit(limit, smallest_other).is_record_too_large(size) is too_large
