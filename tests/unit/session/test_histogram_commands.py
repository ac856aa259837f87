"""Latency histograms of all VMs: which commands are due, and what survives a restart of the agent."""

from typing import Any

import pytest

from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_BACKING
from agent.model.record import Vm
from agent.qmp.commands import AllowList, Command, OptInQemuChange, set_histograms_command
from agent.session.disk_histogram_state_machine import HistogramState
from agent.session.latency_histogram_tracker import (
    DETACHED_VM_RETENTION_SECONDS,
    HISTOGRAM_ENTRY_PREFIX,
    MAX_COMMANDS_PER_POLL,
    LatencyHistogramTracker,
)
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

BOUNDARIES = (1_000_000, 10_000_000)
IN_SECONDS = [0.001, 0.01]
VM = Vm("hv7", "u1", "web", "/run/web.qmp")
PID = 42


def sample(disk: str = "disk0", boundaries: list[float] | None = None, **values: Any) -> Sample:
    histogram = {"write_latency_seconds": {"boundaries_seconds": boundaries, "counts": []}} if boundaries else {}
    return Sample(BLOCK, (disk,), {"qdev": f"/machine/{disk}", "writes_total": 5} | histogram | values)


def attached(boundaries: tuple[int, ...] = BOUNDARIES, pid: int | None = PID) -> LatencyHistogramTracker:
    histograms = LatencyHistogramTracker(boundaries)
    histograms.on_attached(VM, pid)
    return histograms


def set_on(histograms: LatencyHistogramTracker, *samples: Sample) -> list[str]:
    """Poll these disks, let QEMU confirm the commands that are due, and return their disks."""
    histograms.on_samples(VM, samples)
    commands = histograms.pop_pending_commands(VM)
    for disk, _ in commands:
        histograms.on_command_done(VM, disk, done=True)
    return [disk for disk, _ in commands]


def restarted(histograms: LatencyHistogramTracker, pid: int | None = PID) -> LatencyHistogramTracker:
    """Return the histograms of the agent's next run, attached to the VM."""
    name, entry = histograms.persistent_entry(VM)
    following = LatencyHistogramTracker(BOUNDARIES)
    following.restore({name: entry}, 0.0)
    following.on_attached(VM, pid)
    return following


def test_a_disk_without_histograms_gets_them_once() -> None:
    histograms = attached()
    histograms.on_samples(VM, [sample()])
    assert histograms.has_pending_commands(VM)
    boundaries = {f"boundaries-{kind}": list(BOUNDARIES) for kind in ("read", "write", "flush")}
    expected = Command("block-latency-histogram-set", {"id": "/machine/disk0", **boundaries})
    assert histograms.pop_pending_commands(VM) == [("disk0", expected)]
    histograms.on_command_done(VM, "disk0", done=True)
    assert set_on(histograms, sample(boundaries=IN_SECONDS)) == []
    assert not histograms.has_pending_commands(VM)


def test_the_commands_are_permitted_by_their_change() -> None:
    histograms = attached()
    histograms.on_samples(VM, [sample()])
    ((_, command),) = histograms.pop_pending_commands(VM)
    assert AllowList([OptInQemuChange.LATENCY_HISTOGRAMS]).encode(command)


@pytest.mark.parametrize("name", ["read", "write", "flush", "zone_append"])
def test_a_disk_with_any_histogram_gets_none(name: str) -> None:
    found: dict[str, Any] = {f"{name}_latency_seconds": {"boundaries_seconds": [0.5], "counts": [1, 2]}}
    assert set_on(attached(), sample(**found)) == []


def test_a_disk_whose_histograms_libvirt_does_not_report_gets_none() -> None:
    histograms = attached()
    assert set_on(histograms, sample(target="vda")) == []
    assert histograms.disk_count_by_state().total() == 0


def test_only_guests_disks_with_a_device_get_histograms() -> None:
    assert set_on(attached(), sample(qdev=""), Sample(BLOCK_BACKING, ("disk1", "1"), {})) == []


def test_without_boundaries_no_command_is_due() -> None:
    histograms = attached(boundaries=())
    histograms.on_samples(VM, [sample()])
    assert not histograms.has_pending_commands(VM)
    assert histograms.pop_pending_commands(VM) == []


def test_many_disks_are_set_in_several_polls() -> None:
    disks = [f"disk{number}" for number in range(MAX_COMMANDS_PER_POLL + 2)]
    histograms = attached()
    assert set_on(histograms, *map(sample, disks)) == disks[:MAX_COMMANDS_PER_POLL]
    following = [sample(disk, IN_SECONDS if disk in disks[:MAX_COMMANDS_PER_POLL] else None) for disk in disks]
    assert set_on(histograms, *following) == disks[MAX_COMMANDS_PER_POLL:]


def test_an_unplugged_disk_is_forgotten() -> None:
    histograms = attached()
    set_on(histograms, sample())
    histograms.on_samples(VM, [])
    assert histograms.persistent_entry(VM)[1] is None
    assert set_on(histograms, sample()) == ["disk0"]


def test_a_disk_whose_event_reported_an_unplug_gets_histograms_again() -> None:
    histograms = attached()
    set_on(histograms, sample())
    histograms.on_unplugged(VM, "disk0")
    histograms.on_unplugged(VM, "unknown")
    assert set_on(histograms, sample()) == ["disk0"]


def test_removed_histograms_are_not_set_again() -> None:
    histograms = attached()
    set_on(histograms, sample())
    assert set_on(histograms, sample()) == []
    assert histograms.disk_count_by_state() == {HistogramState.REMOVED: 1}


@pytest.mark.parametrize("pid", [PID, None])
def test_the_agents_histograms_are_its_own_after_a_restart(pid: int | None) -> None:
    histograms = attached(pid=pid)
    set_on(histograms, sample())
    following = restarted(histograms, pid)
    following.on_samples(VM, [sample(boundaries=IN_SECONDS)])
    assert following.disk_count_by_state() == {HistogramState.OURS: 1}


def test_the_entry_is_complete_before_the_command_is_sent() -> None:
    histograms = attached()
    histograms.on_samples(VM, [sample()])
    histograms.pop_pending_commands(VM)
    following = restarted(histograms)  # killed before QEMU answered
    following.on_samples(VM, [sample(boundaries=IN_SECONDS)])
    assert following.disk_count_by_state() == {HistogramState.OURS: 1}


def test_another_process_of_the_vm_has_no_histograms_of_the_agent() -> None:
    histograms = attached()
    set_on(histograms, sample())
    following = restarted(histograms, PID + 1)
    following.on_samples(VM, [sample(boundaries=IN_SECONDS)])
    assert following.disk_count_by_state() == {HistogramState.FOREIGN: 1}


def test_without_a_journal_equal_boundaries_count_as_the_agents() -> None:
    histograms = attached()
    histograms.has_no_journal = True
    histograms.on_samples(VM, [sample(boundaries=IN_SECONDS), sample("disk1", [0.5])])
    assert histograms.disk_count_by_state() == {HistogramState.OURS: 1, HistogramState.FOREIGN: 1}


def test_the_entry_of_a_vm_that_is_gone_is_deleted_after_a_while() -> None:
    histograms = attached()
    set_on(histograms, sample())
    name, entry = histograms.persistent_entry(VM)
    assert entry == {"pid": PID, "disks": {"disk0": list(BOUNDARIES)}}
    histograms.on_detached(VM, 100.0)
    assert list(histograms.pop_expired_entries(100.0 + DETACHED_VM_RETENTION_SECONDS - 1)) == []
    assert list(histograms.pop_expired_entries(100.0 + DETACHED_VM_RETENTION_SECONDS)) == [(name, None)]
    assert list(histograms.pop_expired_entries(100.0 + 2 * DETACHED_VM_RETENTION_SECONDS)) == []


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        {"pid": "x", "disks": 5},
        {"disks": {"disk0": 5}},
        {"disks": {"disk0": []}},
        {"pid": PID, "disks": {"disk0": ["x"]}},
        {"pid": PID, "disks": {"disk0": [True]}},
        {"pid": PID, "disks": {"disk0": [1] * 1000}},
    ],
)
def test_an_invalid_entry_is_ignored(entry: object) -> None:
    histograms = LatencyHistogramTracker(BOUNDARIES)
    histograms.restore({f"{HISTOGRAM_ENTRY_PREFIX}u1//run/web.qmp": entry, "other": entry}, 0.0)
    histograms.on_attached(VM, PID)
    assert set_on(histograms, sample()) == ["disk0"]


class OneCommand:
    """A DiskCommandController with one command, which it returns once. It stores the outcome."""

    def __init__(self) -> None:
        self.commands = [("disk0", set_histograms_command("/machine/disk0", BOUNDARIES))]
        self.outcome: bool | None = None

    def has_pending_commands(self, _vm: Vm) -> bool:
        return bool(self.commands)

    async def pop_pending_commands(self, _vm: Vm) -> list[tuple[str, Command]]:
        commands, self.commands = self.commands, []
        return commands

    def on_command_done(self, _vm: Vm, _disk: str, *, done: bool) -> None:
        self.outcome = done


@pytest.mark.parametrize("changes", [(OptInQemuChange.LATENCY_HISTOGRAMS,), ()])
async def test_a_session_sends_the_command_after_a_poll_if_the_change_is_permitted(
    fake: FakeQemu, changes: tuple[OptInQemuChange, ...]
) -> None:
    fake.replies["block-latency-histogram-set"] = {}
    observer, controller = RecordingObserver(), OneCommand()
    async with supervised(observer, fake.path, context=session_context(*changes, histograms=controller)):
        await observer.wait_until(lambda: controller.outcome is not None)
        await observer.wait_for_polls(2)
    assert controller.outcome is bool(changes)
    assert fake.count("block-latency-histogram-set") == len(changes)


async def test_thresholds_and_histograms_are_set_after_the_same_poll(fake: FakeQemu) -> None:
    fake.replies["block-latency-histogram-set"] = fake.replies["block-set-write-threshold"] = {}

    class Thresholds(OneCommand):
        def pop_collectors_to_poll(self, _vm: Vm) -> frozenset[str]:
            return frozenset()

    thresholds, histograms = Thresholds(), OneCommand()
    thresholds.commands = [
        ("disk0", Command("block-set-write-threshold", {"node-name": "n1", "write-threshold": 5})),
    ]
    observer = RecordingObserver()
    context = session_context(
        OptInQemuChange.LATENCY_HISTOGRAMS,
        OptInQemuChange.WRITE_THRESHOLD,
        thresholds=thresholds,
        histograms=histograms,
    )
    async with supervised(observer, fake.path, context=context):
        await observer.wait_until(lambda: histograms.outcome is not None)
    assert (thresholds.outcome, histograms.outcome) == (True, True)
