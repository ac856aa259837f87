"""The summary of one VM and its short history."""

from typing import Any

import pytest

from agent.exposition.rates import PollPair
from agent.exposition.vm_summary import summarize_migration, summarize_vm
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.vm_process_and_interfaces import PROCESS, VCPU
from tests.lab.snapshots import SECOND, OneVmSource, disk_counters


@pytest.fixture
def source() -> OneVmSource:
    return OneVmSource()


def summary(source: OneVmSource) -> dict[str, Any]:
    """Return the summary of the only VM."""
    ((_, view),) = source.snapshot.one_view_per_uuid()
    return summarize_vm(view.polls)


def test_a_vm_without_samples_has_an_empty_summary(source: OneVmSource) -> None:
    assert summary(source) == {"now": {"time": 0.0}}


def test_disks_have_rates_and_thin_disks_have_their_space(source: OneVmSource) -> None:
    source.put(BLOCK, 10, (("disk0",), disk_counters()), (("disk1",), disk_counters()))
    source.put(BLOCK, 20, (("disk0",), disk_counters(100, 200, 10, 20)), (("disk1",), disk_counters(0, 50, 0, 5)))
    source.put(BLOCK_SPACE, 20, (("disk0",), {"used_bytes": 85, "limit_bytes": 100, "free_bytes": 15}))
    space = {"used_bytes": 85, "limit_bytes": 100, "free_bytes": 15}
    assert summary(source)["disks"] == [
        {"device": "disk0", "read": 10, "write": 20, "reads": 1, "writes": 2, **space},
        {"device": "disk1", "read": 0, "write": 5, "reads": 0, "writes": 0.5},
    ]
    assert summary(source)["now"] == {"time": 20.0, "read": 10, "write": 25, "reads": 1, "writes": 2.5}


def test_memory_is_what_the_guest_reports_or_else_the_balloons_size(source: OneVmSource) -> None:
    source.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    assert summary(source)["memory"] == {"total_bytes": 100}
    source.put(GUEST_MEMORY, 10, ((), {"total_bytes": 90, "available_bytes": 60}))
    assert summary(source)["memory"] == {"total_bytes": 90, "used_bytes": 30}
    source.put(PROCESS, 10, ((), {"resident_bytes": 50}))
    assert summary(source)["memory"] == {"total_bytes": 90, "used_bytes": 30, "resident_bytes": 50}


def test_cpu_is_the_number_of_host_cpus_that_all_vcpus_use(source: OneVmSource) -> None:
    for at, spent in ((10, 0.0), (12, 1.5)):
        source.put(VCPU, at, (("0",), {"cpu_seconds_total": spent}), (("1",), {"cpu_seconds_total": spent / 3}))
    assert (summary(source)["now"]["cpu"], summary(source)["vcpus"]) == (1.0, 2)


def test_a_migration_has_its_progress_and_its_remaining_time() -> None:
    def migrate(**values: Any) -> Any:
        polls = PollPair()
        polls.update({(): values}, SECOND)
        return summarize_migration({MIGRATION.name: polls})

    assert migrate(status="none") is None
    active = migrate(status="active", ram_remaining_bytes=300, ram_bytes=1000, remaining_seconds=3.0)
    assert (active["done_bytes"], active["total_bytes"], active["remaining_seconds"]) == (700, 1000, 3)
    assert migrate(status="completed", ram_remaining_bytes=0, ram_bytes=1000) == {"status": "completed"}
    assert "remaining_seconds" not in migrate(status="active", ram_remaining_bytes=300, ram_bytes=1000)


def test_jobs_have_their_progress(source: OneVmSource) -> None:
    values = {
        "status": "running",
        "progress": 300,
        "progress_target": 1000,
        "progress_ratio": 0.3,
        "remaining_seconds": 7,
    }
    source.put(JOB, 12, (("job0", "mirror"), values))
    progress = {"status": "running", "progress_ratio": 0.3, "remaining_seconds": 7}
    assert summary(source)["jobs"] == [{"job": "job0", "type": "mirror", **progress}]
    source.put(JOB, 14)
    assert "jobs" not in summary(source)
