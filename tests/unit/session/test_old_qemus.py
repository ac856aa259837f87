"""Sessions with QEMU 2.6, 4.2 and 5.2, replayed from transcripts that were written from the QAPI schemas of these versions.

The agent never sends a command that a version lacks. Fields that an old version names differently have the present names in samples.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.check import run_all_checks
from agent.config.model import Config
from agent.session.shared_types import PollOutcome
from tests.lab import golden_files
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised
from tests.lab.transcript import Transcript

DISK_BY_VERSION: Final = {"2.6": "drive-virtio-disk0", "4.2": "virtio-disk0", "5.2": "virtio-disk0"}
OFF_COLLECTORS: Final = {
    "2.6": {"memory", "dirty", "hv_balloon", "kvm"},
    "4.2": {"dirty", "hv_balloon", "kvm"},
    "5.2": {"hv_balloon", "kvm"},
}
"""Collectors that are off, by version."""

EVENTS: Final = golden_files.load("events_data.json")


@pytest.fixture(params=DISK_BY_VERSION)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def old(folder: Path, version: str) -> AsyncIterator[FakeQemu]:
    async with FakeQemu(folder / "vm1.qmp", transcript=Transcript.load(f"qemu-{version}")) as running:
        yield running


def last_samples(observer: RecordingObserver) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the last sample of each subject, by its family's name and labels."""
    return {
        (sample.family.name, *sample.labels): dict(sample.values)
        for _, _, samples, _ in observer.calls_of("on_samples")
        for sample in samples
    }


async def test_missing_commands_are_never_sent_and_all_others_are_answered(old: FakeQemu, version: str) -> None:
    observer = RecordingObserver()
    async with supervised(observer, old.path):
        await observer.wait_for_polls(3)
        await observer.wait_until(lambda: ("inventory",) in last_samples(observer))
    has = {c["name"] for c in old.transcript.answer("query-commands", {})["return"]}
    assert {request["execute"] for request in old.requests} <= has
    outcomes = {name for name, outcome in observer.calls_of("on_collector_run") if outcome is not PollOutcome.OK}
    assert outcomes <= OFF_COLLECTORS[version]  # each is reported as unsupported once, if it applies at all
    assert {kind for kind in observer.types("vm") if "stall" in kind} == set()


async def test_an_old_qemus_figures_have_todays_names(old: FakeQemu, version: str) -> None:
    observer, device = RecordingObserver(), DISK_BY_VERSION[version]
    async with supervised(observer, old.path):
        await observer.wait_until(
            lambda: {("guest_memory",), ("migration",), ("inventory",)} <= last_samples(observer).keys()
        )
        await observer.wait_for_polls(1, "jobs")
        figures = last_samples(observer)
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
    assert "available_bytes" not in figures["guest_memory",]  # -1: the guest did not report it
    migration = figures["migration",]
    assert (migration["status"], migration["ram_remaining_bytes"], migration["passes_total"]) == ("active", 50 << 20, 3)
    assert migration["throughput_bytes_per_second"] == 33554432
    assert migration["cpu_throttle_ratio"] == 0.2
    (job,) = (values for (family, *_), values in figures.items() if family == "job")
    assert (job["progress"], job["progress_target"], job["progress_ratio"]) == (256 << 20, 1 << 30, 0.25)
    assert figures["identity",]["accelerator"] == "kvm"
    assert figures["identity",]["machine"].startswith("pc-i440fx-")
    if version == "5.2":
        assert figures["dirty_rate",]["bytes_per_second"] == 37 << 20


async def test_check_lists_the_collectors_that_are_off(old: FakeQemu, version: str) -> None:
    findings = [
        finding.text async for finding in run_all_checks(Config.model_validate({"monitors": [{"dial": str(old.path)}]}))
    ]
    (finding,) = (text for text in findings if text.startswith("QEMU "))
    number, _, rest = finding.partition(": ")
    assert number.startswith(f"QEMU {version}.")
    parts = dict(part.split(" ", 1) for part in rest.split("; "))
    extra = {"vcpu"} if version == "2.6" else set()
    assert {name for name, text in parts.items() if text.startswith("is off without query-")} == (
        OFF_COLLECTORS[version] | extra
    )
    limited = {name for name, text in parts.items() if text.startswith("is limited without query-")}
    assert limited == {"2.6": {"jobs"}, "4.2": set(), "5.2": {"dirty"}}[version]


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_record_has_all_of_qemus_data(fake: FakeQemu, event: str) -> None:
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


async def test_a_long_backing_chain_is_not_listed_by_a_qemu_without_flat(folder: Path) -> None:
    layer: dict[str, Any] = {"node-name": "base"}
    for number in range(214):
        layer = {"node-name": f"layer{number}", "backing": layer}
    observer = RecordingObserver()
    async with FakeQemu(folder / "vm1.qmp", transcript=Transcript.load("qemu-4.2")) as fake:
        fake.replies["query-blockstats"] = [layer | {"qdev": "disk0"}]
        async with supervised(observer, fake.path):
            await observer.wait_until(lambda: observer.outcomes("nodes"))
            await observer.wait_for_polls(2)
    assert fake.count("query-named-block-nodes") == 0
    degraded = {item for status in observer.calls_of("on_status") for item in status.degraded}
    assert {name for name, _ in degraded} == {"nodes"}
    assert all(cause.startswith("the backing chains are too long") for _, cause in degraded)
