"""A migration between two real QEMUs on one host, seen from both of its ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from agent.cli.demo.guest import Guest, GuestKind, until
from tests.lab.agent_process import AgentProcess, Record, record_time
from tests.lab.fixtures import StartGuest

SLOW: Final = 100 * 1024  # bytes a second: too slow to come to an end by itself within the test
FAST: Final = 100 * 1024 * 1024
EVENTS: Final = {"capability": "events", "state": True}


@dataclass(frozen=True, slots=True)
class Ends:
    """The source and the destination, and the agent that watches both."""

    source: Guest
    destination: Guest
    agent: AgentProcess

    def looks(self) -> list[Record]:
        """Return what was seen of the source's migration while it was under way."""
        return list(self.agent.find_records("sample.migration", vm=self.source.name, status="active"))

    def seen_for(self) -> float:
        """Return for how many seconds it was seen to be under way."""
        looks = self.looks()
        return record_time(looks[-1]) - record_time(looks[0]) if looks else 0

    def statuses(self, guest: Guest) -> list[str]:
        """Return the statuses that a VM's samples told, in order, each once for each time that it came."""
        told = [record["data"]["status"] for record in self.agent.find_records("sample.migration", vm=guest.name)]
        return [status for before, status in zip([None, *told], told, strict=False) if status != before]

    async def asked(self) -> float:
        """Return how often both of them have been asked for their migration."""
        series = await self.agent.metrics()
        return series.value("qmp_agent_collector_runs_total", collector="migration", outcome="ok") or 0

    async def migrate(self, *, events: bool) -> Any:
        """Migrate, slowly until it has been looked at several times, then quickly; return the source's own last figures."""
        await self.source.command("migrate-set-parameters", max_bandwidth=SLOW)
        uri = f"unix:{self.source.folder}/migration"
        await self.destination.command("migrate-incoming", uri=uri)
        asked = await self.asked()

        async def asked_again() -> bool:
            return await self.asked() >= asked + 4

        if not events:  # in life too, some time goes by before the source connects
            await until(asked_again, 10)
        await self.source.command("migrate", uri=uri)
        await until(lambda: self.seen_for() >= (4 if events else 2), 15)
        await self.source.command("migrate-set-parameters", max_bandwidth=FAST)
        await self.destination.event("RESUME")

        async def completed() -> bool:
            return bool((await self.source.command("query-migrate"))["status"] == "completed")

        await until(completed, 10)
        return await self.source.command("query-migrate")


StartEnds = Callable[..., Awaitable[Ends]]


@pytest.fixture
async def start_ends(start_guest: StartGuest, folder: Path) -> Any:
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "1s"}})

    async def start(*, events: bool, same_identity: bool) -> Ends:
        kind: dict[str, Any] = {"kind": GuestKind.WRITER, "write_kib": 32}
        source = await start_guest("source", **kind)
        identity = source.uuid if same_identity else str(uuid4())
        destination = await start_guest("destination", identity=identity, extra=["-incoming", "defer"], **kind)
        await source.booted()
        for guest in (source, destination) if events else ():
            await guest.command("migrate-set-capabilities", capabilities=[EVENTS])
        await agent.start()
        for guest in (source, destination):
            await agent.wait_for_record("sample.migration", vm=guest.name, status="none")
        return Ends(source, destination, agent)

    try:
        yield start
    finally:
        await agent.kill()


def assert_progress(looks: list[Record], poll_seconds: float) -> None:
    """Assert that what was seen grew, and was looked at as often as it should be."""
    transferred = [look["data"]["ram_transferred_bytes_total"] for look in looks]
    assert transferred == sorted(transferred)
    assert transferred[-1] > transferred[0]
    assert all(look["data"]["ram_remaining_bytes"] > 0 for look in looks[:-1])  # the last may fall into the switchover
    times = [record_time(look) for look in looks]
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < poll_seconds + 0.5, gaps


def assert_moved(ends: Ends) -> None:
    """Assert that neither end was told to be a new VM or a dead one."""
    found = ends.agent.find_records
    (arrived,) = found("vm.migrated_in")
    assert (arrived["vmname"], arrived["data"]) == (ends.destination.name, {"observed": True})
    (departed,) = found("vm.migrated_out")
    assert departed["vmname"] == ends.source.name
    incoming = {record["vmname"]: record["data"].get("incoming", False) for record in found("vm.attached")}
    assert incoming == {ends.source.name: False, ends.destination.name: True}
    assert [*found("vm.gone")] == []


async def assert_final(ends: Ends, final: dict[str, Any]) -> Record:
    """Assert that the last sample of the source has the figures that QEMU itself gives at the end."""
    took = final["total-time"] / 1000  # one that took no time has its figures yet to be made
    last = await ends.agent.wait_for_record(
        "sample.migration", vm=ends.source.name, status="completed", elapsed_seconds=took
    )
    told = last["data"]
    assert told["downtime_seconds"] == final["downtime"] / 1000
    assert took > ends.seen_for()
    assert told["setup_seconds"] == final["setup-time"] / 1000
    assert told["ram_transferred_bytes_total"] == final["ram"]["transferred"]
    assert told["ram_bytes"] == final["ram"]["total"]
    assert told["ram_remaining_bytes"] == 0
    ended = (await ends.agent.wait_for_record("migration.ended", vm=ends.source.name))["data"]
    assert (ended["outcome"], ended["role"]) == ("completed", "source")
    assert ended["elapsed_seconds"] == told["elapsed_seconds"]
    assert ended["transferred_bytes"] == told["ram_transferred_bytes_total"]
    await ends.agent.wait_for_record(
        "migration.ended", vm=ends.destination.name, outcome="completed", role="destination"
    )
    assert len([*ends.agent.find_records("migration.ended")]) == 2
    return last


async def test_a_migration_within_one_identity_is_told_from_both_ends(start_ends: StartEnds) -> None:
    ends = await start_ends(events=True, same_identity=True)
    source, destination, agent = ends.source, ends.destination, ends.agent
    final = await ends.migrate(events=True)
    await assert_final(ends, final)
    assert_progress(ends.looks(), poll_seconds=1.0)
    await agent.wait_for_record("sample.runstate", vm=source.name, status="postmigrate", running=False)
    await agent.wait_for_record("sample.runstate", vm=destination.name, status="running", running=True)
    await agent.wait_for_record("sample.migration", vm=destination.name, status="completed")

    def events(guest: Guest) -> list[str]:
        return [e["data"]["qemu"]["status"] for e in agent.find_records("event.migration", vm=guest.name)]

    assert events(source) == ["setup", "active", "completed"]
    assert events(destination) == ["setup", "active", "completed"]
    assert [*agent.find_records("event.stop", vm=source.name)]
    assert [*agent.find_records("event.resume", vm=destination.name)]
    assert [*agent.find_records("event.migration_pass", vm=source.name)]
    assert ends.statuses(source)[0] == "none"
    assert ends.statuses(source)[-2:] == ["active", "completed"]

    # One UUID, two processes: a scrape has room for one, until one of them leaves.
    series = await agent.metrics()  # fails by itself where a series is there twice
    assert len(series.matching("qemu_vm_up", vm_uuid=source.uuid)) == 1
    await source.stop()
    await agent.wait_for_record("vm.migrated_out", vm=source.name, shutdown_reason="host-signal")
    assert_moved(ends)
    left = {"vm_uuid": destination.uuid, "vm": destination.name}
    assert (await agent.metrics()).matching("qemu_vm_up") == [(left, 1.0)]
    assert (await agent.stop()).status == 0


async def test_a_migration_without_events_is_found_by_timer(start_ends: StartEnds) -> None:
    ends = await start_ends(events=False, same_identity=False)
    final = await ends.migrate(events=False)
    await assert_final(ends, final)
    assert_progress(ends.looks(), poll_seconds=1.0)
    await ends.agent.wait_for_record("sample.migration", vm=ends.destination.name, status="completed")
    told = [event["data"]["qemu"]["status"] for event in ends.agent.find_records("event.migration")]
    assert told in ([], ["setup"]), "QEMU before 8 tells the first of a destination's even so"
    assert ends.statuses(ends.source)[-2:] == ["active", "completed"]
    series = await ends.agent.metrics()
    source = ends.source.uuid
    assert series.value("qemu_migration_status", vm_uuid=source, status="completed") == 1
    assert series.value("qemu_migration_downtime_seconds", vm_uuid=source) == final["downtime"] / 1000
    assert series.value("qemu_migration_elapsed_seconds", vm_uuid=source) == final["total-time"] / 1000
    assert series.value("qemu_migration_ram_transferred_bytes_total", vm_uuid=source) == final["ram"]["transferred"]
    assert series.value("qemu_runstate_running", vm_uuid=source) == 0
    assert series.value("qemu_runstate_running", vm_uuid=ends.destination.uuid) == 1
    await ends.source.kill()
    await ends.agent.wait_for_record("vm.migrated_out", vm=source)
    assert_moved(ends)


WAYS: Final[dict[str, dict[str, Any]]] = {
    "dial": {"dial": "{folder}/*.qmp"},
    "burst": {"burst": "{folder}/*.qmp"},
    "listen": {"listen": "{folder}/mon"},
}


@pytest.mark.parametrize("way", WAYS)
async def test_by_each_way_a_move_is_no_death_and_no_birth(start_guest: StartGuest, folder: Path, way: str) -> None:
    entry = {key: value.format(folder=folder) for key, value in WAYS[way].items()}
    calling: list[str] = []
    if "listen" in entry:
        calling = [
            *("-chardev", f"socket,id=mon,path={entry['listen']},reconnect=1", "-mon", "chardev=mon,mode=control")
        ]
    source = await start_guest("source", kind=GuestKind.WRITER, extra=calling)
    incoming = ["-incoming", "defer", *calling]
    destination = await start_guest("destination", kind=GuestKind.WRITER, identity=source.uuid, extra=incoming)
    await source.booted()
    async with AgentProcess(folder, {"monitors": [entry], "intervals": {"poll": "300ms"}}) as agent:
        ends = Ends(source, destination, agent)
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


async def test_what_came_before_the_agent_did_is_told_to_have_come(start_guest: StartGuest, folder: Path) -> None:
    source = await start_guest("source", kind=GuestKind.WRITER)
    destination = await start_guest("destination", kind=GuestKind.WRITER, extra=["-incoming", "defer"])
    await source.booted()
    uri = f"unix:{folder}/migration"
    await destination.command("migrate-incoming", uri=uri)
    await source.command("migrate", uri=uri)
    await destination.event("RESUME")
    async with AgentProcess(folder, {"monitors": [{"dial": str(destination.monitor)}]}) as agent:
        await agent.wait_for_record("vm.migrated_in", vm=destination.name, observed=False)
        (attached,) = agent.find_records("vm.attached")
        assert "incoming" not in attached["data"]
