"""Causes of records: alerts and lifecycle changes name the event or sample that they follow from."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from agent.app.agent import Agent
from agent.app.causation import CausationIds, PublishedSamples
from agent.config.model import Config
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, RecordEncoder, Vm
from agent.session.shared_types import VmLifecycleChange
from tests.lab.fake_qemu import FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

VM = Vm("host1", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "vm1", "/run/vm1.qmp")
NOSPACE = {
    "device": "",
    "qom-path": "/machine/peripheral/disk0",
    "operation": "write",
    "action": "stop",
    "nospace": True,
}


def event(name: str, vm: Vm = VM, **qemu: Any) -> Record:
    return Record(f"qemu.event.{name.lower()}", vm, {"event": name, "category": "unknown", "qemu": qemu}, 7)


def alert(subject: str) -> Record:
    return Record("qemu.alert.x", VM, {}, 7, subject)


def test_an_alert_follows_from_the_sample_about_its_subject() -> None:
    samples = [Sample(RUNSTATE, (), {}), Sample(BLOCK, ("disk0",), {}), Sample(BLOCK, ("disk1",), {})]
    samples += [Sample(BLOCK_DEVICE, ("disk1",), {})]
    records = RecordEncoder().encode_samples(VM, samples, 0)
    published = PublishedSamples(samples, records)
    assert [published.causation_id_of_alert(alert(name)) for name in ("", "disk0", "disk1", "unplugged")] == [
        records[0].id,
        records[1].id,
        records[2].id,
        records[0].id,
    ]
    assert PublishedSamples(samples[1:], records[1:]).causation_id_of_alert(alert("unplugged")) == ""
    assert PublishedSamples((), ()).causation_id_of_alert(alert("disk0")) == ""


def test_an_event_that_waits_to_be_coalesced_has_no_id_yet() -> None:
    causes = CausationIds()
    causes.on_event_published(event("STOP"), "a-1")
    assert causes.record_id_of_event(event("STOP")) == "a-1"
    assert causes.record_id_of_event(event("RESUME")) == ""
    assert causes.record_id_of_event(event("STOP", Vm("host1", "", "", "/run/other"))) == ""


@pytest.mark.parametrize(
    ("change", "events", "cause"),
    [
        (VmLifecycleChange.GONE, ["SHUTDOWN"], "a-0"),
        (VmLifecycleChange.GONE, [], ""),
        (VmLifecycleChange.DETACHED, ["SHUTDOWN"], "a-0"),
        (VmLifecycleChange.MIGRATED_OUT, ["completed", "SHUTDOWN"], "a-0"),
        (VmLifecycleChange.MIGRATED_OUT, ["SHUTDOWN"], "a-0"),
        (VmLifecycleChange.MIGRATED_IN, ["setup", "active", "completed"], "a-2"),
        (VmLifecycleChange.MIGRATED_IN, ["setup", "active"], ""),
        (VmLifecycleChange.STALLED, ["SHUTDOWN"], ""),
    ],
)
def test_a_lifecycle_change_follows_from_an_event(change: VmLifecycleChange, events: list[str], cause: str) -> None:
    causes = CausationIds()
    for number, name in enumerate(events):
        record = event(name) if name.isupper() else event("MIGRATION", status=name)
        causes.on_event_published(record, f"a-{number}")
    assert causes.causation_id_of_lifecycle_change(change, VM) == cause
    ends_here = change in {VmLifecycleChange.GONE, VmLifecycleChange.DETACHED, VmLifecycleChange.MIGRATED_OUT}
    assert causes.causation_id_of_lifecycle_change(VmLifecycleChange.GONE, VM) == (
        "" if ends_here or "SHUTDOWN" not in events else "a-0"
    )


def test_the_end_of_a_migration_follows_from_the_event_with_the_same_status() -> None:
    causes = CausationIds()
    causes.on_event_published(event("MIGRATION", status="failed"), "a-1")
    assert causes.causation_id_of_transition(Record("qemu.migration.ended", VM, {"status": "failed"}, 9)) == "a-1"
    assert causes.causation_id_of_transition(Record("qemu.migration.ended", VM, {"status": "completed"}, 9)) == ""
    assert causes.causation_id_of_transition(Record("qemu.other", VM, {"status": "failed"}, 9)) == ""


@contextlib.asynccontextmanager
async def monitored(fake: FakeQemu) -> AsyncIterator[Callable[[str], Mapping[str, Any]]]:
    """Run an agent that watches the scripted VM. Yield a function that returns the only record of a type."""
    sink = ListSink()
    config = {"monitors": [{"dial": str(fake.path)}], "web": {"listen_address": "127.0.0.1:0"}}
    agent = Agent(Config.model_validate(config), sink)

    def only(record_type: str) -> Mapping[str, Any]:
        (record,) = [record for record in sink.records if record["type"] == record_type]
        return record

    async with agent.run_in_background():
        await until(lambda: any(status.state.value == "up" for status in agent.snapshot.monitors.values()), 60)
        yield only


async def test_an_alert_names_its_event_and_the_end_of_a_vm_its_shutdown(fake: FakeQemu) -> None:
    async with monitored(fake) as only:
        fake.emit("BLOCK_IO_ERROR", NOSPACE, at=time.time())
        fake.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})

        def has_ended() -> bool:
            with contextlib.suppress(ValueError):
                return bool(only("qemu.vm.gone"))
            return False

        fake.drop()
        await until(has_ended, 60)
        await asyncio.sleep(0)
        alert_record = only("qemu.alert.disk_full")
        assert alert_record["causationid"] == only("qemu.event.block_io_error")["id"]
        assert only("qemu.vm.gone")["causationid"] == only("qemu.event.shutdown")["id"]
