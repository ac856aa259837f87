"""How pytest-xdist gives the test files to its workers: the longest files first, and files that share a server to one worker."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT: Final = Path(__file__).parent.parent.parent

LONGEST_FIRST: Final[Sequence[Sequence[str]]] = (
    ("tests/integration/kafka/",),
    ("tests/e2e/test_alert_kill_points.py", "tests/e2e/test_kafka_pipeline.py", "tests/e2e/test_rewrite_state.py"),
    (
        "tests/e2e/test_dashboard_queries.py",
        "tests/e2e/test_deploy_stack.py",
        "tests/integration/flink/test_flink_jobs.py",
        "tests/integration/test_lab.py",
    ),
    ("tests/integration/qemu/test_disk_alerts.py",),
    ("tests/e2e/test_page.py",),
    ("tests/integration/qemu/test_stalled_disks.py",),
    ("tests/integration/libvirt/test_guest_agent_of_domain.py",),
    ("tests/chaos/",),
    ("tests/e2e/test_qemu_versions.py",),
    ("tests/e2e/test_page_accessibility.py",),
    ("tests/e2e/test_page_rendering.py",),
    ("tests/integration/libvirt/test_domain_lifecycle.py",),
    ("tests/integration/cloudevents/test_sdks.py",),
)
"""The groups of files and directories that take longest. Each of the first three groups shares a Kafka broker."""


def _group_number(test: str) -> int:
    """Return the number of a test's group in `LONGEST_FIRST`; for any other test, the number of groups."""
    numbers = (number for number, group in enumerate(LONGEST_FIRST) if test.startswith(tuple(group)))
    return next(numbers, len(LONGEST_FIRST))


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives all tests of a group to one worker. A file in no group is a group of its own."""

    def _split_scope(self, nodeid: str) -> str:
        number = _group_number(nodeid)
        return f"group {number}" if number < len(LONGEST_FIRST) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    """Return the scheduler of a run with several workers."""
    return GroupScheduling(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """Return two workers for each processor, because tests wait half of their time for guests, brokers and intervals."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, put the longest groups first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _group_number(item.nodeid))
