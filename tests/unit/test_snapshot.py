"""The last samples of every VM: what is gone is gone, and nothing stands twice."""

from typing import Any

import pytest

from agent.catalogue.model import Sample
from agent.record import Vm
from agent.vm.status import State, Status
from agent.web import snapshot as module
from agent.web.snapshot import Snapshot, View
from tests.unit.sight import BY_NAME, SECOND, event, poll, put, status, vm

BLOCK, BALLOON = BY_NAME["block"], BY_NAME["balloon"]


def view(snapshot: Snapshot, whose: Vm) -> View:
    (found,) = [view for known, view in snapshot.views() if known == whose]
    return found


def subjects(snapshot: Snapshot, whose: Vm, family: str) -> list[tuple[str, ...]]:
    return list(view(snapshot, whose).families.get(family, {}))


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
    assert view(snapshot, vm()).replied_ns == 8 * SECOND
    poll(snapshot, vm(), "block", [])
    assert subjects(snapshot, vm(), "block") == []


def test_a_backing_chain_that_was_merged_is_gone_with_the_poll_that_does_not_tell_of_it() -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", [{"qdev": "d", "stats": {}, "backing": {"stats": {"wr_highest_offset": 1}}}])
    assert subjects(snapshot, vm(), "block_backing") == [("d", "1")]
    poll(snapshot, vm(), "block", disks("d"))
    assert subjects(snapshot, vm(), "block_backing") == []


@pytest.mark.parametrize("state", [State.GONE, State.CONNECTING, State.BUSY, State.NEGOTIATING])
def test_a_vm_that_is_not_attached_has_no_view_and_starts_afresh(state: State) -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("disk0"))
    snapshot.status(status(vm(), state))
    assert list(snapshot.views()) == []
    poll(snapshot, vm(), "block", disks("disk0"))  # too late
    snapshot.status(status(vm()))
    assert view(snapshot, vm()).families == {}


def test_a_vm_that_is_stalled_keeps_its_last_samples() -> None:
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("disk0"))
    snapshot.status(status(vm(), State.STALLED, reason="hangs"))
    assert subjects(snapshot, vm(), "block") == [("disk0",)]
    assert view(snapshot, vm()).status.reason == "hangs"


def test_of_two_ways_to_one_vm_the_one_attached_last_is_shown_until_it_leaves() -> None:
    first, second = vm(monitor="/run/a"), vm(monitor="/run/b")
    snapshot = up(first, second, vm(1, "other"))
    assert [shown.monitor for shown, _ in snapshot.views()] == ["/run/b", "/run/vm1.qmp"]
    snapshot.status(status(second, State.GONE))
    assert [shown.monitor for shown, _ in snapshot.views()] == ["/run/a", "/run/vm1.qmp"]


def test_monitors_are_known_in_every_state_until_they_end() -> None:
    snapshot = up(vm())
    nobody = Status(status(vm(1, monitor="/run/x")).monitor, State.BUSY, "held", None, None, 0)
    snapshot.status(nobody)
    assert [known.state for known in snapshot.monitors.values()] == [State.UP, State.BUSY]
    snapshot.ended(nobody.monitor.key)
    snapshot.ended(nobody.monitor.key)
    assert [known.state for known in snapshot.monitors.values()] == [State.UP]
    assert len(list(snapshot.views())) == 1


def test_subjects_past_the_cap_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES_LABELS", 3)
    snapshot = up(vm())
    poll(snapshot, vm(), "block", disks("a", "b", "c", "d", "e"))
    assert subjects(snapshot, vm(), "block") == [("a",), ("b",), ("c",)]
    assert view(snapshot, vm()).left_out.total() == 2


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
    snapshot.status(status(vm(), State.GONE, key="old socket"))
    assert len(list(snapshot.views())) == 1
