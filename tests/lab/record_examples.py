"""Generates tests/golden/records.jsonl: one record of each type from a real run, as examples for docs/reference/records.md.

The run has real guests and an agent. It triggers every type of record that can be triggered at will. docs/reference/records.md is
generated from the file. The folder of the run appears as /run/qemu in the records.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agent.cli.demo.guest import FAST_PAUSE_SECONDS, Guest, GuestKind, GuestOptions
from agent.cli.demo.guest_qmp_client import GuestError
from agent.consumer.state_reader import StateReader
from tests.lab import provoke
from tests.lab.agent_process import AgentProcess, Record
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import read_topic
from tests.lab.qemus import find_qemu
from tests.lab.waiting import until
from tools.reference import EXAMPLES

LONG_TIMEOUT = 60.0

_FOLDER = "/run/qemu"


async def main() -> None:
    """Run the guests and write the file."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        records = await _run_and_collect(Path(path)) + await collect_states(Path(path))
        text = as_lines(records, path)
    EXAMPLES.write_text(text, "utf-8")
    sys.stderr.write(f"{text.count(chr(10))} types of records written to {EXAMPLES}\n")


def as_lines(records: Iterable[Record], folder: str) -> str:
    """Return an example of each type, one in a line, without the folder of the run."""
    text = "".join(json.dumps(record) + "\n" for record in _pick_examples(records)).replace(folder, _FOLDER)
    return text.replace(quote(folder[1:], safe=""), quote(_FOLDER[1:], safe=""))


def _pick_examples(records: Iterable[Record]) -> list[Record]:
    """Return the record with the most data of each type. For alerts, only firing alerts count."""
    best: dict[str, Record] = {}
    for record in records:
        previous = best.get(record["type"])
        if previous is None or _example_rank(record) > _example_rank(previous):
            best[record["type"]] = record
    return [best[name] for name in sorted(best)]


def _example_rank(record: Record) -> tuple[bool, int]:
    return record["data"].get("state") == "firing", len(json.dumps(record["data"]))


async def _run_and_collect(folder: Path) -> list[Record]:
    config: dict[str, Any] = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "500ms", "guest_memory": "1s", "migrations_and_jobs": "200ms", "resync": "5s"},
        "timeouts": {"greeting": "1s", "response": "1s"},
        "allow": {"guest_stats_interval": "1s", "migration_events": True},
    }
    web = Guest(
        folder,
        "web-1",
        GuestOptions(kind=GuestKind.LINUX, pause_seconds=0.1, extra=_network_card_arguments("qmpexample0")),
    )
    machine = ["-action", "panic=pause", "-usb", "-device", "pvpanic", "-smp", "2", "-object", "iothread,id=io0"]
    fast = GuestOptions(kind=GuestKind.WRITER, disk_mib=1024, pause_seconds=FAST_PAUSE_SECONDS, extra=machine)
    db = Guest(folder, "db-1", fast)
    enospc = {"event": "write_aio", "iotype": "write", "errno": 28, "once": True}
    full = Guest(folder, "full-1", GuestOptions(kind=GuestKind.WRITER, faults=[enospc], disk_options="werror=stop"))
    eio = enospc | {"errno": 5}
    bad = Guest(folder, "bad-1", GuestOptions(kind=GuestKind.WRITER, faults=[eio], disk_options="werror=stop"))
    held = Guest(folder, "held-1")
    lab = Guest(folder, "lab-1", _options_for_all_events(folder))
    async with AsyncExitStack() as running:
        agent = AgentProcess(folder, config)
        for guest in (web, db, held, lab):
            await running.enter_async_context(guest)
        holder = running.enter_context(socket.socket(socket.AF_UNIX))
        holder.connect(os.fspath(held.monitor))
        await running.enter_async_context(agent)
        await running.enter_async_context(full)
        await running.enter_async_context(bad)
        await asyncio.gather(
            web.wait_until_booted(LONG_TIMEOUT), db.wait_until_booted(LONG_TIMEOUT), agent.wait_for_record("vm.busy")
        )
        for action in (_stop_reset_and_unplug, _exceed_threshold, _snapshot_and_stream, _panic_guest, _migrate_to_null):
            await action(db, agent)
        await agent.wait_for_record("alert.disk_full", vm=full.uuid, state="firing")
        await agent.wait_for_record("alert.io_error_stop", vm=bad.uuid, state="firing")
        await _trigger_manager_samples(lab, agent)
        await _trigger_events(lab, agent)
        await _trigger_kvm_samples(folder, agent)
        await _stall_and_balloon(web, agent)
        await db.command("system_powerdown")
        await agent.wait_for_record("event.powerdown", vm=db.uuid)
        with contextlib.suppress(GuestError):
            await db.command("quit")
        await agent.wait_for_record("vm.gone", vm=db.uuid)
        await agent.stop()
        return agent.records()


async def collect_states(folder: Path) -> list[Record]:
    """Return the state records and the agent's lifecycle records from a run with Kafka, because only Kafka has a state topic."""
    monitors = folder / "states"
    monitors.mkdir()
    enospc = {"event": "write_aio", "iotype": "write", "errno": 28, "once": True}
    options = GuestOptions(kind=GuestKind.WRITER, faults=[enospc], disk_options="werror=stop")
    async with KafkaCluster(folder / "kafka") as kafka, Guest(monitors, "full-2", options):
        topics = {"events": "qemu.events", "samples": "qemu.samples", "alerts": "qemu.alerts", "state": "qemu.state"}
        for topic in topics.values():
            await kafka.create_topic(topic, config={"cleanup.policy": "compact"} if topic == "qemu.state" else None)
        config = {
            "monitors": [{"dial": f"{monitors}/*.qmp"}],
            "kafka": {"bootstrap_servers": kafka.bootstrap},
            "host": "hv7",
        }
        async with (
            AgentProcess(folder, config, name="states") as agent,
            StateReader("qemu.state", client=kafka.client) as reader,
        ):

            async def has_all_states() -> bool:
                await reader.catch_up()
                stopped = [vm for vm in reader.state.vms() if vm.data.get("run_state") == "io-error"]
                return bool(stopped and stopped[0].data.get("disks") and list(reader.state.alerts()))

            await until(has_all_states, LONG_TIMEOUT)
            await agent.stop()
        messages = [*await read_topic(kafka, "qemu.state"), *await read_topic(kafka, "qemu.events")]
    records: list[Record] = [json.loads(message.value) for message in messages if message.value is not None]
    return [record for record in records if record["type"].startswith(("qemu.state.", "qemu.agent."))]


def _network_card_arguments(tap: str) -> list[str]:
    """Return QEMU's arguments for a network card on a tap. QEMU needs root privileges to create the tap."""
    backend = f"tap,id=net0,ifname={tap},script=no,downscript=no"
    return ["-netdev", backend, "-device", "virtio-net-pci,id=nic0,netdev=net0"] if os.geteuid() == 0 else []


def _options_for_all_events(folder: Path) -> GuestOptions:
    """Return options of a guest that can emit every event in `provoke.py`. It has a disk with timed statistics."""
    options = provoke.guest_options(find_qemu().binary)
    image = folder / "lab-1-timed.raw"
    image.write_bytes(bytes(1 << 20))
    drive = f"if=none,id=timed0,format=raw,file={image},stats-intervals.0=60"
    timed = ("-drive", drive, "-device", "virtio-blk-pci,id=timed0,drive=timed0")
    return dataclasses.replace(options, extra=[*options.extra, *timed])


async def _trigger_kvm_samples(folder: Path, agent: AgentProcess) -> None:
    """Trigger the samples that need KVM, with a guest that has a dirty limit. It runs under KVM if this machine has KVM."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    async with Guest(folder, "kvm-1", GuestOptions(kind=GuestKind.WRITER, accel="kvm,dirty-ring-size=4096")) as guest:
        await guest.wait_until_booted()
        await guest.command("set-vcpu-dirty-limit", dirty_rate=100)
        for family in ("kvm", "kvm_vcpu", "vcpu_dirty"):
            await agent.wait_for_record(f"sample.{family}", vm=guest.uuid, timeout=LONG_TIMEOUT)


async def _trigger_events(guest: Guest, agent: AgentProcess) -> None:
    for case in provoke.CASES:
        if find_qemu().version >= case.since:
            await provoke.ensure_running(guest)
            await case.provoke(guest)
            await agent.wait_for_record(f"event.{case.event.lower()}", vm=guest.uuid, timeout=LONG_TIMEOUT)


async def _trigger_manager_samples(guest: Guest, agent: AgentProcess) -> None:
    """Trigger the samples of features that only managers use: a dirty rate, a dirty bitmap, hot-plugged memory."""
    await provoke.ensure_running(guest)
    await guest.command("calc-dirty-rate", calc_time=1)
    await guest.command("block-dirty-bitmap-add", node="disk0-format", name="backup0")
    await guest.command("object-add", qom_type="memory-backend-ram", id="memory1", size=128 << 20)
    await guest.command("device_add", driver="pc-dimm", id="dimm1", memdev="memory1")
    for family in ("dirty_rate", "block_bitmap", "memory_device", "block_timed"):
        await agent.wait_for_record(f"sample.{family}", vm=guest.uuid, timeout=LONG_TIMEOUT)


async def _stop_reset_and_unplug(guest: Guest, agent: AgentProcess) -> None:
    await guest.command("stop")
    await guest.command("cont")
    await guest.command("system_reset")
    await guest.command("device_add", driver="usb-tablet", id="tablet0")
    await guest.command("device_del", id="tablet0")
    for name in ("stop", "resume", "reset", "device_deleted"):
        await agent.wait_for_record(f"event.{name}", vm=guest.uuid)


async def _exceed_threshold(guest: Guest, agent: AgentProcess) -> None:
    threshold = await guest.highest_written_offset() + (1 << 20)
    await guest.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=threshold)
    await agent.wait_for_record("alert.write_threshold", vm=guest.uuid, state="firing", timeout=LONG_TIMEOUT)


async def _snapshot_and_stream(guest: Guest, agent: AgentProcess) -> None:
    """Take a snapshot and stream it back, slowly enough for several polls of the job."""
    overlay = os.fspath(guest.folder / "db-1-snapshot.qcow2")
    await guest.command(
        "blockdev-snapshot-sync", node_name="disk0-format", snapshot_file=overlay, snapshot_node_name="disk0-top"
    )
    await agent.wait_for_record("sample.block_backing", vm=guest.uuid)
    await guest.command("block-stream", device="disk0-top", job_id="pull0", speed=1 << 20)
    await agent.wait_for_record("sample.job", vm=guest.uuid)
    await asyncio.sleep(2)  # for several polls of the job
    with contextlib.suppress(GuestError):  # the job may have ended
        await guest.command("block-job-set-speed", device="pull0", speed=0)
    await agent.wait_for_record("event.block_job_completed", vm=guest.uuid, timeout=LONG_TIMEOUT)


async def _panic_guest(guest: Guest, agent: AgentProcess) -> None:
    await guest.command("human-monitor-command", command_line="o/1 0x505 1")
    await agent.wait_for_record("alert.guest_panicked", vm=guest.uuid, state="firing")
    await guest.command("system_reset")
    await guest.command("cont")


async def _migrate_to_null(guest: Guest, agent: AgentProcess) -> None:
    await guest.command("migrate", uri="exec:cat >/dev/null")
    await agent.wait_for_record("migration.ended", vm=guest.uuid, timeout=LONG_TIMEOUT)
    await guest.command("cont")


async def _stall_and_balloon(guest: Guest, agent: AgentProcess) -> None:
    await agent.wait_for_record("sample.guest_memory", vm=guest.uuid, timeout=LONG_TIMEOUT)
    await guest.command("balloon", value=96 << 20)
    await agent.wait_for_record("event.balloon_change", vm=guest.uuid)
    guest.send_signal(signal.SIGSTOP)
    await agent.wait_for_record("vm.stalled", vm=guest.uuid)
    guest.send_signal(signal.SIGCONT)
    await agent.wait_for_record("vm.recovered", vm=guest.uuid)


if __name__ == "__main__":
    asyncio.run(main())
