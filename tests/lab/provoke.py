"""Table of events, each with the action that makes a real QEMU emit it. The guest does not have to cooperate.

Some events need a write to an I/O port by the guest. The human monitor's command `o` writes to the port instead.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from agent.cli.demo.guest_qmp_client import GuestError
from tests.lab.machine import free_port
from tests.lab.waiting import DEADLINE_SECONDS, until

Provoke = Callable[[Guest], Awaitable[object]]

_PVPANIC, _PM1_CONTROL, _SLEEP, _WATCHDOG, _MEMORY_HOTPLUG = 0x505, 0x604, 0x2000, 0x443, 0xA00


@dataclass(frozen=True, slots=True)
class EventCase:
    """An event, and the action that makes QEMU emit it.

    Attributes:
        event: The name of the event.
        provoke: Makes QEMU emit the event. The VM must run.
        expected_data: Fields that the event's data must have.
        subject: The subject of the event's record; None if it differs between QEMU versions.
        since: The first QEMU version that has the event.
    """

    event: str
    provoke: Provoke
    expected_data: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = ""
    since: tuple[int, int] = (0, 0)


def guest_options(binary: str) -> GuestOptions:
    """Return the options of a guest that suits every EventCase. The guest starts paused, and its first write fails."""
    devices = ("pvpanic", "ib700", "ide-cd,id=cd0", "virtio-balloon-pci,id=balloon0")
    return GuestOptions(
        kind=GuestKind.WRITER,
        binary=binary,
        faults=[{"event": "write_aio", "iotype": "write", "errno": 5, "once": True}],
        disk_options="iothread=io0,werror=report",
        extra=[
            *("-S", "-usb", "-smp", "2", "-m", "64,slots=1,maxmem=256M", "-object", "iothread,id=io0"),
            *("-action", "panic=pause,shutdown=pause,watchdog=none"),
            *("-vnc", f"127.0.0.1:{free_port() - 5900},id=vnc0"),
            *(word for device in devices for word in ("-device", device)),
        ],
    )


async def ensure_running(guest: Guest) -> None:
    """Make the VM run again if it does not: reset it or continue it."""
    status = (await guest.command("query-status"))["status"]
    if status in {"guest-panicked", "shutdown"}:
        await guest.command("system_reset")
    if status != "running":
        await guest.command("cont")


def _send_command(command: str, **arguments: Any) -> Provoke:
    return lambda guest: guest.command(command, **arguments)


def _run_steps(*steps: Provoke) -> Provoke:
    async def provoke(guest: Guest) -> None:
        for step in steps:
            await step(guest)

    return provoke


async def _send_human_command(guest: Guest, line: str) -> str:
    output: str = await guest.command("human-monitor-command", command_line=line)
    return output


async def _wait_until_writing(guest: Guest) -> None:
    """Wait until the BIOS has set up the machine and the guest writes to its disk."""
    before = await guest.count_writes()

    async def wrote() -> bool:
        return await guest.count_writes() > before

    await until(wrote)


def _write_ports(*writes: tuple[int, int], size: str = "b") -> Provoke:
    """Return an action that writes to I/O ports like a guest: bytes (`b`), half words (`h`) or words (`w`)."""

    async def provoke(guest: Guest) -> None:
        for port, value in writes:
            await _send_human_command(guest, f"o/{size} {port:#x} {value:#x}")

    return provoke


def _write_ports_after_boot(*writes: tuple[int, int], size: str = "b") -> Provoke:
    return _run_steps(_wait_until_writing, _write_ports(*writes, size=size))


def _add_node(name: str, driver: str, **arguments: Any) -> Provoke:
    return lambda guest: guest.command("blockdev-add", node_name=name, driver=driver, **arguments)


def _add_null_node(name: str, **arguments: Any) -> Provoke:
    return _add_node(name, "null-co", size=64 << 20, **arguments)


def _add_filled_node(name: str, byte: int) -> Provoke:
    """Return an action that adds a block node filled with a byte."""

    async def provoke(guest: Guest) -> None:
        path = guest.folder / f"{guest.name}-{name}"
        await asyncio.to_thread(path.write_bytes, bytes([byte]) * (64 << 20))
        await _add_node(name, "file", filename=os.fspath(path), read_only=True)(guest)

    return provoke


def _read_node(node: str) -> Provoke:
    return lambda guest: _send_human_command(guest, f'qemu-io {node} "read 0 512"')


def _run_block_job(kind: str, name: str, source: Provoke, *reactions: tuple[str, str], **options: Any) -> Provoke:
    """Return an action that runs a block job from one new block node to another.

    Args:
        kind: The command that starts the job.
        name: The job's id.
        source: Adds the source node.
        reactions: Pairs of an event to wait for and a command to run on the job then.
        options: Further arguments of the command.
    """
    arguments = {"job_id": name, "device": f"{name}-from", "target": f"{name}-to", "sync": "full", **options}

    async def provoke(guest: Guest) -> None:
        await source(guest)
        await _add_null_node(f"{name}-to")(guest)
        await guest.command(kind, **arguments)
        for event, command in reactions:
            while (await guest.wait_for_event(event))["data"].get("device", name) != name:
                pass
            await guest.command(command, **({"id": name} if command.startswith("job-") else {"device": name}))

    return provoke


def _add_failing_node(name: str) -> Provoke:
    fault = [{"event": "none", "iotype": "read", "errno": 5, "once": False}]
    return _add_node(name, "blkdebug", image={"driver": "null-co", "size": 64 << 20}, inject_error=fault)


async def _read_corrupt_image(guest: Guest) -> None:
    """Corrupt the metadata of an image, so that it points outside of any cluster, and read the image."""
    path = guest.folder / f"{guest.name}-corrupt.qcow2"
    process = await asyncio.create_subprocess_exec("qemu-img", "create", "-q", "-f", "qcow2", os.fspath(path), "1M")
    await process.wait()
    await asyncio.to_thread(_corrupt_l1_entry, path)
    await _add_node("corrupt0", "qcow2", file={"driver": "file", "filename": os.fspath(path)})(guest)
    await _read_node("corrupt0")(guest)


def _corrupt_l1_entry(path: Path) -> None:
    with path.open("r+b") as image:
        image.seek(40)  # the header's offset of the L1 table
        image.seek(int.from_bytes(image.read(8), "big"))
        image.write((1 << 63 | 0x30200).to_bytes(8, "big"))


async def _dump_memory(guest: Guest) -> None:
    path = guest.folder / f"{guest.name}.dump"
    await guest.command("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)


async def _connect_to_vnc(guest: Guest) -> None:
    """Connect to the VNC display and disconnect."""
    (display,) = await guest.command("query-vnc-servers")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(display["server"][0]["service"]))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            writer.write(await reader.readexactly(12))  # accept the server's protocol version
            security_types = await reader.readexactly((await reader.readexactly(1))[0])
            assert 1 in security_types  # no authentication
            writer.write(b"\x01")
            assert await reader.readexactly(4) == bytes(4)
            writer.write(b"\x01")  # share the display
            await reader.readexactly(24)
    finally:
        writer.close()


async def _export_node(guest: Guest) -> None:
    address = {"type": "unix", "data": {"path": f"{guest.folder}/{guest.name}.nbd"}}
    await _add_null_node("exported0")(guest)
    await guest.command("nbd-server-start", addr=address)
    await guest.command("block-export-add", type="nbd", id="export0", node_name="exported0")
    await guest.command("block-export-del", id="export0")


async def _connect_to_stream_backend(guest: Guest) -> None:
    """Connect to a stream network backend and disconnect."""
    with contextlib.suppress(GuestError):
        await guest.command("netdev_del", id="net0")
    path = f"{guest.folder}/{guest.name}.net"
    await guest.command("netdev_add", type="stream", id="net0", server=True, addr={"type": "unix", "path": path})
    writers: list[asyncio.StreamWriter] = []

    async def connected() -> bool:  # QEMU listens in another thread, some time after its reply
        with contextlib.suppress(OSError):
            writers.append((await asyncio.open_unix_connection(path))[1])
        return bool(writers)

    await until(connected)
    await guest.wait_for_event("NETDEV_STREAM_CONNECTED")
    writers[0].close()


async def _migrate_to_null(guest: Guest) -> None:
    events = [{"capability": "events", "state": True}]
    await guest.command("migrate-set-capabilities", capabilities=events)
    await guest.command("migrate", uri="exec:cat >/dev/null")
    while (await guest.wait_for_event("MIGRATION"))["data"]["status"] not in {"completed", "failed"}:
        pass


def _read_quorum_node(name: str, *children: Provoke) -> Provoke:
    files = [f"{name}-{number}" for number in range(len(children))]
    return _run_steps(*children, _add_node(name, "quorum", vote_threshold=2, children=files), _read_node(name))


_QUORUM = _read_quorum_node(
    "quorum0",
    _add_null_node("quorum0-0", read_zeroes=True),
    _add_null_node("quorum0-1", read_zeroes=True),
    _add_filled_node("quorum0-2", 7),
)
_NO_QUORUM = _read_quorum_node(
    "quorum1",
    _add_null_node("quorum1-0", read_zeroes=True),
    _add_filled_node("quorum1-1", 1),
    _add_filled_node("quorum1-2", 2),
)
_RESET = _send_command("system_reset")
_SUSPEND = _write_ports_after_boot((_PM1_CONTROL, _SLEEP | 1 << 10), size="h")
_WAKE = _run_steps(_SUSPEND, _send_command("system_wakeup"), _RESET)
# The guest is paused meanwhile, because its BIOS also uses the clock's index register, and could change it between two writes.
_SET_CLOCK = _write_ports((0x70, 11), (0x71, 0x82), (0x70, 4), (0x71, 3), (0x70, 11), (0x71, 2))
_CLOCK = _run_steps(_wait_until_writing, _send_command("stop"), _SET_CLOCK, _send_command("cont"))
_MIRROR = _run_block_job(
    "blockdev-mirror", "mirror0", _add_null_node("mirror0-from"), ("BLOCK_JOB_READY", "job-complete")
)

CASES: Final = (
    EventCase("BLOCK_IO_ERROR", Guest.wait_until_booted, {"operation": "write", "action": "report"}, None),
    EventCase("STOP", _send_command("stop")),
    EventCase("RESUME", _run_steps(_send_command("stop"), _send_command("cont"))),
    EventCase("RESET", _RESET, {"guest": False, "reason": "host-qmp-system-reset"}),
    EventCase("POWERDOWN", _send_command("system_powerdown")),
    EventCase("SUSPEND", _WAKE),
    EventCase("WAKEUP", _WAKE),
    EventCase("SUSPEND_DISK", _write_ports_after_boot((_PM1_CONTROL, _SLEEP | 2 << 10), size="h")),
    EventCase(
        "SHUTDOWN",
        _write_ports_after_boot((_PM1_CONTROL, _SLEEP), size="h"),
        {"guest": True, "reason": "guest-shutdown"},
    ),
    EventCase("GUEST_PANICKED", _write_ports_after_boot((_PVPANIC, 1)), {"action": "pause"}),
    EventCase("GUEST_CRASHLOADED", _write_ports_after_boot((_PVPANIC, 2)), {"action": "run"}),
    EventCase("GUEST_PVSHUTDOWN", _write_ports_after_boot((_PVPANIC, 4)), since=(9, 1)),
    EventCase("WATCHDOG", _write_ports_after_boot((_WATCHDOG, 0x0E)), {"action": "none"}),
    EventCase("RTC_CHANGE", _run_steps(_CLOCK, _RESET), subject=None),
    EventCase(
        "ACPI_DEVICE_OST",
        _write_ports_after_boot(*((_MEMORY_HOTPLUG + at, value) for at, value in ((0, 0), (4, 1), (8, 0))), size="w"),
        subject="0",
    ),
    EventCase(
        "DEVICE_DELETED",
        _run_steps(
            _send_command("device_add", driver="usb-tablet", id="tablet0"), _send_command("device_del", id="tablet0")
        ),
        {"device": "tablet0"},
        "tablet0",
    ),
    EventCase(
        "DEVICE_TRAY_MOVED", _send_command("blockdev-open-tray", id="cd0", force=True), {"tray-open": True}, "cd0"
    ),
    EventCase(
        "BLOCK_WRITE_THRESHOLD",
        _send_command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1),
        {"write-threshold": 1},
        "disk0",
    ),
    EventCase("BLOCK_IMAGE_CORRUPTED", _read_corrupt_image, {"node-name": "corrupt0", "fatal": True}, "corrupt0"),
    EventCase("BLOCK_EXPORT_DELETED", _export_node, {"id": "export0"}, "export0"),
    EventCase("QUORUM_REPORT_BAD", _QUORUM, {"node-name": "quorum0-2"}, "quorum0-2"),
    EventCase("QUORUM_FAILURE", _NO_QUORUM, {"reference": "quorum1"}, "quorum1"),
    EventCase(
        "JOB_STATUS_CHANGE",
        _run_block_job("blockdev-backup", "backup0", _add_null_node("backup0-from")),
        {"id": "backup0"},
        "backup0",
    ),
    EventCase("BLOCK_JOB_READY", _MIRROR, {"device": "mirror0", "type": "mirror"}, "mirror0"),
    EventCase(
        "BLOCK_JOB_COMPLETED",
        _run_block_job("blockdev-backup", "backup1", _add_null_node("backup1-from")),
        {"device": "backup1", "type": "backup"},
        "backup1",
    ),
    EventCase(
        "BLOCK_JOB_CANCELLED",
        _run_steps(
            _run_block_job("blockdev-backup", "backup2", _add_null_node("backup2-from"), speed=1),
            _send_command("block-job-cancel", device="backup2"),
        ),
        {"device": "backup2"},
        "backup2",
    ),
    EventCase(
        "BLOCK_JOB_PENDING",
        _run_block_job(
            "blockdev-backup",
            "backup3",
            _add_null_node("backup3-from"),
            ("BLOCK_JOB_PENDING", "job-finalize"),
            auto_finalize=False,
        ),
        {"id": "backup3"},
        "backup3",
    ),
    EventCase(
        "BLOCK_JOB_ERROR",
        _run_block_job("blockdev-backup", "backup4", _add_failing_node("backup4-from")),
        {"device": "backup4", "operation": "read", "action": "report"},
        "backup4",
    ),
    EventCase("DUMP_COMPLETED", _dump_memory),
    EventCase("VNC_CONNECTED", _connect_to_vnc, subject="127.0.0.1"),
    EventCase("VNC_INITIALIZED", _connect_to_vnc, subject="127.0.0.1"),
    EventCase("VNC_DISCONNECTED", _connect_to_vnc, subject="127.0.0.1"),
    EventCase("NETDEV_STREAM_CONNECTED", _connect_to_stream_backend, {"netdev-id": "net0"}, "net0"),
    EventCase("NETDEV_STREAM_DISCONNECTED", _connect_to_stream_backend, {"netdev-id": "net0"}, "net0"),
    EventCase("MIGRATION", _migrate_to_null, {"status": "setup"}),
    EventCase("MIGRATION_PASS", _migrate_to_null),
)
