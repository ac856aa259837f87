"""The agent on each QEMU that there is, with no guest that helps: what it tells of it, and every event that can be had of it.

The machine's own QEMU and others of Debian's, which `tests/lab/install test` has fetched; those that were not are skipped.
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

from agent.cli.demo.control import GuestError
from agent.cli.demo.guest import Guest, GuestOptions, until
from agent.cli.schema import record_schema
from agent.model.events import EVENTS
from agent.qmp.queries import query_of
from tests.lab import golden_files, provoke
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.provoke import CASES, EventCase
from tests.lab.qemus import Qemu
from tests.lab.record_checks import validate_record, validator

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOWN: Final = (11, 1)
"""The youngest QEMU that the tables are of: one that is younger may have what they lack."""

VALID: Final = validator(record_schema())


@dataclass(frozen=True, slots=True)
class Stage:
    qemu: Qemu
    guest: Guest
    agent: AgentProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(qemu: Qemu) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        config = {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "intervals": {"poll": "200ms", "migration": "200ms", "resync": "1h"},
        }
        async with (
            Guest(folder, "vm1", provoke.guest_options(qemu.binary)) as guest,
            AgentProcess(folder, config) as agent,
        ):
            await agent.wait_for_record("vm.attached", vm=guest.uuid)
            await guest.command("cont")
            yield Stage(qemu, guest, agent)


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
        "about",
    ),
    *("process", "vcpu", "iothread"),
}
"""What there is to tell of the stage's guest on every QEMU."""


async def test_every_family_of_samples_is_told_and_is_good_by_its_schema(stage: Stage) -> None:
    for family in FAMILIES:
        record = await stage.agent.wait_for_record(f"sample.{family}", vm=stage.guest.uuid)
        validate_record(json.dumps(record), VALID)
    (vcpu, other) = {r["subject"] for r in stage.agent.find_records("sample.vcpu", vm=stage.guest.uuid)}
    assert {vcpu, other} == {"0", "1"}


async def test_no_question_is_answered_by_an_error(stage: Stage) -> None:
    """Not even once: what this QEMU lacks was never asked."""
    series = await stage.agent.metrics()
    outcomes = {
        (has["collector"], has["outcome"]): value for has, value in series.matching("qmp_agent_collector_runs_total")
    }
    assert {name for (name, outcome), value in outcomes.items() if value and outcome != "ok"} == set()
    asked = {name for (name, outcome), value in outcomes.items() if value}
    assert asked >= {
        "runstate",
        "block",
        "nodes",
        "drives",
        "jobs",
        "migration",
        "balloon",
        "memory",
        "inventory",
        "kvm",
    }


async def test_a_disks_figures_are_those_that_this_qemu_gives(stage: Stage) -> None:
    await stage.guest.booted()
    await stage.guest.command("stop")
    for _ in range(2):  # the first may have been on its way already
        since = stage.agent.mark()
        await stage.agent.wait_for_record("sample.block", vm=stage.guest.uuid, since=since, device="disk0")
    series = await stage.agent.metrics()
    disks = {
        disk["qdev"].split("/")[3]: disk
        for disk in await stage.guest.command("query-blockstats")
        if "/" in disk["qdev"]
    }
    assert disks.keys() >= {"disk0", "boot"}
    for device, disk in disks.items():
        of_disk = {"vm_uuid": stage.guest.uuid, "device": device}
        for told, name, unit in FIGURES:
            assert series.value(f"qemu_block_{name}", **of_disk) == disk["stats"][told] / unit, (device, told)
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
"""QEMU's name, ours, and how many of QEMU's units one of ours is; by hand, not out of the agent's table."""


async def test_what_becomes_of_every_question_that_it_knows_is_told(stage: Stage) -> None:
    names = {command["name"] for command in await stage.guest.command("query-commands")}
    questions = sorted(name for name in names if name.startswith(("query-", "x-query-")))
    unknown = [name for name in questions if query_of(name) is None]
    if stage.qemu.version[:2] > KNOWN and unknown:
        pytest.skip(f"QEMU {stage.qemu} is younger than the table, and has what is not in it: {unknown}")
    assert unknown == []
    if (known := golden_files.load("queries.json").get(str(stage.qemu))) is not None:
        assert questions == known


async def test_every_event_that_it_has_is_known(stage: Stage) -> None:
    schema = await stage.guest.command("query-qmp-schema")
    events = sorted(entry["name"] for entry in schema if entry["meta-type"] == "event")
    unknown = [name for name in events if name not in EVENTS]
    if stage.qemu.version[:2] > KNOWN and unknown:
        pytest.skip(f"QEMU {stage.qemu} is younger than the table, and has what is not in it: {unknown}")
    assert len(events) > 50
    assert unknown == []


async def test_check_says_what_it_lacks(stage: Stage, folder: Path) -> None:
    """Each of these lacks little; those that lack more are played, in tests/unit/session/test_old_qemus.py."""
    config = folder / "agent.yaml"
    async with Guest(folder, "free", GuestOptions(binary=stage.qemu.binary)) as free:
        config.write_text(yaml.safe_dump({"monitors": [{"dial": str(free.monitor)}]}))
        ended = await run_command("check", "--config", config)
    version = ".".join(map(str, stage.qemu.version))
    assert (ended.status, ended.log) == (0, "")
    _, up, *rest = ended.out.splitlines()
    assert up == f"ok   {free.monitor}: free ({free.uuid}), QEMU {version}"
    lacks = "hv_balloon is off, for there is no query-hv-balloon-status-report"
    assert [line for line in rest if "QEMU" in line] == (
        [f"ok   QEMU {version}: {lacks}"] if stage.qemu.version < (8, 2) else []
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.event)
async def test_an_event_of_a_real_qemu_arrives_as_its_record(stage: Stage, case: EventCase) -> None:
    if stage.qemu.version < case.since:
        pytest.skip(f"QEMU {stage.qemu} has no such event")
    await provoke.ensure_running(stage.guest)
    since = stage.agent.mark() if case.event != "BLOCK_IO_ERROR" else 0  # the disk fails once
    await case.provoke(stage.guest)
    kind = f"event.{case.event.lower()}"
    record = await stage.agent.wait_for_record(kind, vm=stage.guest.uuid, since=since, timeout=30)
    told = [r["data"]["qemu"] for r in stage.agent.find_records(kind, vm=stage.guest.uuid, since=since)]
    assert any(case.expected_data.items() <= data.items() for data in told), told
    assert case.subject is None or record.get("subject", "") == case.subject


async def test_an_image_that_is_found_corrupt_takes_the_layers_figures_and_nothing_else(stage: Stage) -> None:
    """As long as it is there, QEMU answers query-named-block-nodes with an error; it was made in one of the cases above."""
    await provoke.ensure_running(stage.guest)
    if not await _is_corrupt(stage.guest):
        await next(case for case in CASES if case.event == "BLOCK_IMAGE_CORRUPTED").provoke(stage.guest)
        assert await _is_corrupt(stage.guest)
    since = stage.agent.mark()
    await stage.guest.command("blockdev-open-tray", id="cd0", force=True)  # has the layers asked for
    await stage.guest.command("blockdev-close-tray", id="cd0")

    async def failed() -> bool:
        series = await stage.agent.metrics()
        return bool(series.value("qmp_agent_collector_runs_total", collector="nodes", outcome="error"))

    await until(failed, 30)
    await stage.agent.wait_for_record("sample.block", vm=stage.guest.uuid, since=since, device="disk0")


async def _is_corrupt(guest: Guest) -> bool:
    try:
        await guest.command("query-named-block-nodes", flat=True)
    except GuestError as error:
        return "is ejected" in str(error)
    return False
