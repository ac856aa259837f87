"""`qmp-agent capture` and `replay` with real guests. A replay yields the same records as the capture."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from agent.cli.demo.guest import Guest, GuestKind
from tests.lab.agent_process import COMMAND, AgentProcess, run_command
from tests.lab.fixtures import StartGuest
from tests.lab.machine import free_port
from tests.lab.waiting import DEADLINE_SECONDS, until


@dataclass(frozen=True, slots=True)
class Recording:
    """A running `qmp-agent capture`: its process, and the records that it has printed so far."""

    process: asyncio.subprocess.Process
    records: list[str] = field(default_factory=list)

    async def wait_until(self, predicate: Callable[[list[str]], object]) -> None:
        """Wait until a predicate of the records returns a true value."""
        assert self.process.stdout is not None
        while not predicate(self.records):
            line = await self.process.stdout.readline()
            assert line, f"it ended early: {self.records}"
            self.records.append(line.decode().rstrip("\n"))

    async def wait_for(self, kind: str) -> None:
        """Wait until a record of a type has been printed."""
        await self.wait_until(lambda records: any(f'"qemu.{kind}"' in record for record in records))


Action = Callable[[Guest, Recording], Awaitable[object]]


def config(folder: Path, **more: Any) -> Path:
    path = folder / "agent.yaml"
    content = {"host": "hv7", "monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "300ms"}}
    content["timeouts"] = {"response": "120s", "greeting": "120s"}  # no stall because the machine is loaded
    path.write_text(yaml.safe_dump(content | more))
    return path


async def recorded(guest: Guest, path: Path, action: Action) -> list[str]:
    """Record a guest during an action and until the guest ends. Return the agent's records of this time."""
    traffic = guest.folder / "traffic"
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *COMMAND, "capture", guest.monitor, traffic, "--config", path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    recording = Recording(process)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await recording.wait_for("sample.block")
            await action(guest, recording)
            await guest.stop()
            rest, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, log.decode()
    *lines, last = [*recording.records, *rest.decode().splitlines()]
    assert last.endswith(f" messages written to {traffic}")
    return lines


async def replayed(folder: Path, path: Path, *arguments: str) -> list[str]:
    ended = await run_command("replay", folder / "traffic", "--config", path, *arguments, timeout=DEADLINE_SECONDS)
    assert ended.status == 0, ended.log
    return ended.out.splitlines()


def event_types(records: list[str]) -> list[str]:
    """Return the types of records without samples, sorted: the number of samples and the position of an alert depend on timing.

    An alert that the end of QEMU resolves is left out, too: the capture may end before that.
    """
    read = [json.loads(record) for record in records]
    types = [record["type"].removeprefix("qemu.") for record in read if record["data"].get("state") != "resolved"]
    return sorted(kind for kind in types if not kind.startswith("sample."))


async def pauses(guest: Guest, recording: Recording) -> None:
    await guest.command("stop")
    await recording.wait_for("event.stop")
    await guest.command("cont")
    await recording.wait_for("event.resume")
    await recording.wait_until(lambda records: len(disks(records)) > 8)


async def exceeds_a_level(guest: Guest, recording: Recording) -> None:
    await pauses(guest, recording)
    await recording.wait_for("alert.write_threshold")


async def test_a_replay_gives_the_records_of_the_capture(start_guest: StartGuest, folder: Path) -> None:
    options: dict[str, Any] = {"write_kib": 32, "span_mib": 16}  # exceeds the first level, and never the second
    guest = await start_guest("db-1", kind=GuestKind.WRITER, **options)
    path = config(folder, alerts={"disks": {"mode": "arm", "levels": ["used 640KiB", "used 63MiB"]}})
    live = await recorded(guest, path, exceeds_a_level)
    assert {"vm.attached", "event.stop", "event.resume", "alert.write_threshold"} <= set(event_types(live))
    replay = await replayed(folder, path)
    assert event_types(replay) == event_types(live)
    # Two queries of one poll may have different counts; which of their replies becomes the sample depends on timing.
    replies = {int(count) for count in re.findall(r'"wr_operations":(\d+)', (folder / "traffic").read_text())}
    assert disks(live) | disks(replay) <= replies
    assert len(disks(replay)) > 3


def disks(records: list[str]) -> set[int]:
    """Return the number of completed writes in each sample of the disk."""
    samples = [json.loads(text) for text in records if '"qemu.sample.block"' in text and '"subject":"disk0"' in text]
    return {sample["data"]["writes_total"] for sample in samples}


async def test_a_captured_hang_is_replayed(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)

    async def hangs(guest: Guest, recording: Recording) -> None:
        guest.send_signal(signal.SIGSTOP)
        await recording.wait_for("vm.stalled")
        await asyncio.sleep(
            1
        )  # the hang itself: longer than the timeout, so that the replay of the delay exceeds it too
        guest.send_signal(signal.SIGCONT)
        await recording.wait_for("vm.recovered")

    path = config(folder, timeouts={"response": "500ms"})
    live = await recorded(guest, path, hangs)
    assert {"vm.stalled", "vm.recovered", "vm.gone"} <= set(event_types(live))
    assert set(event_types(await replayed(folder, path))) == set(event_types(live))


async def test_another_config_can_replay_at_another_speed_and_be_scraped(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    await recorded(guest, config(folder), pauses)
    path = config(folder, intervals={"poll": "100ms"})  # and no thresholds, and another order of commands
    port = free_port()
    replaying = asyncio.create_task(replayed(folder, path, "--listen", f"127.0.0.1:{port}", "--speed", "0.5"))
    client = AgentProcess(folder, {"monitors": [{"dial": "/nowhere"}]}, name="client")
    client.url = f"http://127.0.0.1:{port}"

    async def has_disk() -> bool:
        try:
            return (await client.metrics()).value("qemu_block_writes_total", vm="db-1", device="disk0") is not None
        except (OSError, aiohttp.ClientConnectionError):
            return False

    await until(has_disk)
    assert {"vm.attached", "event.stop", "event.resume"} <= set(event_types(await replaying))
    assert {"vm.attached", "event.stop", "event.resume"} <= set(
        event_types(await replayed(folder, path, "--speed", "20"))
    )


async def test_secrets_are_neither_in_the_file_nor_in_a_replay(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER, extra=("-name", "guest=token=hunter2"))
    path = config(folder)
    ended = await run_command(
        "capture", guest.monitor, folder / "traffic", "--max-size", "40KiB", "--config", path, timeout=DEADLINE_SECONDS
    )
    assert ended.status == 0, ended.log
    text = (folder / "traffic").read_text()
    assert "token=(removed)" in text
    assert "hunter2" not in text
    replay = await replayed(folder, path)
    assert "vm.attached" in event_types(replay)
    assert "hunter2" not in "".join(replay)


async def test_a_recording_ends_at_its_limits_without_harm_to_the_guest(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    path = config(folder)
    ended = await run_command(
        "capture", guest.monitor, folder / "traffic", "--max-size", "40KiB", "--config", path, timeout=DEADLINE_SECONDS
    )
    assert ended.status == 0, ended.log
    assert ended.out.endswith(" (size limit reached)\n")
    assert (folder / "traffic").stat().st_size <= 40 << 10
    assert "vm.attached" in event_types(await replayed(folder, path))
    ended = await run_command(
        "capture", guest.monitor, folder / "more", "--duration", "1s", "--config", path, timeout=DEADLINE_SECONDS
    )
    assert ended.status == 0, ended.log
    assert (await guest.command("query-status"))["status"] == "running"


async def test_a_held_or_missing_monitor_is_reported(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1")
    path = config(folder, timeouts={"greeting": "300ms"})
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(guest.monitor))
        busy = await run_command("capture", guest.monitor, folder / "traffic", "--config", path)
    assert (busy.status, busy.out) == (1, "")
    assert busy.log == f"qmp-agent: {guest.monitor}: no greeting within 0.3 s: another client holds the monitor\n"
    assert not (folder / "traffic").exists()
    missing = await run_command("capture", folder / "none.qmp", folder / "traffic")
    assert (missing.status, missing.out) == (1, "")
    assert missing.log.startswith(f"qmp-agent: {folder}/none.qmp: ")
    assert "No such file" in missing.log


async def test_a_file_of_another_kind_is_reported(folder: Path) -> None:
    (folder / "traffic").write_text("{}\n")
    ended = await run_command("replay", folder / "traffic")
    assert (ended.status, ended.out) == (1, "")
    assert ended.log == f"qmp-agent: {folder}/traffic: not a capture file of `qmp-agent capture`\n"
