"""`record` and `replay`: what a real guest did, in a file, and an agent that sees it again."""

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

Happening = Callable[[Guest], Awaitable[object]]


def config(folder: Path, **more: Any) -> Path:
    path = folder / "agent.yaml"
    whole = {"host": "hv7", "monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "300ms"}}
    path.write_text(yaml.safe_dump(whole | more))
    return path


async def recorded(guest: Guest, path: Path, happens: Happening) -> list[str]:
    """Record a guest while something happens to it, until it is gone; return the records made meanwhile."""
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
                assert line, "it ended before it was told anything of a disk"
                seen.append(line)
            seen.append(line)
            await happens(guest)
            await guest.stop()
            rest, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, log.decode()
    *lines, last = ["".join(seen).rstrip("\n"), *rest.decode().splitlines()]
    assert last.endswith(f" messages are in {traffic}")
    return "\n".join(lines).splitlines()


async def replayed(folder: Path, path: Path, *arguments: str) -> list[str]:
    ended = await run_command("replay", folder / "traffic", "--config", path, *arguments, timeout=60)
    assert ended.status == 0, ended.log
    return ended.out.splitlines()


def happened(records: list[str]) -> list[str]:
    """Return what records tell, sorted: but for samples, whose number depends on how long it took, as the place of an alert does."""
    types = [json.loads(record)["type"].removeprefix("qemu.") for record in records]
    return sorted(kind for kind in types if not kind.startswith("sample."))


async def pauses(guest: Guest) -> None:
    await guest.command("stop")
    await guest.event("STOP")
    await asyncio.sleep(1)  # a few polls
    await guest.command("cont")
    await guest.event("RESUME")
    await asyncio.sleep(1)


async def test_a_replay_tells_what_was_told_live(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    path = config(folder, alerts={"write_threshold": {"mode": "arm", "levels": ["1%", "99%"]}})
    live = await recorded(guest, path, pauses)
    assert {"vm.attached", "event.stop", "event.resume", "alert.write_threshold"} <= set(happened(live))
    again = await replayed(folder, path)
    assert happened(again) == happened(live)
    assert disks(again) <= disks(live)
    assert len(disks(again)) > 3


def disks(records: list[str]) -> set[int]:
    """Return how many writes the disk was told to have completed."""
    samples = [json.loads(one) for one in records if '"qemu.sample.block"' in one and '"subject":"disk0"' in one]
    return {sample["data"]["writes_total"] for sample in samples}


async def test_a_guest_that_hung_hangs_again(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)

    async def hangs(guest: Guest) -> None:
        guest.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        guest.send_signal(signal.SIGCONT)
        await guest.command("query-status")
        await asyncio.sleep(1)

    path = config(folder, timeouts={"response": "500ms"})
    live = await recorded(guest, path, hangs)
    assert {"vm.stalled", "vm.recovered", "vm.gone"} <= set(happened(live))
    assert set(happened(await replayed(folder, path))) == set(happened(live))


async def test_an_agent_of_another_mind_can_be_shown_it_faster_and_looked_at(
    start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    await recorded(guest, config(folder), pauses)
    path = config(folder, intervals={"poll": "100ms"})  # and no thresholds, and another order of questions
    port = free_port()
    replaying = asyncio.create_task(replayed(folder, path, "--listen", f"127.0.0.1:{port}", "--speed", "0.5"))
    looking = AgentProcess(folder, {"monitors": [{"dial": "/nowhere"}]}, name="looking")
    looking.url = f"http://127.0.0.1:{port}"

    async def seen() -> bool:
        try:
            return (await looking.metrics()).value("qemu_block_writes_total", vm="db-1", device="disk0") is not None
        except OSError:
            return False

    await until(seen, 60)
    assert {"vm.attached", "event.stop", "event.resume"} <= set(happened(await replaying))
    assert {"vm.attached", "event.stop", "event.resume"} <= set(happened(await replayed(folder, path, "--speed", "20")))


async def test_no_secret_that_qemu_tells_is_in_the_file_nor_in_what_is_replayed_from_it(
    start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER, extra=("-name", "guest=token=hunter2"))
    path = config(folder)
    ended = await run_command(
        "record", guest.monitor, folder / "traffic", "--duration", "2s", "--config", path, timeout=60
    )
    assert ended.status == 0, ended.log
    text = (folder / "traffic").read_text()
    assert "token=(removed)" in text
    assert "hunter2" not in text
    again = await replayed(folder, path)
    assert "vm.attached" in happened(again)
    assert "hunter2" not in "".join(again)


async def test_a_recording_ends_after_its_time_or_when_it_is_full_and_keeps_the_guest(
    start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest("db-1", kind=GuestKind.WRITER)
    path = config(folder)
    ended = await run_command(
        "record", guest.monitor, folder / "traffic", "--max-size", "40KiB", "--config", path, timeout=60
    )
    assert ended.status == 0, ended.log
    assert ended.out.endswith("which is full\n")
    assert (folder / "traffic").stat().st_size <= 40 << 10
    assert "vm.attached" in happened(await replayed(folder, path))
    ended = await run_command(
        "record", guest.monitor, folder / "more", "--duration", "1s", "--config", path, timeout=60
    )
    assert ended.status == 0, ended.log
    assert (await guest.command("query-status"))["status"] == "running"


async def test_a_monitor_that_is_held_or_not_there_is_refused_in_words(start_guest: StartGuest, folder: Path) -> None:
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


async def test_what_is_no_recording_is_refused_in_words(folder: Path) -> None:
    (folder / "traffic").write_text("{}\n")
    ended = await run_command("replay", folder / "traffic")
    assert (ended.status, ended.out) == (1, "")
    assert ended.log == f"qmp-agent: {folder}/traffic: this is not what `qmp-agent record` writes\n"
