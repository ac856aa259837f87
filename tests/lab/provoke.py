"""How a real QEMU is made to emit its events, with no guest that helps: what a row does to it, and what the event says then.

Ports of a PC that a guest would write to are written to by its monitor: `o` of the human one.
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
class Case:
    """One event.

    Attributes:
        event: its name.
        provoke: what makes QEMU emit it; the VM runs before.
        says: what is in its data, among else.
        subject: whom it is about; None where that differs from QEMU to QEMU.
        since: the first QEMU that has it.
    """

    event: str
    provoke: Provoke
    says: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = ""
    since: tuple[int, int] = (0, 0)


def options(binary: str) -> GuestOptions:
    """Return a guest that all rows can be tried on; it has not begun to run, and its first write fails."""
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


async def run(guest: Guest) -> None:
    """Have the VM run, whatever it was brought to."""
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
    said: str = await guest.command("human-monitor-command", command_line=line)
    return said


async def _works(guest: Guest) -> None:
    """Wait until the BIOS has set up the machine and the guest is at its work."""
    before = await guest.writes()

    async def wrote() -> bool:
        return await guest.writes() > before

    await until(wrote, 30)


def _write(*writes: tuple[int, int], size: str = "b") -> Provoke:
    """Write to ports, as a guest does: bytes, half words (`h`) or words (`w`)."""

    async def provoke(guest: Guest) -> None:
        for port, value in writes:
            await _hmp(guest, f"o/{size} {port:#x} {value:#x}")

    return provoke


def _out(*writes: tuple[int, int], size: str = "b") -> Provoke:
    return _all(_works, _write(*writes, size=size))


def _add(name: str, driver: str, **more: Any) -> Provoke:
    return lambda guest: guest.command("blockdev-add", node_name=name, driver=driver, **more)


def _null(name: str, **more: Any) -> Provoke:
    return _add(name, "null-co", size=64 << 20, **more)


def _filled(name: str, byte: int) -> Provoke:
    """Add a node of bytes that are not zero."""

    async def provoke(guest: Guest) -> None:
        path = guest.folder / f"{guest.name}-{name}"
        await asyncio.to_thread(path.write_bytes, bytes([byte]) * (64 << 20))
        await _add(name, "file", filename=os.fspath(path), read_only=True)(guest)

    return provoke


def _read(node: str) -> Provoke:
    return lambda guest: _hmp(guest, f'qemu-io {node} "read 0 512"')


def _job(kind: str, name: str, source: Provoke, *then: tuple[str, str], **more: Any) -> Provoke:
    """Run a block job from one new node to another, and once it has told of an event do something with it."""
    arguments = {"job_id": name, "device": f"{name}-from", "target": f"{name}-to", "sync": "full", **more}

    async def provoke(guest: Guest) -> None:
        await source(guest)
        await _null(f"{name}-to")(guest)
        await guest.command(kind, **arguments)
        for event, command in then:
            while (await guest.event(event))["data"].get("device", name) != name:
                pass
            await guest.command(command, **({"id": name} if command.startswith("job-") else {"device": name}))

    return provoke


def _broken(name: str) -> Provoke:
    fault = [{"event": "none", "iotype": "read", "errno": 5, "once": False}]
    return _add(name, "blkdebug", image={"driver": "null-co", "size": 64 << 20}, inject_error=fault)


async def _corrupt(guest: Guest) -> None:
    """Have an image's metadata point to where no cluster can be, and look."""
    path = guest.folder / f"{guest.name}-corrupt.qcow2"
    made = await asyncio.create_subprocess_exec("qemu-img", "create", "-q", "-f", "qcow2", os.fspath(path), "1M")
    await made.wait()
    await asyncio.to_thread(_point_astray, path)
    await _add("corrupt0", "qcow2", file={"driver": "file", "filename": os.fspath(path)})(guest)
    await _read("corrupt0")(guest)


def _point_astray(path: Path) -> None:
    with path.open("r+b") as image:
        image.seek(40)  # the header's offset of the L1 table
        image.seek(int.from_bytes(image.read(8), "big"))
        image.write((1 << 63 | 0x30200).to_bytes(8, "big"))


async def _dump(guest: Guest) -> None:
    path = guest.folder / f"{guest.name}.dump"
    await guest.command("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)


async def _vnc(guest: Guest) -> None:
    """Look at the display, and look away."""
    (display,) = await guest.command("query-vnc-servers")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(display["server"][0]["service"]))
    try:
        async with asyncio.timeout(10):
            writer.write(await reader.readexactly(12))  # the version that it speaks
            kinds = await reader.readexactly((await reader.readexactly(1))[0])
            assert 1 in kinds  # no password
            writer.write(b"\x01")
            assert await reader.readexactly(4) == bytes(4)
            writer.write(b"\x01")  # with others
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
    """Be a network's other end, and leave."""
    with contextlib.suppress(GuestError):
        await guest.command("netdev_del", id="net0")
    path = f"{guest.folder}/{guest.name}.net"
    await guest.command("netdev_add", type="stream", id="net0", server=True, addr={"type": "unix", "path": path})
    writers: list[asyncio.StreamWriter] = []

    async def connected() -> bool:  # QEMU listens in a thread of its own, a while after it has answered
        with contextlib.suppress(OSError):
            writers.append((await asyncio.open_unix_connection(path))[1])
        return bool(writers)

    await until(connected, 10)
    await guest.event("NETDEV_STREAM_CONNECTED")
    writers[0].close()


async def _migrate(guest: Guest) -> None:
    on = [{"capability": "events", "state": True}]
    await guest.command("migrate-set-capabilities", capabilities=on)
    await guest.command("migrate", uri="exec:cat >/dev/null")
    while (await guest.event("MIGRATION"))["data"]["status"] not in {"completed", "failed"}:
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
# The guest stands meanwhile: its BIOS uses the clock's index register too, and between two writes would set it to something else.
_SET = _write((0x70, 11), (0x71, 0x82), (0x70, 4), (0x71, 3), (0x70, 11), (0x71, 2))
_CLOCK = _all(_works, _do("stop"), _SET, _do("cont"))
_MIRROR = _job("blockdev-mirror", "mirror0", _null("mirror0-from"), ("BLOCK_JOB_READY", "job-complete"))

CASES: Final = (
    Case("BLOCK_IO_ERROR", Guest.booted, {"operation": "write", "action": "report"}, None),
    Case("STOP", _do("stop")),
    Case("RESUME", _all(_do("stop"), _do("cont"))),
    Case("RESET", _RESET, {"guest": False, "reason": "host-qmp-system-reset"}),
    Case("POWERDOWN", _do("system_powerdown")),
    Case("SUSPEND", _WAKE),
    Case("WAKEUP", _WAKE),
    Case("SUSPEND_DISK", _out((_PM1_CONTROL, _SLEEP | 2 << 10), size="h")),
    Case("SHUTDOWN", _out((_PM1_CONTROL, _SLEEP), size="h"), {"guest": True, "reason": "guest-shutdown"}),
    Case("GUEST_PANICKED", _out((_PVPANIC, 1)), {"action": "pause"}),
    Case("GUEST_CRASHLOADED", _out((_PVPANIC, 2)), {"action": "run"}),
    Case("GUEST_PVSHUTDOWN", _out((_PVPANIC, 4)), since=(9, 1)),
    Case("WATCHDOG", _out((_WATCHDOG, 0x0E)), {"action": "none"}),
    Case("RTC_CHANGE", _all(_CLOCK, _RESET), subject=None),
    Case(
        "ACPI_DEVICE_OST",
        _out(*((_MEMORY_HOTPLUG + at, value) for at, value in ((0, 0), (4, 1), (8, 0))), size="w"),
        subject="0",
    ),
    Case(
        "DEVICE_DELETED",
        _all(_do("device_add", driver="usb-tablet", id="tablet0"), _do("device_del", id="tablet0")),
        {"device": "tablet0"},
        "tablet0",
    ),
    Case("DEVICE_TRAY_MOVED", _do("blockdev-open-tray", id="cd0", force=True), {"tray-open": True}, "cd0"),
    Case(
        "BLOCK_WRITE_THRESHOLD",
        _do("block-set-write-threshold", node_name="disk0-storage", write_threshold=1),
        {"write-threshold": 1},
        "disk0-storage",
    ),
    Case("BLOCK_IMAGE_CORRUPTED", _corrupt, {"node-name": "corrupt0", "fatal": True}, "corrupt0"),
    Case("BLOCK_EXPORT_DELETED", _export, {"id": "export0"}, "export0"),
    Case("QUORUM_REPORT_BAD", _QUORUM, {"node-name": "quorum0-2"}, "quorum0-2"),
    Case("QUORUM_FAILURE", _NO_QUORUM, {"reference": "quorum1"}, "quorum1"),
    Case("JOB_STATUS_CHANGE", _job("blockdev-backup", "backup0", _null("backup0-from")), {"id": "backup0"}, "backup0"),
    Case("BLOCK_JOB_READY", _MIRROR, {"device": "mirror0", "type": "mirror"}, "mirror0"),
    Case(
        "BLOCK_JOB_COMPLETED",
        _job("blockdev-backup", "backup1", _null("backup1-from")),
        {"device": "backup1", "type": "backup"},
        "backup1",
    ),
    Case(
        "BLOCK_JOB_CANCELLED",
        _all(
            _job("blockdev-backup", "backup2", _null("backup2-from"), speed=1),
            _do("block-job-cancel", device="backup2"),
        ),
        {"device": "backup2"},
        "backup2",
    ),
    Case(
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
    Case(
        "BLOCK_JOB_ERROR",
        _job("blockdev-backup", "backup4", _broken("backup4-from")),
        {"device": "backup4", "operation": "read", "action": "report"},
        "backup4",
    ),
    Case("DUMP_COMPLETED", _dump),
    Case("VNC_CONNECTED", _vnc, subject="127.0.0.1"),
    Case("VNC_INITIALIZED", _vnc, subject="127.0.0.1"),
    Case("VNC_DISCONNECTED", _vnc, subject="127.0.0.1"),
    Case("NETDEV_STREAM_CONNECTED", _stream, {"netdev-id": "net0"}, "net0"),
    Case("NETDEV_STREAM_DISCONNECTED", _stream, {"netdev-id": "net0"}, "net0"),
    Case("MIGRATION", _migrate, {"status": "setup"}),
    Case("MIGRATION_PASS", _migrate),
)
