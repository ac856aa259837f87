"""Figures at a glance: rates between polls, a short history, and who has seen what of it."""

from typing import Any

import orjson
import pytest

from agent.exposition import rates
from agent.exposition.rates import PollPair
from agent.exposition.snapshot import Snapshot
from agent.exposition.summary import POINTS, migration, summarize
from agent.http.overview import Overview, OverviewCursor
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.host import PROCESS, VCPU
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.record import Vm
from tests.lab.snapshots import SECOND, status, vm


class OverviewSource:
    """What is shown, made by hand."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.snapshot.status(status(vm()))
        self.trouble = ""

    def health(self) -> dict[str, Any]:
        return {"trouble": self.trouble}

    def firing_alerts(self) -> list[dict[str, Any]]:
        return []

    def resolved_levels(self, _vm: Vm, _device: str, /) -> list[tuple[str, int]]:
        return [("80%", 80), ("90%", 90)]

    def put(
        self, family: Family, at: float, *samples: tuple[tuple[str, ...], dict[str, Any]], whose: Vm | None = None
    ) -> None:
        made = [Sample(family, labels, values) for labels, values in samples]
        self.snapshot.samples(whose or vm(), (family,), made, round(at * SECOND))

    def summarize(self) -> dict[str, Any]:
        ((_, view),) = self.snapshot.views()
        return summarize(view.pairs)


@pytest.fixture
def shown() -> OverviewSource:
    return OverviewSource()


def did(read: int = 0, write: int = 0, reads: int = 0, writes: int = 0) -> dict[str, int]:
    return {"read_bytes_total": read, "write_bytes_total": write, "reads_total": reads, "writes_total": writes}


def look(shown: OverviewSource) -> OverviewCursor:
    return OverviewCursor(Overview(shown))


def plain(news: dict[str, Any] | None) -> Any:
    return orjson.loads(orjson.dumps(news))


# --- Rates ---


def test_a_rate_is_what_a_counter_rose_a_second_between_the_last_two_polls() -> None:
    pair = PollPair()
    for at, value in ((10, 100), (12, 300), (14, 800)):
        pair.take({("a",): {"x_total": value}}, at * SECOND)
    assert pair.rates(("a",), ("x_total",)).get("x_total") == 250


def test_there_is_no_rate_of_what_is_new_or_began_anew_or_is_not_there() -> None:
    pair = PollPair()
    pair.take({("a",): {"x_total": 5}}, 10 * SECOND)
    assert pair.rates(("a",), ("x_total",)).get("x_total") is None
    pair.take({("a",): {"x_total": 4}, ("b",): {"x_total": 9}}, 12 * SECOND)
    assert [pair.rates((name,), ("x_total",)).get("x_total") for name in "abc"] == [None, None, None]
    assert pair.total("x_total") is None


def test_each_counter_that_both_polls_have_has_its_rate_whatever_else_they_have() -> None:
    pair = PollPair()
    pair.take({(): {"node": "a", "x_total": 1, "idle": 3, "y_total": 1 << 63}}, 10 * SECOND)
    pair.take({(): {"y_total": 1 << 63, "z_total": 5, "x_total": 2.5, "node": "b"}}, 12 * SECOND)
    assert pair.rates((), ("x_total", "y_total", "z_total", "w_total")) == {"x_total": 0.75, "y_total": 0}
    pair.take({(): {"z_total": 7}}, 14 * SECOND)
    pair.take({(): {"z_total": 8}}, 16 * SECOND)
    assert pair.total("z_total") == 0.5


def test_what_is_known_of_how_counters_are_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_LAYOUTS", 3)
    monkeypatch.setattr(rates, "_layouts", {})
    pair = PollPair()
    for at in range(1, 20):
        pair.take({(): {f"{at}": 0, "x_total": 10 * at}}, at * SECOND)
        assert len(rates._layouts) <= 3
    assert pair.rates((), ("x_total",)).get("x_total") == 10


def test_polls_close_together_count_as_one() -> None:
    pair = PollPair()
    for at, value in ((10.0, 0), (12.0, 200), (12.001, 201)):
        pair.take({(): {"x_total": value}}, round(at * SECOND))
    assert pair.rates((), ("x_total",)).get("x_total") == pytest.approx(201 / 2.001)


def test_a_total_is_that_of_all_subjects_whose_rate_is_known() -> None:
    pair = PollPair()
    pair.take({("a",): {"x_total": 0}, ("b",): {"x_total": 0}}, 10 * SECOND)
    pair.take({("a",): {"x_total": 2}, ("b",): {"x_total": 4}, ("c",): {"x_total": 99}}, 12 * SECOND)
    assert pair.total("x_total") == 3


# --- A VM at a glance ---


def test_of_a_vm_that_told_nothing_nothing_is_said(shown: OverviewSource) -> None:
    ((_, view),) = shown.snapshot.views()
    assert summarize(view.pairs) == {"now": {"time": 0.0}}


def test_disks_have_their_rates_and_those_that_can_fill_their_fullness(shown: OverviewSource) -> None:
    shown.put(BLOCK, 10, (("disk0",), did()), (("disk1",), did()))
    shown.put(BLOCK, 20, (("disk0",), did(100, 200, 10, 20)), (("disk1",), did(0, 50, 0, 5)))
    shown.put(BLOCK_SPACE, 20, (("disk0",), {"used_bytes": 85, "limit_bytes": 100, "free_bytes": 15}))
    said = shown.summarize()
    full = {"used_bytes": 85, "limit_bytes": 100, "free_bytes": 15}
    assert said["disks"] == [
        {"device": "disk0", "read": 10, "write": 20, "reads": 1, "writes": 2, **full},
        {"device": "disk1", "read": 0, "write": 5, "reads": 0, "writes": 0.5},
    ]
    assert said["now"] == {"time": 20.0, "read": 10, "write": 25, "reads": 1, "writes": 2.5}


def test_memory_is_what_the_guest_says_or_else_what_the_balloon_leaves(shown: OverviewSource) -> None:
    shown.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    assert shown.summarize()["memory"] == {"total_bytes": 100}
    shown.put(GUEST_MEMORY, 10, ((), {"total_bytes": 90, "available_bytes": 60}))
    assert shown.summarize()["memory"] == {"total_bytes": 90, "used_bytes": 30}
    shown.put(PROCESS, 10, ((), {"resident_bytes": 50}))
    assert shown.summarize()["memory"] == {"total_bytes": 90, "used_bytes": 30, "resident_bytes": 50}


def test_cpu_is_how_many_processors_the_vcpus_took_together(shown: OverviewSource) -> None:
    for at, spent in ((10, 0.0), (12, 1.5)):
        shown.put(VCPU, at, (("0",), {"cpu_seconds_total": spent}), (("1",), {"cpu_seconds_total": spent / 3}))
    said = shown.summarize()
    assert (said["now"]["cpu"], said["vcpus"]) == (1.0, 2)


def test_a_migration_says_how_far_it_has_come_and_how_long_it_takes() -> None:
    def said(**values: Any) -> Any:
        pair = PollPair()
        pair.take({(): values}, SECOND)
        return migration({MIGRATION.name: pair})

    assert said(status="none") is None
    moving = said(status="active", ram_remaining_bytes=300, ram_bytes=1000, remaining_seconds=3.0)
    assert (moving["done_bytes"], moving["of_bytes"], moving["remaining_seconds"]) == (700, 1000, 3)
    assert said(status="completed", ram_remaining_bytes=0, ram_bytes=1000) == {"status": "completed"}
    assert "remaining_seconds" not in said(status="active", ram_remaining_bytes=300, ram_bytes=1000)


# --- The history ---


def test_the_history_has_a_point_a_poll_and_is_bounded(shown: OverviewSource) -> None:
    for revision in range(POINTS + 10):
        shown.put(BLOCK, 10 + 2 * revision, (("disk0",), did(write=revision * 20)))
    ((_, view),) = shown.snapshot.views()
    assert len(view.history) == POINTS
    assert {point.write for point in view.history} == {10}
    assert [b.time - a.time for a, b in zip(view.history, list(view.history)[1:], strict=False)] == [2] * (POINTS - 1)


# --- Who has seen what ---


def test_one_is_told_all_at_first_then_what_changed_then_nothing(shown: OverviewSource) -> None:
    onlook = look(shown)
    first = plain(onlook.changes())
    assert first.keys() == {"vms", "history", "monitors", "alerts", "agent"}
    assert onlook.changes() is None
    shown.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    assert plain(onlook.changes())["vms"][vm().uuid]["memory"] == {"total_bytes": 100}
    shown.trouble = "x"
    assert plain(onlook.changes()) == {"agent": {"trouble": "x"}}


def test_whoever_is_slow_is_told_the_last_of_several_changes(shown: OverviewSource) -> None:
    onlook = look(shown)
    onlook.changes()
    for size in range(5):
        shown.put(BALLOON, 10 + size, ((), {"actual_bytes": size}))
    assert plain(onlook.changes())["vms"][vm().uuid]["memory"] == {"total_bytes": 4}
    assert onlook.changes() is None


def test_a_vm_that_came_has_its_history_and_one_that_went_is_said_to_be_gone(shown: OverviewSource) -> None:
    onlook, other = look(shown), vm(1, "vm2", "/run/vm2.qmp")
    onlook.changes()
    shown.snapshot.status(status(other, key=1))
    for at in (10, 12, 14):
        shown.put(BLOCK, at, (("disk0",), did(write=at)), whose=other)
    news = plain(onlook.changes())
    assert news["vms"].keys() == {other.uuid}
    assert [point[0] for point in news["history"][other.uuid]] == [12, 14]
    gone = status(other, key=1)
    shown.snapshot.status(type(gone)(gone.monitor, type(gone.state).GONE, "", other, gone.build, 0))
    assert plain(onlook.changes())["gone"] == [other.uuid]


def test_a_disk_that_can_fill_has_its_ladder(shown: OverviewSource) -> None:
    shown.put(BLOCK, 10, (("disk0",), did()), (("disk1",), did()))
    shown.put(BLOCK_SPACE, 10, (("disk0",), {"used_bytes": 85, "limit_bytes": 100}))
    disks = plain(look(shown).changes())["vms"][vm().uuid]["disks"]
    assert [disk.get("levels") for disk in disks] == [[["80%", 80], ["90%", 90]], None]


def test_a_vm_in_detail_has_every_family_with_what_its_fields_mean(shown: OverviewSource) -> None:
    for at, write in ((10, 0), (12, 200)):
        shown.put(BLOCK, at, (("disk0",), did(write=write) | {"node": "n"}))
    onlook = look(shown)
    (family,) = plain(onlook.changes(vm().uuid))["detail"]["families"]
    assert (family["name"], family["labels"], family["source"]) == ("block", ["device"], "query-blockstats")
    fields = {field["name"]: (field["kind"], field["help"]) for field in family["fields"]}
    assert fields["write_bytes_total"] == ("counter", "Bytes written.")
    (subject,) = family["subjects"]
    assert (subject["labels"], subject["values"]["node"]) == (["disk0"], "n")
    assert subject["rates"]["write_bytes_total"] == 100
    assert onlook.changes(vm().uuid) is None
    assert "detail" not in plain(look(shown).changes())


def test_jobs_say_how_far_they_are(shown: OverviewSource) -> None:
    values = {"status": "running", "progress": 300, "goal": 1000, "progress_ratio": 0.3, "remaining_seconds": 7}
    shown.put(JOB, 12, (("job0", "mirror"), values))
    told = {"status": "running", "progress_ratio": 0.3, "remaining_seconds": 7}
    assert shown.summarize()["jobs"] == [{"job": "job0", "type": "mirror", **told}]
    shown.put(JOB, 14)
    assert "jobs" not in shown.summarize()
