"""The agent with each QEMU version: the samples, the queries, and every event that QEMU emits without help from a guest.

The versions are that of this machine and those of other Debian releases. `tests/lab/install test` downloads the others. Tests of a version
that was not downloaded are skipped.
"""

import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
import yaml

from agent.cli.demo.guest import Guest, GuestOptions
from agent.cli.demo.guest_qmp_client import GuestError
from agent.model.event_table import EVENT_DEFINITIONS_BY_NAME
from agent.qmp.queries import find_query
from agent.schemas.record import record_schema
from tests.lab import golden_files, provoke
from tests.lab.agent_process import AgentProcess, Record, run_command
from tests.lab.provoke import CASES, EventCase
from tests.lab.qemus import Qemu
from tests.lab.record_checks import validate_record, validator
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEWEST_KNOWN: Final = (11, 1)
"""The newest QEMU version that the tables cover."""

VALID: Final = validator(record_schema())


@dataclass(frozen=True, slots=True)
class WatchedQemu:
    """A QEMU version, a guest that this QEMU runs, and an agent that watches the guest."""

    qemu: Qemu
    guest: Guest
    agent: AgentProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(qemu: Qemu) -> AsyncIterator[WatchedQemu]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        config = {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "intervals": {"poll": "200ms", "migrations_and_jobs": "200ms", "resync": "1h"},
        }
        async with (
            Guest(folder, "vm1", provoke.guest_options(qemu.binary)) as guest,
            AgentProcess(folder, config) as agent,
        ):
            await agent.wait_for_record("vm.attached", vm=guest.uuid)
            await guest.command("cont")
            yield WatchedQemu(qemu, guest, agent)


FAMILIES: Final = {
    *(
        "block",
        "block_layer",
        "block_device",
        "runstate",
        "migration",
        "balloon",
        "memory",
        "inventory",
        "vnc",
        "identity",
    ),
    *("process", "vcpu", "iothread"),
}
"""Sample families of the guest on every QEMU version."""


COLLECTORS: Final = {
    *("runstate", "block", "nodes", "drives", "jobs", "migration", "balloon", "memory", "inventory", "kvm")
}
"""Collectors that query every QEMU version."""


async def test_every_family_of_samples_is_reported_and_valid(watched: WatchedQemu) -> None:
    for family in FAMILIES:
        record = await watched.agent.wait_for_record(f"sample.{family}", vm=watched.guest.uuid)
        validate_record(json.dumps(record), VALID)
    for vcpu in ("0", "1"):
        await watched.agent.wait_for_record("sample.vcpu", vm=watched.guest.uuid, subject=vcpu)
    assert {r["subject"] for r in watched.agent.find_records("sample.vcpu", vm=watched.guest.uuid)} == {"0", "1"}


async def test_no_query_fails(watched: WatchedQemu) -> None:
    """The agent never sends a command that this QEMU lacks."""
    outcomes: dict[tuple[str, str], float] = {}

    async def have_all_run() -> bool:
        nonlocal outcomes
        series = (await watched.agent.metrics()).matching("qmp_agent_collector_runs_total")
        outcomes = {(labels["collector"], labels["outcome"]): value for labels, value in series}
        return {name for (name, outcome), value in outcomes.items() if value and outcome == "ok"} >= COLLECTORS

    await until(have_all_run)
    # On a machine under load, the check of the storage may be late. The agent then defers the queries that access it.
    assert {found for found, value in outcomes.items() if value and found[1] not in ("ok", "deferred")} == set()


async def test_disk_metrics_match_query_blockstats(watched: WatchedQemu) -> None:
    await watched.guest.wait_until_booted()
    await watched.guest.command("stop")
    series = await watched.agent.fresh_metrics("sample.block", vm=watched.guest.uuid, device="disk0")
    disks = {
        disk["qdev"].split("/")[3]: disk
        for disk in await watched.guest.command("query-blockstats")
        if "/" in disk["qdev"]
    }
    assert disks.keys() >= {"disk0", "boot"}
    for device, disk in disks.items():
        of_disk = {"vm_uuid": watched.guest.uuid, "device": device}
        for field, name, unit in FIGURES:
            assert series.value(f"qemu_block_{name}", **of_disk) == disk["stats"][field] / unit, (device, field)
        offset = series.value("qemu_block_storage_write_highest_offset_bytes", **of_disk)
        assert offset == disk["parent"]["stats"]["wr_highest_offset"]
    assert disks["disk0"]["stats"]["failed_wr_operations"] == 1
    assert disks["disk0"]["stats"]["wr_operations"] > 0


FIGURES: Final = (
    ("rd_operations", "reads_total", 1),
    ("rd_bytes", "read_bytes_total", 1),
    ("rd_total_time_ns", "read_seconds_total", 1e9),
    ("wr_operations", "writes_total", 1),
    ("wr_bytes", "write_bytes_total", 1),
    ("wr_total_time_ns", "write_seconds_total", 1e9),
    ("failed_wr_operations", "failed_writes_total", 1),
    ("flush_operations", "flushes_total", 1),
    ("unmap_operations", "unmaps_total", 1),
)
"""QEMU's field, our series, and the number of QEMU's units in one of ours. Written by hand, independent of the agent's table."""


async def test_every_query_command_has_a_row_in_the_table_of_queries(watched: WatchedQemu) -> None:
    names = {command["name"] for command in await watched.guest.command("query-commands")}
    queries = sorted(name for name in names if name.startswith(("query-", "x-query-")))
    unknown = [name for name in queries if find_query(name) is None]
    if watched.qemu.version[:2] > NEWEST_KNOWN and unknown:
        pytest.skip(f"QEMU {watched.qemu} is newer than the table and has more: {unknown}")
    assert unknown == []
    if (known := golden_files.load("queries.json").get(str(watched.qemu))) is not None:
        assert queries == known


async def test_every_event_has_a_row_in_the_table_of_events(watched: WatchedQemu) -> None:
    schema = await watched.guest.command("query-qmp-schema")
    events = sorted(entry["name"] for entry in schema if entry["meta-type"] == "event")
    unknown = [name for name in events if name not in EVENT_DEFINITIONS_BY_NAME]
    if watched.qemu.version[:2] > NEWEST_KNOWN and unknown:
        pytest.skip(f"QEMU {watched.qemu} is newer than the table and has more: {unknown}")
    assert len(events) > 50
    assert unknown == []


async def test_check_reports_what_this_qemu_lacks(watched: WatchedQemu, folder: Path) -> None:
    """These versions lack few commands. tests/unit/session/test_old_qemus.py has older versions, with scripted QEMUs."""
    config = folder / "agent.yaml"
    async with Guest(folder, "free", GuestOptions(binary=watched.qemu.binary)) as free:
        config.write_text(yaml.safe_dump({"monitors": [{"dial": str(free.monitor)}]}))
        ended = await run_command("check", "--config", config)
    version = ".".join(map(str, watched.qemu.version))
    assert (ended.status, ended.log) == (0, "")
    _, up, *rest = ended.out.splitlines()
    assert up == f"ok    {free.monitor}: free ({free.uuid}), QEMU {version}"
    lacks = "hv_balloon is off without query-hv-balloon-status-report"
    assert [line for line in rest if "QEMU" in line] == (
        [f"ok    QEMU {version}: {lacks}"] if watched.qemu.version < (8, 2) else []
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.event)
async def test_a_provoked_event_becomes_its_record(watched: WatchedQemu, case: EventCase) -> None:
    if watched.qemu.version < case.since:
        pytest.skip(f"QEMU {watched.qemu} has no such event")
    await provoke.ensure_running(watched.guest)
    since = watched.agent.mark() if case.event != "BLOCK_IO_ERROR" else 0  # the disk fails once
    await case.provoke(watched.guest)
    kind = f"event.{case.event.lower()}"

    def expected() -> list[Record]:
        records = watched.agent.find_records(kind, vm=watched.guest.uuid, since=since)
        return [record for record in records if case.expected_data.items() <= record["data"]["qemu"].items()]

    await until(expected)  # an event that an earlier case provoked may arrive first
    (record, *_) = expected()
    assert case.subject is None or record.get("subject", "") == case.subject


async def test_a_corrupt_image_only_stops_the_samples_of_layers(watched: WatchedQemu) -> None:
    """QEMU replies to query-named-block-nodes with an error while it has a corrupt image. One of the event cases creates such an image."""
    await provoke.ensure_running(watched.guest)
    if not await _is_corrupt(watched.guest):
        await next(case for case in CASES if case.event == "BLOCK_IMAGE_CORRUPTED").provoke(watched.guest)
        assert await _is_corrupt(watched.guest)
    since = watched.agent.mark()
    await watched.guest.command("blockdev-open-tray", id="cd0", force=True)  # makes the agent query the layers
    await watched.guest.command("blockdev-close-tray", id="cd0")

    async def failed() -> bool:
        series = await watched.agent.metrics()
        return bool(series.value("qmp_agent_collector_runs_total", collector="nodes", outcome="error"))

    await until(failed)
    await watched.agent.wait_for_record("sample.block", vm=watched.guest.uuid, since=since, device="disk0")


async def _is_corrupt(guest: Guest) -> bool:
    try:
        await guest.command("query-named-block-nodes", flat=True)
    except GuestError as error:
        return "is ejected" in str(error)
    return False
