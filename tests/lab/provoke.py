"""Table of ways to make a real QEMU emit each event, without help from its guest.

Where a guest would write to an I/O port of the PC, the human monitor's command `o` writes to it.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.control import GuestError
from agent.cli.demo.guest import Guest, GuestKind, GuestOptions, until
from tests.lab.machine import free_port

Provoke = Callable[[Guest], Awaitable[object]]

_PVPANIC, _PM1_CONTROL, _SLEEP, _WATCHDOG, _MEMORY_HOTPLUG = 0x505, 0x604, 0x2000, 0x443, 0xA00


@dataclass(frozen=True, slots=True)
class EventCase:
    """A way to provoke one event.

    Attributes:
        event: The name of the event.
        provoke: Makes QEMU emit it. The VM runs before.
        expected_data: Fields that the event's data must have.
        subject: The subject of its record; None where it differs between QEMU versions.
        since: The first QEMU version that has the event.
    """

    event: str
    provoke: Provoke
    expected_data: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = ""
    since: tuple[int, int] = (0, 0)


def guest_options(binary: str) -> GuestOptions:
    """Return the options of a guest that suits every case. It starts paused, and its first write fails."""
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
    """Reset or continue the VM if it does not run."""
    status = (await guest.command("query-status"))["status"]
    if status in {"guest-panicked", "shutdown"}:
        await guest.command("system_reset")
    if status != "running":
        await guest.command("cont")


def _do(command: str, **arguments: Any) -> Provoke:
    return lambda guest: guest.command(command, **arguments)


def _all(*steps: Provoke) -> Provoke:
    async def provoke(guest: Guest) -> None:
        for step in steps:
            await step(guest)

    return provoke


async def _hmp(guest: Guest, line: str) -> str:
    output: str = await guest.command("human-monitor-command", command_line=line)
    return output


async def _wait_until_writing(guest: Guest) -> None:
    """Wait until the BIOS has set up the machine and the guest writes to its disk."""
    before = await guest.count_writes()

    async def wrote() -> bool:
        return await guest.count_writes() > before

    await until(wrote, 60)


def _write(*writes: tuple[int, int], size: str = "b") -> Provoke:
    """Write to I/O ports, as a guest does: bytes, half words (`h`) or words (`w`)."""

    async def provoke(guest: Guest) -> None:
        for port, value in writes:
            await _hmp(guest, f"o/{size} {port:#x} {value:#x}")

    return provoke


def _out(*writes: tuple[int, int], size: str = "b") -> Provoke:
    return _all(_wait_until_writing, _write(*writes, size=size))


def _add(name: str, driver: str, **arguments: Any) -> Provoke:
    return lambda guest: guest.command("blockdev-add", node_name=name, driver=driver, **arguments)


def _null(name: str, **arguments: Any) -> Provoke:
    return _add(name, "null-co", size=64 << 20, **arguments)


def _filled(name: str, byte: int) -> Provoke:
    """Add a node that is filled with a byte."""

    async def provoke(guest: Guest) -> None:
        path = guest.folder / f"{guest.name}-{name}"
        await asyncio.to_thread(path.write_bytes, bytes([byte]) * (64 << 20))
        await _add(name, "file", filename=os.fspath(path), read_only=True)(guest)

    return provoke


def _read(node: str) -> Provoke:
    return lambda guest: _hmp(guest, f'qemu-io {node} "read 0 512"')


def _job(kind: str, name: str, source: Provoke, *reactions: tuple[str, str], **options: Any) -> Provoke:
    """Run a block job from one new node to another.

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
        await _null(f"{name}-to")(guest)
        await guest.command(kind, **arguments)
        for event, command in reactions:
            while (await guest.wait_for_event(event))["data"].get("device", name) != name:
                pass
            await guest.command(command, **({"id": name} if command.startswith("job-") else {"device": name}))

    return provoke


def _broken(name: str) -> Provoke:
    fault = [{"event": "none", "iotype": "read", "errno": 5, "once": False}]
    return _add(name, "blkdebug", image={"driver": "null-co", "size": 64 << 20}, inject_error=fault)


async def _corrupt(guest: Guest) -> None:
    """Corrupt an image, with metadata that points outside of any cluster, and read it."""
    path = guest.folder / f"{guest.name}-corrupt.qcow2"
    process = await asyncio.create_subprocess_exec("qemu-img", "create", "-q", "-f", "qcow2", os.fspath(path), "1M")
    await process.wait()
    await asyncio.to_thread(_corrupt_l1_entry, path)
    await _add("corrupt0", "qcow2", file={"driver": "file", "filename": os.fspath(path)})(guest)
    await _read("corrupt0")(guest)


def _corrupt_l1_entry(path: Path) -> None:
    with path.open("r+b") as image:
        image.seek(40)  # the header's offset of the L1 table
        image.seek(int.from_bytes(image.read(8), "big"))
        image.write((1 << 63 | 0x30200).to_bytes(8, "big"))


async def _dump(guest: Guest) -> None:
    path = guest.folder / f"{guest.name}.dump"
    await guest.command("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)


async def _vnc(guest: Guest) -> None:
    """Connect to the VNC display and disconnect."""
    (display,) = await guest.command("query-vnc-servers")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(display["server"][0]["service"]))
    try:
        async with asyncio.timeout(60):
            writer.write(await reader.readexactly(12))  # accept the server's protocol version
            security_types = await reader.readexactly((await reader.readexactly(1))[0])
            assert 1 in security_types  # no authentication
            writer.write(b"\x01")
            assert await reader.readexactly(4) == bytes(4)
            writer.write(b"\x01")  # share the display
            await reader.readexactly(24)
    finally:
        writer.close()


async def _export(guest: Guest) -> None:
    address = {"type": "unix", "data": {"path": f"{guest.folder}/{guest.name}.nbd"}}
    await _null("exported0")(guest)
    await guest.command("nbd-server-start", addr=address)
    await guest.command("block-export-add", type="nbd", id="export0", node_name="exported0")
    await guest.command("block-export-del", id="export0")


async def _stream(guest: Guest) -> None:
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

    await until(connected, 60)
    await guest.wait_for_event("NETDEV_STREAM_CONNECTED")
    writers[0].close()


async def _migrate(guest: Guest) -> None:
    events = [{"capability": "events", "state": True}]
    await guest.command("migrate-set-capabilities", capabilities=events)
    await guest.command("migrate", uri="exec:cat >/dev/null")
    while (await guest.wait_for_event("MIGRATION"))["data"]["status"] not in {"completed", "failed"}:
        pass


def _quorum(name: str, *children: Provoke) -> Provoke:
    files = [f"{name}-{number}" for number in range(len(children))]
    return _all(*children, _add(name, "quorum", vote_threshold=2, children=files), _read(name))


_QUORUM = _quorum(
    "quorum0", _null("quorum0-0", read_zeroes=True), _null("quorum0-1", read_zeroes=True), _filled("quorum0-2", 7)
)
_NO_QUORUM = _quorum("quorum1", _null("quorum1-0", read_zeroes=True), _filled("quorum1-1", 1), _filled("quorum1-2", 2))
_RESET = _do("system_reset")
_SUSPEND = _out((_PM1_CONTROL, _SLEEP | 1 << 10), size="h")
_WAKE = _all(_SUSPEND, _do("system_wakeup"), _RESET)
# The guest is paused meanwhile: its BIOS uses the clock's index register too and could change it between two writes.
_SET_CLOCK = _write((0x70, 11), (0x71, 0x82), (0x70, 4), (0x71, 3), (0x70, 11), (0x71, 2))
_CLOCK = _all(_wait_until_writing, _do("stop"), _SET_CLOCK, _do("cont"))
_MIRROR = _job("blockdev-mirror", "mirror0", _null("mirror0-from"), ("BLOCK_JOB_READY", "job-complete"))

CASES: Final = (
    EventCase("BLOCK_IO_ERROR", Guest.wait_until_booted, {"operation": "write", "action": "report"}, None),
    EventCase("STOP", _do("stop")),
    EventCase("RESUME", _all(_do("stop"), _do("cont"))),
    EventCase("RESET", _RESET, {"guest": False, "reason": "host-qmp-system-reset"}),
    EventCase("POWERDOWN", _do("system_powerdown")),
    EventCase("SUSPEND", _WAKE),
    EventCase("WAKEUP", _WAKE),
    EventCase("SUSPEND_DISK", _out((_PM1_CONTROL, _SLEEP | 2 << 10), size="h")),
    EventCase("SHUTDOWN", _out((_PM1_CONTROL, _SLEEP), size="h"), {"guest": True, "reason": "guest-shutdown"}),
    EventCase("GUEST_PANICKED", _out((_PVPANIC, 1)), {"action": "pause"}),
    EventCase("GUEST_CRASHLOADED", _out((_PVPANIC, 2)), {"action": "run"}),
    EventCase("GUEST_PVSHUTDOWN", _out((_PVPANIC, 4)), since=(9, 1)),
    EventCase("WATCHDOG", _out((_WATCHDOG, 0x0E)), {"action": "none"}),
    EventCase("RTC_CHANGE", _all(_CLOCK, _RESET), subject=None),
    EventCase(
        "ACPI_DEVICE_OST",
        _out(*((_MEMORY_HOTPLUG + at, value) for at, value in ((0, 0), (4, 1), (8, 0))), size="w"),
        subject="0",
    ),
    EventCase(
        "DEVICE_DELETED",
        _all(_do("device_add", driver="usb-tablet", id="tablet0"), _do("device_del", id="tablet0")),
        {"device": "tablet0"},
        "tablet0",
    ),
    EventCase("DEVICE_TRAY_MOVED", _do("blockdev-open-tray", id="cd0", force=True), {"tray-open": True}, "cd0"),
    EventCase(
        "BLOCK_WRITE_THRESHOLD",
        _do("block-set-write-threshold", node_name="disk0-storage", write_threshold=1),
        {"write-threshold": 1},
        "disk0-storage",
    ),
    EventCase("BLOCK_IMAGE_CORRUPTED", _corrupt, {"node-name": "corrupt0", "fatal": True}, "corrupt0"),
    EventCase("BLOCK_EXPORT_DELETED", _export, {"id": "export0"}, "export0"),
    EventCase("QUORUM_REPORT_BAD", _QUORUM, {"node-name": "quorum0-2"}, "quorum0-2"),
    EventCase("QUORUM_FAILURE", _NO_QUORUM, {"reference": "quorum1"}, "quorum1"),
    EventCase(
        "JOB_STATUS_CHANGE", _job("blockdev-backup", "backup0", _null("backup0-from")), {"id": "backup0"}, "backup0"
    ),
    EventCase("BLOCK_JOB_READY", _MIRROR, {"device": "mirror0", "type": "mirror"}, "mirror0"),
    EventCase(
        "BLOCK_JOB_COMPLETED",
        _job("blockdev-backup", "backup1", _null("backup1-from")),
        {"device": "backup1", "type": "backup"},
        "backup1",
    ),
    EventCase(
        "BLOCK_JOB_CANCELLED",
        _all(
            _job("blockdev-backup", "backup2", _null("backup2-from"), speed=1),
            _do("block-job-cancel", device="backup2"),
        ),
        {"device": "backup2"},
        "backup2",
    ),
    EventCase(
        "BLOCK_JOB_PENDING",
        _job(
            "blockdev-backup",
            "backup3",
            _null("backup3-from"),
            ("BLOCK_JOB_PENDING", "job-finalize"),
            auto_finalize=False,
        ),
        {"id": "backup3"},
        "backup3",
    ),
    EventCase(
        "BLOCK_JOB_ERROR",
        _job("blockdev-backup", "backup4", _broken("backup4-from")),
        {"device": "backup4", "operation": "read", "action": "report"},
        "backup4",
    ),
    EventCase("DUMP_COMPLETED", _dump),
    EventCase("VNC_CONNECTED", _vnc, subject="127.0.0.1"),
    EventCase("VNC_INITIALIZED", _vnc, subject="127.0.0.1"),
    EventCase("VNC_DISCONNECTED", _vnc, subject="127.0.0.1"),
    EventCase("NETDEV_STREAM_CONNECTED", _stream, {"netdev-id": "net0"}, "net0"),
    EventCase("NETDEV_STREAM_DISCONNECTED", _stream, {"netdev-id": "net0"}, "net0"),
    EventCase("MIGRATION", _migrate, {"status": "setup"}),
    EventCase("MIGRATION_PASS", _migrate),
)
