"""Exponential backoff with jitter."""

from random import random


def back_off(attempt: int, first: float, most: float) -> float:
    """Return the delay before an attempt in seconds. It doubles with each attempt, and jitter spreads clients that failed together.

    Args:
        attempt: number of failed attempts, from 0.
        first: delay before the first retry in seconds.
        most: maximum delay in seconds.
    """
    return min(most, first * 2.0 ** min(attempt, 30)) * (0.5 + random() / 2)  # noqa: S311 - jitter is no secret
