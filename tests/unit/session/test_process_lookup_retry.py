"""The lookup of a VM's process on a slow host."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.collectors import PollIntervals
from agent.host.qemu_process_identification import identify_qemu_process
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.vm_process_and_interfaces import PROCESS
from agent.session import host_process
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.unit.host.test_qemu_process_identification import write_process_files

THREAD = 71


async def test_a_lookup_that_took_too_long_is_repeated_before_the_next_resync(
    fake: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_process_files(tmp_path, os.getpid(), THREAD)
    fake.replies["query-cpus-fast"] = [{"cpu-index": 0, "thread-id": THREAD, "qom-path": "/machine/unattached"}]
    fake.replies["query-iothreads"] = []
    lookups = 0

    def slow_at_first(*arguments: Any) -> Any:
        nonlocal lookups
        lookups += 1
        if lookups == 1:
            raise TimeoutError
        return identify_qemu_process(*arguments)

    monkeypatch.setattr(host_process, "identify_qemu_process", slow_at_first)
    observer = RecordingObserver()
    context = session_context(root=tmp_path, intervals=PollIntervals(poll=10.0, resync=3600.0))

    def identities() -> list[dict[str, Any]]:
        return [
            dict(sample.values)
            for _, families, samples, _ in observer.calls_of("on_samples")
            if IDENTITY in families
            for sample in samples
        ]

    async with supervised(observer, fake.path, context=context):
        await observer.wait_until(lambda: any("pid" in each for each in identities()))
        assert fake.count("query-migrate-capabilities") == 1, "the VM's features are not discovered again for it"
        assert "timed out" in identities()[0]["process_unknown_reason"]
        await observer.wait_until(
            lambda: any(PROCESS in families and samples for _, families, samples, _ in observer.calls_of("on_samples"))
        )
