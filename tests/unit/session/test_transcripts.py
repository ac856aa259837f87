"""Samples and series from the answers of each QEMU version, 2.6 to 11.1, compared with golden files.

`GOLDEN=write pytest tests/unit/session/test_transcripts.py` rewrites the golden files. Review the difference before you commit it.
"""

from pathlib import Path
from typing import Any, Final

import pytest

from agent.exposition.prometheus import render_metrics
from agent.exposition.snapshot import Snapshot
from agent.session.shared_types import PollOutcome
from tests.lab import golden_files
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, supervised
from tests.lab.snapshots import status
from tests.lab.transcript import FOLDER, Transcript

TRANSCRIPTS: Final = sorted(path.stem for path in FOLDER.glob("*.json"))
VARYING_FIELDS: Final = {"since_timestamp_seconds", "process_unknown_reason"}
"""Fields that depend on the time or on the process that replays QEMU."""


def samples_of(observer: RecordingObserver) -> dict[str, dict[str, Any]]:
    """Return the last sample of each subject."""
    return {
        " ".join((sample.family.name, *sample.labels)): {
            k: v for k, v in sample.values.items() if k not in VARYING_FIELDS
        }
        for _, _, samples, _ in observer.calls_of("on_samples")
        for sample in samples
    }


def series_of(observer: RecordingObserver) -> list[str]:
    """Return the series that come from samples."""
    snapshot = Snapshot()
    for vm, families, samples, time_ns in observer.calls_of("on_samples"):
        snapshot.update_monitor_status(status(vm))
        snapshot.replace_samples(vm, families, samples, time_ns)
    lines = render_metrics(snapshot).splitlines()
    series = (line for line in lines if line.startswith("qemu_") and not line.startswith("qemu_vm_"))
    return [line for line in series if "since_timestamp" not in line]


def is_complete(samples: dict[str, dict[str, Any]]) -> bool:
    """Return whether everything was polled, and jobs twice, because a rate takes two polls."""
    jobs = [values for name, values in samples.items() if name.startswith("job ")]
    return "inventory" in samples and all("progress_per_second" in job for job in jobs)


@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_a_transcript_gives_the_golden_samples_and_series(name: str, folder: Path) -> None:
    observer = RecordingObserver()
    async with FakeQemu(folder / "vm1.qmp", transcript=Transcript.load(name)) as fake, supervised(observer, fake.path):
        await observer.wait_until(lambda: is_complete(samples_of(observer)))
    output = {"samples": dict(sorted(samples_of(observer).items())), "series": sorted(series_of(observer))}
    if golden_files.WRITE:
        golden_files.save(f"session_output/{name}.json", output)
    golden = golden_files.load(f"session_output/{name}.json")
    assert output["samples"] == golden["samples"]
    assert output["series"] == golden["series"]
    assert PollOutcome.ERROR not in {outcome for _, outcome in observer.calls_of("on_collector_run")}


def test_every_supported_qemu_version_has_a_transcript() -> None:
    assert {name.removeprefix("qemu-") for name in TRANSCRIPTS} >= {"2.6", "4.2", "5.2", "7.2", "10.0", "11.1"}
