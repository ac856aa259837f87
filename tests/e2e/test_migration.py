"""A migration between two real QEMUs on one host. One agent watches both QEMUs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from agent.cli.demo.guest import Guest, GuestKind
from tests.lab.agent_process import AgentProcess, Record
from tests.lab.fixtures import StartGuest
from tests.lab.waiting import until

SLOW: Final = 16 * 1024
"""Bytes per second: too slow to complete within the test."""
FAST: Final = 100 * 1024 * 1024
EVENTS: Final = {"capability": "events", "state": True}


@dataclass(frozen=True, slots=True)
class MigrationPair:
    """The source and the destination of a migration, and the agent that watches both."""

    source: Guest
    destination: Guest
    agent: AgentProcess

    def active_samples(self) -> list[Record]:
        """Return the source's migration samples in which the migration was active."""
        return list(self.agent.find_records("sample.migration", vm=self.source.name, status="active"))

    def active_seconds(self) -> list[float]:
        """Return for how many seconds the migration had run at each sample with an active migration."""
        return [sample["data"]["elapsed_seconds"] for sample in self.active_samples()]

    def statuses(self, guest: Guest) -> list[str]:
        """Return the migration statuses in a VM's samples, in order and without repetitions."""
        statuses = [record["data"]["status"] for record in self.agent.find_records("sample.migration", vm=guest.name)]
        return [status for before, status in zip([None, *statuses], statuses, strict=False) if status != before]

    async def polls(self) -> float:
        """Return how often the agent has polled the migration of the source and of the destination so far."""
        series = await self.agent.metrics()
        return series.value("qmp_agent_collector_runs_total", collector="migration", outcome="ok") or 0

    async def migrate(self, *, events: bool) -> Any:
        """Migrate slowly until several samples show an active migration, then fast. Return the source's last reply to query-migrate."""
        await self.source.command("migrate-set-parameters", max_bandwidth=SLOW)
        uri = f"unix:{self.source.folder}/migration"
        await self.destination.command("migrate-incoming", uri=uri)
        before = await self.polls()

        async def polled_again() -> bool:
            return await self.polls() >= before + 4

        if not events:  # the destination waits for the source for some time, as in real migrations
            await until(polled_again)
        await self.source.command("migrate", uri=uri)
        seconds = 4 if events else 2
        await until(lambda: len(times := self.active_seconds()) > 2 and times[-1] - times[0] >= seconds)
        assert_progress(self.active_samples())
        await self.source.command("migrate-set-parameters", max_bandwidth=FAST)
        await self.destination.wait_for_event("RESUME")

        async def completed() -> bool:
            return bool((await self.source.command("query-migrate"))["status"] == "completed")

        await until(completed)
        return await self.source.command("query-migrate")


StartEnds = Callable[..., Awaitable[MigrationPair]]


@pytest.fixture
async def start_ends(start_guest: StartGuest, folder: Path) -> Any:
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "1s"}})

    async def start(*, events: bool, same_identity: bool) -> MigrationPair:
        kind: dict[str, Any] = {"kind": GuestKind.WRITER, "write_kib": 32}
        source = await start_guest("source", **kind)
        identity = source.uuid if same_identity else str(uuid4())
        destination = await start_guest("destination", identity=identity, extra=["-incoming", "defer"], **kind)
        await source.wait_until_booted()
        for guest in (source, destination) if events else ():
            await guest.command("migrate-set-capabilities", capabilities=[EVENTS])
        await agent.start()
        for guest in (source, destination):
            await agent.wait_for_record("sample.migration", vm=guest.name, status="none")
        return MigrationPair(source, destination, agent)

    try:
        yield start
    finally:
        await agent.kill()


def assert_progress(samples: list[Record]) -> None:
    """Assert that several samples show an active migration, that the number of transferred bytes grew, and that RAM remained."""
    transferred = [sample["data"]["ram_transferred_bytes_total"] for sample in samples]
    assert len(transferred) > 2
    assert transferred == sorted(transferred)
    assert transferred[-1] > transferred[0]
    assert all(sample["data"]["ram_remaining_bytes"] > 0 for sample in samples)


def assert_moved(ends: MigrationPair) -> None:
    """Assert that the agent reports a migration, and reports neither a new VM nor the end of a VM."""
    find_records = ends.agent.find_records
    (migrated_in,) = find_records("vm.migrated_in")
    assert (migrated_in["vmname"], migrated_in["data"]) == (ends.destination.name, {"observed": True})
    (migrated_out,) = find_records("vm.migrated_out")
    assert migrated_out["vmname"] == ends.source.name
    incoming = {record["vmname"]: record["data"].get("incoming", False) for record in find_records("vm.attached")}
    assert incoming == {ends.source.name: False, ends.destination.name: True}
    assert [*find_records("vm.gone")] == []


async def assert_final(ends: MigrationPair, final: dict[str, Any]) -> Record:
    """Assert that the source's last sample has the values of QEMU's last reply to query-migrate."""
    took = final["total-time"] / 1000
    last = await ends.agent.wait_for_record(
        "sample.migration", vm=ends.source.name, status="completed", elapsed_seconds=took
    )
    figures = last["data"]
    assert figures["downtime_seconds"] == final["downtime"] / 1000
    assert took > max(ends.active_seconds())
    assert figures["setup_seconds"] == final["setup-time"] / 1000
    assert figures["ram_transferred_bytes_total"] == final["ram"]["transferred"]
    assert figures["ram_bytes"] == final["ram"]["total"]
    assert figures["ram_remaining_bytes"] == 0
    ended = (await ends.agent.wait_for_record("migration.ended", vm=ends.source.name))["data"]
    assert (ended["outcome"], ended["role"]) == ("completed", "source")
    assert ended["elapsed_seconds"] == figures["elapsed_seconds"]
    assert ended["transferred_bytes"] == figures["ram_transferred_bytes_total"]
    await ends.agent.wait_for_record(
        "migration.ended", vm=ends.destination.name, outcome="completed", role="destination"
    )
    assert len([*ends.agent.find_records("migration.ended")]) == 2
    return last


async def test_a_migration_with_one_uuid_is_reported_from_both_ends(start_ends: StartEnds) -> None:
    ends = await start_ends(events=True, same_identity=True)
    source, destination, agent = ends.source, ends.destination, ends.agent
    final = await ends.migrate(events=True)
    await assert_final(ends, final)
    await agent.wait_for_record("sample.runstate", vm=source.name, status="postmigrate", running=False)
    await agent.wait_for_record("sample.runstate", vm=destination.name, status="running", running=True)
    await agent.wait_for_record("sample.migration", vm=destination.name, status="completed")

    def events(guest: Guest) -> list[str]:
        return [e["data"]["qemu"]["status"] for e in agent.find_records("event.migration", vm=guest.name)]

    for guest in (source, destination):
        await until(lambda guest=guest: "completed" in events(guest))  # type: ignore[misc]
        assert events(guest) == ["setup", "active", "completed"]
    await agent.wait_for_record("event.stop", vm=source.name)
    await agent.wait_for_record("event.resume", vm=destination.name)
    await agent.wait_for_record("event.migration_pass", vm=source.name)
    assert ends.statuses(source)[0] == "none"
    assert ends.statuses(source)[-2:] == ["active", "completed"]

    # Two processes with one UUID: a scrape has the series of one, until one of them ends.
    series = await agent.metrics()  # fails on a duplicate series
    assert len(series.matching("qemu_vm_up", vm_uuid=source.uuid)) == 1
    await source.stop()
    await agent.wait_for_record("vm.migrated_out", vm=source.name, shutdown_reason="host-signal")
    assert_moved(ends)
    remaining = {"vm_uuid": destination.uuid, "vm": destination.name}
    assert (await agent.metrics()).matching("qemu_vm_up") == [(remaining, 1.0)]
    assert (await agent.stop()).status == 0


async def test_a_migration_without_events_is_found_by_polling(start_ends: StartEnds) -> None:
    ends = await start_ends(events=False, same_identity=False)
    final = await ends.migrate(events=False)
    await assert_final(ends, final)
    await ends.agent.wait_for_record("sample.migration", vm=ends.destination.name, status="completed")
    statuses = [event["data"]["qemu"]["status"] for event in ends.agent.find_records("event.migration")]
    assert statuses in ([], ["setup"]), "QEMU before 8 sends the first event of a destination all the same"
    assert ends.statuses(ends.source)[-2:] == ["active", "completed"]
    source = ends.source.uuid

    async def know_the_run_states() -> bool:
        series = await ends.agent.metrics()
        running = [
            series.value("qemu_runstate_running", vm_uuid=guest.uuid) for guest in (ends.source, ends.destination)
        ]
        return running == [0, 1]

    await until(know_the_run_states)
    series = await ends.agent.metrics()
    assert series.value("qemu_migration_status", vm_uuid=source, status="completed") == 1
    assert series.value("qemu_migration_downtime_seconds", vm_uuid=source) == final["downtime"] / 1000
    assert series.value("qemu_migration_elapsed_seconds", vm_uuid=source) == final["total-time"] / 1000
    assert series.value("qemu_migration_ram_transferred_bytes_total", vm_uuid=source) == final["ram"]["transferred"]
    await ends.source.kill()
    await ends.agent.wait_for_record("vm.migrated_out", vm=source)
    assert_moved(ends)


MONITOR_ENTRIES: Final[dict[str, dict[str, Any]]] = {
    "dial": {"dial": "{folder}/*.qmp"},
    "dial_per_poll": {"dial_per_poll": "{folder}/*.qmp"},
    "listen": {"listen": "{folder}/mon"},
}


@pytest.mark.parametrize("kind", MONITOR_ENTRIES)
async def test_with_each_kind_of_monitor_a_migrated_vm_is_neither_gone_nor_new(
    start_guest: StartGuest, folder: Path, kind: str
) -> None:
    entry = {key: value.format(folder=folder) for key, value in MONITOR_ENTRIES[kind].items()}
    connect: list[str] = []
    if "listen" in entry:
        connect = [
            *("-chardev", f"socket,id=mon,path={entry['listen']},reconnect=1", "-mon", "chardev=mon,mode=control")
        ]
    source = await start_guest("source", kind=GuestKind.WRITER, extra=connect)
    incoming = ["-incoming", "defer", *connect]
    destination = await start_guest("destination", kind=GuestKind.WRITER, identity=source.uuid, extra=incoming)
    await source.wait_until_booted()
    async with AgentProcess(folder, {"monitors": [entry], "intervals": {"poll": "300ms"}}) as agent:
        ends = MigrationPair(source, destination, agent)
        for guest in (source, destination):
            await agent.wait_for_record("sample.migration", vm=guest.name, status="none")
        uri = f"unix:{folder}/migration"
        await destination.command("migrate-incoming", uri=uri)
        await source.command("migrate", uri=uri)
        await agent.wait_for_record("vm.migrated_in", vm=destination.name)
        await agent.wait_for_record("sample.runstate", vm=source.name, status="postmigrate")
        await source.stop()
        await agent.wait_for_record("vm.migrated_out", vm=source.name)
        assert_moved(ends)


async def test_a_vm_that_arrived_before_the_agent_started_is_reported_as_migrated_in(
    start_guest: StartGuest, folder: Path
) -> None:
    source = await start_guest("source", kind=GuestKind.WRITER)
    destination = await start_guest("destination", kind=GuestKind.WRITER, extra=["-incoming", "defer"])
    await source.wait_until_booted()
    uri = f"unix:{folder}/migration"
    await destination.command("migrate-incoming", uri=uri)
    await source.command("migrate", uri=uri)
    await destination.wait_for_event("RESUME")
    async with AgentProcess(folder, {"monitors": [{"dial": str(destination.monitor)}]}) as agent:
        await agent.wait_for_record("vm.migrated_in", vm=destination.name, observed=False)
        (attached,) = agent.find_records("vm.attached")
        assert "incoming" not in attached["data"]


@pytest.mark.parametrize("events", [True, False])
async def test_a_refused_migration_is_reported_as_failed_at_the_source(start_ends: StartEnds, events: bool) -> None:  # noqa: FBT001 - a parameter of the test
    ends = await start_ends(events=events, same_identity=False)
    await ends.source.command("migrate", uri="tcp:127.0.0.1:1")
    ended = (await ends.agent.wait_for_record("migration.ended", vm=ends.source.name))["data"]
    assert (ended["outcome"], ended["role"]) == ("failed", "source")
    assert [*ends.agent.find_records("migration.ended", vm=ends.destination.name)] == []
