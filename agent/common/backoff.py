"""How long to wait before trying again."""

from random import random


def back_off(attempt: int, first: float, most: float) -> float:
    """Return how long to wait before an attempt, in seconds: doubling, and spread by half, so that many that failed together part."""
    return min(most, first * 2.0 ** min(attempt, 30)) * (0.5 + random() / 2)  # noqa: S311 - spreads load, keeps no secret
