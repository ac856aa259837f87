"""`qmp-agent record` and `replay` with real guests. A replay yields the same records as the recording."""

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml

from agent.cli.demo.guest import Guest, GuestKind, until
from tests.lab.agent_process import COMMAND, AgentProcess, run_command
from tests.lab.fixtures import StartGuest
from tests.lab.machine import free_port

Action = Callable[[Guest], Awaitable[object]]


def config(folder: Path, **more: Any) -> Path:
    path = folder / "agent.yaml"
    content = {"host": "hv7", "monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "300ms"}}
    path.write_text(yaml.safe_dump(content | more))
    return path


async def recorded(guest: Guest, path: Path, action: Action) -> list[str]:
    """Record a guest during an action and until the guest ends. Return the agent's records of this time."""
    traffic = guest.folder / "traffic"
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *COMMAND, "record", guest.monitor, traffic, "--config", path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        seen = []
        async with asyncio.timeout(60):
            while '"qemu.sample.block"' not in (line := (await process.stdout.readline()).decode()):
                assert line, "it ended before the first disk sample"
                seen.append(line)
            seen.append(line)
            await action(guest)
            await guest.stop()
            rest, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, log.decode()
    *lines, last = ["".join(seen).rstrip("\n"), *rest.decode().splitlines()]
    assert last.endswith(f" messages written to {traffic}")
    return "\n".join(lines).splitlines()


async def replayed(folder: Path, path: Path, *arguments: str) -> list[str]:
    ended = await run_command("replay", folder / "traffic", "--config", path, *arguments, timeout=60)
    assert ended.status == 0, ended.log
    return ended.out.splitlines()


def event_types(records: list[str]) -> list[str]:
    """Return the types of records without samples, sorted: the number of samples and the position of an alert depend on timing."""
    types = [json.loads(record)["type"].removeprefix("qemu.") for record in records]
    return sorted(kind for kind in types if not kind.startswith("sample."))


async def pauses(guest: Guest) -> None:
    await guest.command("stop")
    await guest.wait_for_event("STOP")
    await asyncio.sleep(1)  # a few polls
    await guest.command("cont")
    await guest.wait_for_event("RESUME")
    await asyncio.sleep(1)


async def test_a_replay_gives_the_records_of_the_recording(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    path = config(folder, alerts={"write_threshold": {"mode": "arm", "levels": ["used 640KiB", "used 63MiB"]}})
    live = await recorded(guest, path, pauses)
    assert {"vm.attached", "event.stop", "event.resume", "alert.write_threshold"} <= set(event_types(live))
    replay = await replayed(folder, path)
    assert event_types(replay) == event_types(live)
    assert disks(replay) <= disks(live)
    assert len(disks(replay)) > 3


def disks(records: list[str]) -> set[int]:
    """Return the number of completed writes in each sample of the disk."""
    samples = [json.loads(text) for text in records if '"qemu.sample.block"' in text and '"subject":"disk0"' in text]
    return {sample["data"]["writes_total"] for sample in samples}


async def test_a_recorded_hang_is_replayed(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)

    async def hangs(guest: Guest) -> None:
        guest.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        guest.send_signal(signal.SIGCONT)
        await guest.command("query-status")
        await asyncio.sleep(1)

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
        except OSError:
            return False

    await until(has_disk, 60)
    assert {"vm.attached", "event.stop", "event.resume"} <= set(event_types(await replaying))
    assert {"vm.attached", "event.stop", "event.resume"} <= set(
        event_types(await replayed(folder, path, "--speed", "20"))
    )


async def test_secrets_are_neither_in_the_file_nor_in_a_replay(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER, extra=("-name", "guest=token=hunter2"))
    path = config(folder)
    ended = await run_command(
        "record", guest.monitor, folder / "traffic", "--duration", "2s", "--config", path, timeout=60
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
        "record", guest.monitor, folder / "traffic", "--max-size", "40KiB", "--config", path, timeout=60
    )
    assert ended.status == 0, ended.log
    assert ended.out.endswith(" (size limit reached)\n")
    assert (folder / "traffic").stat().st_size <= 40 << 10
    assert "vm.attached" in event_types(await replayed(folder, path))
    ended = await run_command(
        "record", guest.monitor, folder / "more", "--duration", "1s", "--config", path, timeout=60
    )
    assert ended.status == 0, ended.log
    assert (await guest.command("query-status"))["status"] == "running"


async def test_a_held_or_missing_monitor_is_reported(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1")
    path = config(folder, timeouts={"greeting": "300ms"})
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(guest.monitor))
        busy = await run_command("record", guest.monitor, folder / "traffic", "--config", path)
    assert (busy.status, busy.out) == (1, "")
    assert busy.log == f"qmp-agent: {guest.monitor}: no greeting within 0.3 s: another client holds it\n"
    assert not (folder / "traffic").exists()
    missing = await run_command("record", folder / "none.qmp", folder / "traffic")
    assert (missing.status, missing.out) == (1, "")
    assert missing.log.startswith(f"qmp-agent: {folder}/none.qmp: ")
    assert "No such file" in missing.log


async def test_a_file_of_another_kind_is_reported(folder: Path) -> None:
    (folder / "traffic").write_text("{}\n")
    ended = await run_command("replay", folder / "traffic")
    assert (ended.status, ended.out) == (1, "")
    assert ended.log == f"qmp-agent: {folder}/traffic: not a capture file of `qmp-agent record`\n"
