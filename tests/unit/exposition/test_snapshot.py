"""The snapshot: a family is replaced as a whole, each UUID has one view, and the number of series is limited."""

import time
from statistics import median
from typing import Any

import pytest

from agent.exposition.prometheus import render_metrics
from agent.exposition.series_limits import SeriesLimits
from agent.exposition.snapshot import Snapshot, VmView
from agent.model.family import FieldKind, Sample
from agent.model.metrics.guest import GUEST_FREEZE, GUEST_USERS
from agent.model.record import Vm
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.snapshots import BY_NAME, SECOND, event, poll, put, status, vm

BLOCK, BALLOON = BY_NAME["block"], BY_NAME["balloon"]


def view_of(snapshot: Snapshot, owner: Vm) -> VmView:
    (only,) = [view for known, view in snapshot.one_view_per_uuid() if known == owner]
    return only


def subjects_of(snapshot: Snapshot, owner: Vm, family: str) -> list[tuple[str, ...]]:
    polls = view_of(snapshot, owner).polls
    return list(polls[family].current) if family in polls else []


def make_snapshot(*vms: Vm) -> Snapshot:
    snapshot = Snapshot()
    for known in vms:
        snapshot.update_monitor_status(status(known))
    return snapshot


def block_replies(*names: str) -> list[dict[str, Any]]:
    return [{"qdev": name, "stats": {"rd_bytes": 5}} for name in names]


def test_a_family_is_replaced_whole_so_that_an_unplugged_disk_is_gone() -> None:
    snapshot = make_snapshot(vm())
    poll(snapshot, vm(), "block", block_replies("disk0", "disk1"))
    poll(snapshot, vm(), "runstate", {"status": "running", "running": True})
    poll(snapshot, vm(), "block", block_replies("disk1"), at=8)
    assert subjects_of(snapshot, vm(), "block") == [("disk1",)]
    assert subjects_of(snapshot, vm(), "runstate") == [()]
    assert view_of(snapshot, vm()).last_response_ns == 8 * SECOND
    poll(snapshot, vm(), "block", [])
    assert subjects_of(snapshot, vm(), "block") == []


def test_the_time_of_a_guests_values_stays_while_only_its_freeze_is_asked_for() -> None:
    snapshot = make_snapshot(vm())

    def report(sample: Sample, at: int) -> int:
        snapshot.replace_samples(vm(), (sample.family,), (sample,), at)
        return view_of(snapshot, vm()).guest_response_ns

    users = Sample(GUEST_USERS, (), {"logged_in": 1})
    frozen, thawed = (Sample(GUEST_FREEZE, (), {"frozen": state}) for state in (True, False))
    assert report(frozen, 5) == 5, "nothing older is shown"
    assert [report(users, 6), report(thawed, 7), report(frozen, 8), report(frozen, 9)] == [6, 7, 7, 7]
    assert [report(thawed, 10), report(users, 11)] == [10, 11]
    snapshot.replace_samples(vm(), (GUEST_FREEZE, GUEST_USERS), (), 12)
    assert view_of(snapshot, vm()).guest_response_ns == 11, "a loss is no response"


def test_a_merged_backing_chain_is_gone_with_the_first_poll_without_it() -> None:
    snapshot = make_snapshot(vm())
    poll(snapshot, vm(), "block", [{"qdev": "d", "stats": {}, "backing": {"stats": {"wr_highest_offset": 1}}}])
    assert subjects_of(snapshot, vm(), "block_backing") == [("d", "1")]
    poll(snapshot, vm(), "block", block_replies("d"))
    assert subjects_of(snapshot, vm(), "block_backing") == []


@pytest.mark.parametrize(
    "state", [MonitorState.GONE, MonitorState.CONNECTING, MonitorState.BUSY, MonitorState.NEGOTIATING]
)
def test_a_detached_vm_has_no_view_and_a_new_one_when_it_is_attached_again(state: MonitorState) -> None:
    snapshot = make_snapshot(vm())
    poll(snapshot, vm(), "block", block_replies("disk0"))
    snapshot.update_monitor_status(status(vm(), state))
    assert list(snapshot.one_view_per_uuid()) == []
    poll(snapshot, vm(), "block", block_replies("disk0"))  # too late
    snapshot.update_monitor_status(status(vm()))
    assert view_of(snapshot, vm()).polls == {}


def test_a_stalled_vm_keeps_its_last_samples() -> None:
    snapshot = make_snapshot(vm())
    poll(snapshot, vm(), "block", block_replies("disk0"))
    snapshot.update_monitor_status(status(vm(), MonitorState.STALLED, reason="hangs"))
    assert subjects_of(snapshot, vm(), "block") == [("disk0",)]
    assert view_of(snapshot, vm()).status.reason == "hangs"


@pytest.mark.parametrize("stopped", ["paused", "io-error", "prelaunch", "shutdown"])
def test_a_clone_does_not_take_the_place_of_a_stopped_vm(stopped: str) -> None:
    first, clone = vm(monitor="/run/a"), vm(name="clone", monitor="/run/b")
    snapshot = make_snapshot(first, clone)
    poll(snapshot, first, "runstate", {"running": False, "status": stopped})
    poll(snapshot, clone, "runstate", {"running": True, "status": "running"})
    assert [known for known, _ in snapshot.one_view_per_uuid()] == [first]


def test_the_first_of_two_vms_with_one_uuid_is_used_until_the_other_has_taken_over() -> None:
    first, second = vm(monitor="/run/a"), vm(name="an impostor, or the destination", monitor="/run/b")
    snapshot = make_snapshot(first, second, vm(1, "other"))

    def set_running(owner: Vm, *, running: bool) -> None:
        poll(snapshot, owner, "runstate", {"running": running, "status": "running" if running else "postmigrate"})

    def shown() -> list[str]:
        return [known.monitor for known, _ in snapshot.one_view_per_uuid()]

    assert shown() == ["/run/a", "/run/vm1.qmp"]
    set_running(second, running=True)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    set_running(first, running=True)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    set_running(first, running=False)
    assert shown() == ["/run/b", "/run/vm1.qmp"]
    set_running(second, running=False)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    snapshot.update_monitor_status(status(first, MonitorState.GONE))
    assert shown() == ["/run/b", "/run/vm1.qmp"]


def test_monitors_in_every_state_are_known_until_they_end() -> None:
    snapshot = make_snapshot(vm())
    busy = MonitorStatus(status(vm(1, monitor="/run/x")).monitor, MonitorState.BUSY, "held", None, None, 0)
    snapshot.update_monitor_status(busy)
    assert [known.state for known in snapshot.monitors.values()] == [MonitorState.UP, MonitorState.BUSY]
    snapshot.remove_monitor(busy.monitor.key)
    snapshot.remove_monitor(busy.monitor.key)
    assert [known.state for known in snapshot.monitors.values()] == [MonitorState.UP]
    assert len(list(snapshot.one_view_per_uuid())) == 1


def count_series(snapshot: Snapshot) -> int:
    """Return how many series have the label `device`."""
    return sum("device=" in line for line in render_metrics(snapshot).splitlines())


def test_subjects_beyond_a_vms_series_limit_get_no_series_and_are_counted() -> None:
    snapshot = make_snapshot(vm(), vm(1, "other"))
    snapshot.limits = SeriesLimits(series_per_vm=3)
    poll(snapshot, vm(), "block", block_replies("a", "b", "c", "d", "e"))
    assert subjects_of(snapshot, vm(), "block") == [("a",), ("b",), ("c",)]
    assert count_series(snapshot) == 3
    poll(snapshot, vm(), "runstate", {"status": "running", "running": True})  # has no subjects: not limited
    put(snapshot, vm(), BY_NAME["job"], (("j",), {"progress": 1}))
    assert subjects_of(snapshot, vm(), "runstate") == [()]
    assert subjects_of(snapshot, vm(), "job") == []
    assert f'qemu_vm_series_limit_dropped_subjects{{vm_uuid="{vm().uuid}",vm="vm1"}} 3\n' in render_metrics(snapshot)
    poll(snapshot, vm(1, "other"), "block", block_replies("a", "b", "c"))
    assert count_series(snapshot) == 6
    poll(snapshot, vm(), "block", block_replies("e"))  # departed subjects free their series
    assert subjects_of(snapshot, vm(), "block") == [("e",)]
    assert view_of(snapshot, vm()).dropped_subjects.total() == 1


def test_each_field_of_a_subject_counts_as_a_series() -> None:
    snapshot = make_snapshot(vm())
    snapshot.limits = SeriesLimits(series_per_vm=5)
    two = {"rd_bytes": 1, "wr_bytes": 2}
    poll(snapshot, vm(), "block", [{"qdev": name, "stats": two} for name in "abcd"])
    assert subjects_of(snapshot, vm(), "block") == [("a",), ("b",)]


def test_each_bucket_of_a_histogram_counts_as_a_series() -> None:
    snapshot = make_snapshot(vm())
    family = next(f for f in BY_NAME.values() for field in f.fields if field.kind is FieldKind.HISTOGRAM and f.labels)
    field = next(field for field in family.fields if field.kind is FieldKind.HISTOGRAM)
    value = {"boundaries_seconds": [0.1, 1.0], "counts": [1, 2, 3], "sum_seconds": 4.0}
    labels = [tuple(f"{name}{n}" for name in family.labels) for n in range(3)]
    snapshot.limits = SeriesLimits(series_per_vm=11)
    put(snapshot, vm(), family, *((subject, {field.name: value}) for subject in labels))
    assert subjects_of(snapshot, vm(), family.name) == labels[:2]
    assert sum(line.startswith(family.metric_name(field)) for line in render_metrics(snapshot).splitlines()) == 10


def test_a_histogram_with_more_bins_than_before_is_limited_again() -> None:
    snapshot = make_snapshot(vm())
    family = next(f for f in BY_NAME.values() for field in f.fields if field.kind is FieldKind.HISTOGRAM and f.labels)
    field = next(field for field in family.fields if field.kind is FieldKind.HISTOGRAM)
    labels = [tuple(f"{name}{n}" for name in family.labels) for n in range(2)]
    snapshot.limits = SeriesLimits(series_per_vm=11)
    for bins, admitted in ((3, labels), (7, labels[:1])):
        value = {"boundaries_seconds": [float(n) for n in range(bins - 1)], "counts": [1] * bins, "sum_seconds": 4.0}
        put(snapshot, vm(), family, *((subject, {field.name: value}) for subject in labels))
        assert subjects_of(snapshot, vm(), family.name) == admitted


def test_new_names_beyond_the_hourly_limit_get_no_series() -> None:
    snapshot = make_snapshot(vm())
    snapshot.limits = SeriesLimits(new_subjects_per_vm_per_hour=3)
    poll(snapshot, vm(), "block", block_replies("a", "b"), at=10_000)
    poll(snapshot, vm(), "block", block_replies("c", "d", "a"), at=10_010)
    assert subjects_of(snapshot, vm(), "block") == [("c",), ("a",)]
    poll(snapshot, vm(), "block", block_replies("e", "b"), at=10_020)
    assert subjects_of(snapshot, vm(), "block") == [("b",)]
    poll(snapshot, vm(), "block", block_replies("e", "b"), at=10_000 + 3601)
    assert subjects_of(snapshot, vm(), "block") == [("e",), ("b",)]


def test_subjects_that_stay_are_not_new_when_the_next_hour_begins() -> None:
    snapshot = make_snapshot(vm())
    snapshot.limits = SeriesLimits(new_subjects_per_vm_per_hour=3)
    poll(snapshot, vm(), "block", block_replies("a", "b", "c"), at=10_000)
    poll(snapshot, vm(), "block", block_replies("a", "b", "c", "d", "e", "f", "g"), at=10_000 + 3601)
    assert subjects_of(snapshot, vm(), "block") == [("a",), ("b",), ("c",), ("d",), ("e",), ("f",)]


def test_hundreds_of_thousands_of_names_use_bounded_memory_and_time() -> None:
    snapshot = make_snapshot(vm())
    with_series: set[tuple[str, ...]] = set()
    spent: list[float] = []
    for step in range(50):
        samples = [Sample(BLOCK, (f"disk{step * 5000 + n}",), {"reads_total": n}) for n in range(5000)]
        start = time.process_time()
        snapshot.replace_samples(vm(), (BLOCK,), samples, (10_000 + step) * SECOND)
        spent.append(time.process_time() - start)
        with_series.update(subjects_of(snapshot, vm(), "block"))
    assert (
        len(with_series)
        == len(view_of(snapshot, vm()).series_limiter._departed_subjects)
        == SeriesLimits().new_subjects_per_vm_per_hour
    )
    assert median(spent[-10:]) < 10 * median(spent[:10]), "a poll takes no longer for the names before it"
    assert view_of(snapshot, vm()).dropped_subjects["block"] == 5000
    put(snapshot, vm(), BLOCK, *(((str(n),), {"reads_total": n}) for n in range(50_000)))
    assert len(subjects_of(snapshot, vm(), "block")) == 0
    assert count_series(snapshot) == 0


def test_the_stored_values_of_a_subject_can_be_looked_up() -> None:
    snapshot = make_snapshot(vm())
    put(snapshot, vm(), BLOCK, (("d",), {"reads_total": 5}))
    sample = Sample(BLOCK, ("d",), {})
    assert snapshot.latest_values_of_sample_subject(vm(), sample) == {"reads_total": 5}
    assert snapshot.latest_values_of_sample_subject(vm(), Sample(BLOCK, ("e",), {})) is None
    assert snapshot.latest_values_of_sample_subject(vm(), Sample(BALLOON, (), {})) is None
    assert snapshot.latest_values_of_sample_subject(vm(1), sample) is None


def test_events_are_counted_by_name_and_unknown_ones_under_one_name() -> None:
    snapshot = make_snapshot(vm())
    for name in ("STOP", "STOP", "RESUME", "NEVER_HEARD_OF", "UNKNOWN", "ANOTHER"):
        snapshot.count_event(event(vm(), name))
    snapshot.count_event(event(vm(1), "STOP"))
    assert view_of(snapshot, vm()).events == {"STOP": 2, "RESUME": 1, "unknown": 3}


def test_a_restarted_qemu_keeps_its_view_when_the_old_connection_ends_later() -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm(), key="old socket"))
    snapshot.update_monitor_status(status(vm(), key="new socket"))
    snapshot.update_monitor_status(status(vm(), MonitorState.GONE, key="old socket"))
    assert len(list(snapshot.one_view_per_uuid())) == 1


def test_identical_samples_change_nothing_except_in_a_new_view() -> None:
    snapshot = make_snapshot(vm())
    families, samples = (BY_NAME["block_space"],), [Sample(BY_NAME["block_space"], ("disk0",), {"used_bytes": 5})]
    for second in (1, 2):
        snapshot.replace_samples(vm(), families, samples, second * SECOND)
    assert view_of(snapshot, vm()).polls["block_space"].time_ns == SECOND
    snapshot.update_monitor_status(status(vm(), MonitorState.GONE))
    snapshot.update_monitor_status(status(vm()))
    snapshot.replace_samples(vm(), families, samples, 3 * SECOND)
    assert subjects_of(snapshot, vm(), "block_space") == [("disk0",)]


def test_an_empty_family_has_no_dropped_subjects_any_more() -> None:
    snapshot = make_snapshot(vm())
    snapshot.limits = SeriesLimits(series_per_vm=0)
    poll(snapshot, vm(), "block", block_replies("disk0"))
    assert view_of(snapshot, vm()).dropped_subjects.total() == 1
    poll(snapshot, vm(), "block", [])
    assert view_of(snapshot, vm()).dropped_subjects.total() == 0


def test_new_limits_apply_to_identical_samples_too() -> None:
    snapshot = make_snapshot(vm())
    families, samples = (BY_NAME["block_space"],), [Sample(BY_NAME["block_space"], ("disk0",), {"used_bytes": 5})]
    snapshot.replace_samples(vm(), families, samples, SECOND)
    snapshot.limits = SeriesLimits(series_per_vm=0)
    snapshot.replace_samples(vm(), families, samples, 2 * SECOND)
    assert subjects_of(snapshot, vm(), "block_space") == []
