"""Fixtures of the delivery tests."""

from collections.abc import Iterator

import pytest

from tests.lab.faulty_disk import HangingDisk


@pytest.fixture
def hanging() -> Iterator[HangingDisk]:
    """A disk that hangs if a test sets its `hanging`. It works again after the test."""
    disk = HangingDisk()
    yield disk
    disk.release()
