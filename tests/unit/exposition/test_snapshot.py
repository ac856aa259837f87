"""The last samples of every VM: what is gone is gone, and nothing stands twice."""

import time
from typing import Any

import pytest

from agent.exposition.prometheus import render
from agent.exposition.series_limits import SeriesLimits
from agent.exposition.snapshot import Snapshot, VmView
from agent.model.family import Kind, Sample
from agent.model.record import Vm
from agent.session.api import MonitorState, MonitorStatus
from tests.lab.snapshots import BY_NAME, SECOND, event, poll, put, status, vm

BLOCK, BALLOON = BY_NAME["block"], BY_NAME["balloon"]


def view(snapshot: Snapshot, whose: Vm) -> VmView:
    (found,) = [view for known, view in snapshot.views() if known == whose]
    return found


def subjects(snapshot: Snapshot, whose: Vm, family: str) -> list[tuple[str, ...]]:
    pairs = view(snapshot, whose).pairs
    return list(pairs[family].now) if family in pairs else []


def up(*whose: Vm) -> Snapshot:
    snapshot = Snapshot()
    for one in whose:
        snapshot.status(status(one))
    return snapshot


def disks(*names: str) -> list[dict[str, Any]]:
    return [{"qdev": name, "stats": {"rd_bytes": 5}} for name in names]


def test_a_family_is_replaced_whole_so_that_an_unplugged_disk_is_gone() -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("disk0", "disk1"))
    poll(snapshot, vm(), "runstate", {"status": "running", "running": True})
    poll(snapshot, vm(), "block", disks("disk1"), at=8)
    assert subjects(snapshot, vm(), "block") == [("disk1",)]
    assert subjects(snapshot, vm(), "runstate") == [()]
    assert view(snapshot, vm()).last_response_ns == 8 * SECOND
    poll(snapshot, vm(), "block", [])
    assert subjects(snapshot, vm(), "block") == []


def test_a_backing_chain_that_was_merged_is_gone_with_the_poll_that_does_not_tell_of_it() -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", [{"qdev": "d", "stats": {}, "backing": {"stats": {"wr_highest_offset": 1}}}])
    assert subjects(snapshot, vm(), "block_backing") == [("d", "1")]
    poll(snapshot, vm(), "block", disks("d"))
    assert subjects(snapshot, vm(), "block_backing") == []


@pytest.mark.parametrize(
    "state", [MonitorState.GONE, MonitorState.CONNECTING, MonitorState.BUSY, MonitorState.NEGOTIATING]
)
def test_a_vm_that_is_not_attached_has_no_view_and_starts_afresh(state: MonitorState) -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("disk0"))
    snapshot.status(status(vm(), state))
    assert list(snapshot.views()) == []
    poll(snapshot, vm(), "block", disks("disk0"))  # too late
    snapshot.status(status(vm()))
    assert view(snapshot, vm()).pairs == {}


def test_a_vm_that_is_stalled_keeps_its_last_samples() -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("disk0"))
    snapshot.status(status(vm(), MonitorState.STALLED, reason="hangs"))
    assert subjects(snapshot, vm(), "block") == [("disk0",)]
    assert view(snapshot, vm()).status.reason == "hangs"


def test_of_two_with_one_uuid_the_first_is_shown_until_it_leaves_or_stops_and_the_other_runs() -> None:
    first, second = vm(monitor="/run/a"), vm(name="an impostor, or where it migrates to", monitor="/run/b")
    snapshot = up(first, second, vm(1, "other"))

    def runs(whose: Vm, *, running: bool) -> None:
        poll(snapshot, whose, "runstate", {"running": running, "status": "running" if running else "postmigrate"})

    def shown() -> list[str]:
        return [shown.monitor for shown, _ in snapshot.views()]

    assert shown() == ["/run/a", "/run/vm1.qmp"]
    runs(second, running=True)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    runs(first, running=True)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    runs(first, running=False)
    assert shown() == ["/run/b", "/run/vm1.qmp"]
    runs(second, running=False)
    assert shown() == ["/run/a", "/run/vm1.qmp"]
    snapshot.status(status(first, MonitorState.GONE))
    assert shown() == ["/run/b", "/run/vm1.qmp"]


def test_monitors_are_known_in_every_state_until_they_end() -> None:
    snapshot = up(vm())
    nobody = MonitorStatus(status(vm(1, monitor="/run/x")).monitor, MonitorState.BUSY, "held", None, None, 0)
    snapshot.status(nobody)
    assert [known.state for known in snapshot.monitors.values()] == [MonitorState.UP, MonitorState.BUSY]
    snapshot.ended(nobody.monitor.key)
    snapshot.ended(nobody.monitor.key)
    assert [known.state for known in snapshot.monitors.values()] == [MonitorState.UP]
    assert len(list(snapshot.views())) == 1


def counted(snapshot: Snapshot) -> int:
    """Return how many series there are that have a label of their own."""
    return sum("device=" in line for line in render(snapshot).splitlines())


def test_a_vms_subjects_past_its_series_get_none_and_are_counted() -> None:
    snapshot = up(vm(), vm(1, "other"))
    snapshot.limits = SeriesLimits(series_per_vm=3)
    poll(snapshot, vm(), "block", disks("a", "b", "c", "d", "e"))
    assert subjects(snapshot, vm(), "block") == [("a",), ("b",), ("c",)]
    assert counted(snapshot) == 3
    poll(
        snapshot, vm(), "runstate", {"status": "running", "running": True}
    )  # of the VM as a whole: bounded by the table
    put(snapshot, vm(), BY_NAME["job"], (("j",), {"progress": 1}))
    assert subjects(snapshot, vm(), "runstate") == [()]
    assert subjects(snapshot, vm(), "job") == []
    assert f'qemu_vm_series_limit_dropped_subjects{{vm_uuid="{vm().uuid}",vm="vm1"}} 3\n' in render(snapshot)
    poll(snapshot, vm(1, "other"), "block", disks("a", "b", "c"))
    assert counted(snapshot) == 6
    poll(snapshot, vm(), "block", disks("e"))  # what is gone leaves its room
    assert subjects(snapshot, vm(), "block") == [("e",)]
    assert view(snapshot, vm()).dropped_subjects.total() == 1


def test_the_series_of_a_subject_are_counted_one_by_one() -> None:
    snapshot = up(vm())
    snapshot.limits = SeriesLimits(series_per_vm=5)
    two = {"rd_bytes": 1, "wr_bytes": 2}
    poll(snapshot, vm(), "block", [{"qdev": name, "stats": two} for name in "abcd"])
    assert subjects(snapshot, vm(), "block") == [("a",), ("b",)]


def test_each_bucket_of_a_histogram_is_a_series() -> None:
    snapshot = up(vm())
    family = next(f for f in BY_NAME.values() for field in f.fields if field.kind is Kind.HISTOGRAM and f.labels)
    field = next(field for field in family.fields if field.kind is Kind.HISTOGRAM)
    value = {"boundaries_seconds": [0.1, 1.0], "counts": [1, 2, 3], "sum_seconds": 4.0}
    labels = [tuple(f"{name}{n}" for name in family.labels) for n in range(3)]
    snapshot.limits = SeriesLimits(series_per_vm=11)
    put(snapshot, vm(), family, *((one, {field.name: value}) for one in labels))
    assert subjects(snapshot, vm(), family.name) == labels[:2]
    assert sum(line.startswith(family.series(field)) for line in render(snapshot).splitlines()) == 10


def test_names_that_come_and_go_get_no_series_past_a_number_of_new_ones_an_hour() -> None:
    snapshot = up(vm())
    snapshot.limits = SeriesLimits(new_subjects_per_hour=3)
    poll(snapshot, vm(), "block", disks("a", "b"), at=10_000)
    poll(snapshot, vm(), "block", disks("c", "d", "a"), at=10_010)
    assert subjects(snapshot, vm(), "block") == [("c",), ("a",)]
    poll(snapshot, vm(), "block", disks("e", "b"), at=10_020)
    assert subjects(snapshot, vm(), "block") == [("b",)]
    poll(snapshot, vm(), "block", disks("e", "b"), at=10_000 + 3601)
    assert subjects(snapshot, vm(), "block") == [("e",), ("b",)]


def test_those_that_stay_are_not_new_when_the_next_hour_begins() -> None:
    snapshot = up(vm())
    snapshot.limits = SeriesLimits(new_subjects_per_hour=3)
    poll(snapshot, vm(), "block", disks("a", "b", "c"), at=10_000)
    poll(snapshot, vm(), "block", disks("a", "b", "c", "d", "e", "f", "g"), at=10_000 + 3601)
    assert subjects(snapshot, vm(), "block") == [("a",), ("b",), ("c",), ("d",), ("e",), ("f",)]


def test_hundreds_of_thousands_of_names_take_bounded_memory_and_time() -> None:
    snapshot = up(vm())
    ever: set[tuple[str, ...]] = set()
    taken = 0.0
    for step in range(50):
        samples = [Sample(BLOCK, (f"disk{step * 5000 + n}",), {"reads_total": n}) for n in range(5000)]
        start = time.process_time()
        snapshot.samples(vm(), (BLOCK,), samples, (10_000 + step) * SECOND)
        taken += time.process_time() - start
        ever.update(subjects(snapshot, vm(), "block"))
    assert len(ever) == len(view(snapshot, vm()).limiter._gone) == SeriesLimits().new_subjects_per_hour
    assert taken < 2.5  # seconds: 10 us a name on a machine that has much else to do
    assert view(snapshot, vm()).dropped_subjects["block"] == 5000
    put(snapshot, vm(), BLOCK, *(((str(n),), {"reads_total": n}) for n in range(50_000)))
    assert len(subjects(snapshot, vm(), "block")) == 0
    assert counted(snapshot) == 0


def test_what_is_known_of_a_subject_can_be_looked_up() -> None:
    snapshot = up(vm())
    put(snapshot, vm(), BLOCK, (("d",), {"reads_total": 5}))
    sample = Sample(BLOCK, ("d",), {})
    assert snapshot.values(vm(), sample) == {"reads_total": 5}
    assert snapshot.values(vm(), Sample(BLOCK, ("e",), {})) is None
    assert snapshot.values(vm(), Sample(BALLOON, (), {})) is None
    assert snapshot.values(vm(1), sample) is None


def test_events_are_counted_by_name_and_those_nobody_knows_as_one() -> None:
    snapshot = up(vm())
    for name in ("STOP", "STOP", "RESUME", "NEVER_HEARD_OF", "UNKNOWN", "ANOTHER"):
        snapshot.event(event(vm(), name))
    snapshot.event(event(vm(1), "STOP"))
    assert view(snapshot, vm()).events == {"STOP": 2, "RESUME": 1, "unknown": 3}


def test_a_qemu_started_anew_at_the_same_address_keeps_its_view_when_the_old_connection_ends_later() -> None:
    snapshot = Snapshot()
    snapshot.status(status(vm(), key="old socket"))
    snapshot.status(status(vm(), key="new socket"))
    snapshot.status(status(vm(), MonitorState.GONE, key="old socket"))
    assert len(list(snapshot.views())) == 1


def test_the_very_samples_that_were_taken_last_say_nothing_new_but_to_a_view_that_is_made_anew() -> None:
    snapshot = up(vm())
    families, samples = (BY_NAME["block_space"],), [Sample(BY_NAME["block_space"], ("disk0",), {"used_bytes": 5})]
    for second in (1, 2):
        snapshot.samples(vm(), families, samples, second * SECOND)
    assert view(snapshot, vm()).pairs["block_space"].time_ns == SECOND
    snapshot.status(status(vm(), MonitorState.GONE))
    snapshot.status(status(vm()))
    snapshot.samples(vm(), families, samples, 3 * SECOND)
    assert subjects(snapshot, vm(), "block_space") == [("disk0",)]


def test_nothing_is_left_out_any_more_of_a_family_that_was_cut_to_nothing_and_is_gone() -> None:
    snapshot = up(vm())
    snapshot.limits = SeriesLimits(series_per_vm=0)
    poll(snapshot, vm(), "block", disks("disk0"))
    assert view(snapshot, vm()).dropped_subjects.total() == 1
    poll(snapshot, vm(), "block", [])
    assert view(snapshot, vm()).dropped_subjects.total() == 0


def test_other_limits_hold_for_the_very_samples_that_were_taken_last() -> None:
    snapshot = up(vm())
    families, samples = (BY_NAME["block_space"],), [Sample(BY_NAME["block_space"], ("disk0",), {"used_bytes": 5})]
    snapshot.samples(vm(), families, samples, SECOND)
    snapshot.limits = SeriesLimits(series_per_vm=0)
    snapshot.samples(vm(), families, samples, 2 * SECOND)
    assert subjects(snapshot, vm(), "block_space") == []
