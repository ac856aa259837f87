"""Exponential backoff with jitter."""

from random import random


def retry_delay(attempt: int, initial_seconds: float, max_seconds: float) -> float:
    """Return the delay in seconds before the next attempt.

    The delay doubles with each failed attempt. Random jitter of up to half the delay spreads clients that failed at the same time.

    Args:
        attempt: number of earlier retries; 0 for the first retry.
        initial_seconds: delay before the first retry, without jitter.
        max_seconds: maximum delay.
    """
    delay = min(max_seconds, initial_seconds * 2.0 ** min(attempt, 30))
    return delay * (0.5 + random() / 2)  # noqa: S311 - jitter is no secret
