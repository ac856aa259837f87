"""Every test of delivery runs with short retries."""

from tests.lab.short_retries import short_retries

__all__ = ["short_retries"]
