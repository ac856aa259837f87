"""QEMUs that are too old to be had, played: their answers are written from what their schemas say (2.6, 4.2, 5.2), not recorded.

What each lacks is never asked of it; what it has under other names, or in fewer fields, is told all the same.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.check import check
from agent.config.model import Config
from agent.session.api import PollOutcome
from tests.lab import golden_files
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised
from tests.lab.transcript import Transcript

DISKS: Final = {"2.6": "drive-virtio-disk0", "4.2": "virtio-disk0", "5.2": "virtio-disk0"}
OFF: Final = {
    "2.6": {"memory", "dirty", "hv_balloon", "kvm"},
    "4.2": {"dirty", "hv_balloon", "kvm"},
    "5.2": {"hv_balloon", "kvm"},
}
"""Collectors that are off for each."""

EVENTS: Final = golden_files.load("events_data.json")


@pytest.fixture(params=DISKS)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def old(folder: Path, version: str) -> AsyncIterator[FakeQemu]:
    async with FakeQemu(folder / "vm1.qmp", transcript=Transcript.load(f"qemu-{version}")) as running:
        yield running


def told(observer: RecordingObserver) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the last sample of each subject, by its family's name and labels."""
    return {
        (sample.family.name, *sample.labels): dict(sample.values)
        for _, _, samples, _ in observer.calls_of("on_samples")
        for sample in samples
    }


async def test_what_it_lacks_is_never_asked_and_all_else_is_answered(old: FakeQemu, version: str) -> None:
    observer = RecordingObserver()
    async with supervised(observer, old.path):
        await observer.wait_for_polls(3)
        await observer.wait_until(lambda: ("inventory",) in told(observer))
    has = {c["name"] for c in old.transcript.answer("query-commands", {})["return"]}
    assert {request["execute"] for request in old.requests} <= has
    outcomes = {name for name, outcome in observer.calls_of("on_collector_run") if outcome is not PollOutcome.OK}
    assert outcomes <= OFF[version]  # told once as unsupported, where it was to be asked at all
    assert {kind for kind in observer.types("vm") if "stall" in kind} == set()


async def test_its_figures_are_told_under_the_names_of_today(old: FakeQemu, version: str) -> None:
    observer, device = RecordingObserver(), DISKS[version]
    async with supervised(observer, old.path):
        await observer.wait_until(lambda: {("guest_memory",), ("migration",), ("inventory",)} <= told(observer).keys())
        await observer.wait_for_polls(1, "jobs")
        figures = told(observer)
    disk = figures["block", device]
    assert (disk["writes_total"], disk["write_bytes_total"], disk["write_seconds_total"]) == (
        1024,
        4194304,
        0.912874432,
    )
    assert (disk["flushes_total"], disk["storage_write_highest_offset_bytes"]) == (17, 26214400)
    assert ("unmaps_total" in disk) == (version != "2.6")
    assert figures["block_layer", device, "format"]["size_bytes"] == 1 << 30
    assert figures["block_layer", device, "storage"]["allocated_bytes"] == 26214400
    assert figures["runstate",]["status"] == "running"
    assert figures["balloon",] == {"actual_bytes": 1 << 30}
    assert figures["guest_memory",]["free_bytes"] == 734003200
    assert "available_bytes" not in figures["guest_memory",]  # -1: the guest did not say
    migration = figures["migration",]
    assert (migration["status"], migration["ram_remaining_bytes"], migration["passes_total"]) == ("active", 50 << 20, 3)
    assert migration["throughput_bytes_per_second"] == 33554432
    assert migration["cpu_throttle_ratio"] == 0.2
    (job,) = (values for (family, *_), values in figures.items() if family == "job")
    assert (job["progress"], job["goal"], job["progress_ratio"]) == (256 << 20, 1 << 30, 0.25)
    assert figures["about",]["accelerator"] == "kvm"
    assert figures["about",]["machine"].startswith("pc-i440fx-")
    if version == "5.2":
        assert figures["dirty_rate",]["bytes_per_second"] == 37 << 20


async def test_check_says_what_is_off_for_it(old: FakeQemu, version: str) -> None:
    found = [text async for _, text in check(Config.model_validate({"monitors": [{"dial": str(old.path)}]}))]
    (lacks,) = (text for text in found if text.startswith("QEMU "))
    number, _, rest = lacks.partition(": ")
    assert number.startswith(f"QEMU {version}.")
    parts = dict(part.split(" ", 1) for part in rest.split("; "))
    beside = {"vcpu"} if version == "2.6" else set()
    assert {name for name, said in parts.items() if said.startswith("is off, for there is no query-")} == (
        OFF[version] | beside
    )
    less = {name for name, said in parts.items() if said.startswith("tells less, for there is no query-")}
    assert less == {"2.6": {"jobs"}, "4.2": set(), "5.2": {"dirty"}}[version]


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_is_told_whole_with_every_field_and_with_those_missing_that_a_qemu_leaves_out(
    fake: FakeQemu, event: str
) -> None:
    observer, kind = RecordingObserver(), f"event.{event.lower()}"
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        for at, data in enumerate(EVENTS[event], 1):
            fake.emit(event, data or None, at=1_500_000_000 + at)
        await observer.wait_until(
            lambda: sum(record.data.get("count", 1) for record in observer.records(kind)) == len(EVENTS[event])
        )
    records = observer.records(kind)
    assert all(record.data["category"] != "unknown" for record in records)
    assert records[0].data["qemu"] == EVENTS[event][0]
    assert records[-1].data["qemu"] == EVENTS[event][-1]
    assert [record.data["qemu"] for record in records if record.data["qemu"] not in EVENTS[event]] == []
    assert records[-1].time_ns == (1_500_000_000 + len(EVENTS[event])) * 10**9
