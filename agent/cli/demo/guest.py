"""Starts and stops QEMU processes with small guests. A guest idles, writes to a disk, or runs Linux with a balloon."""

import asyncio
import contextlib
import inspect
import itertools
import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from agent.cli.demo import qemu_ga
from agent.cli.demo.guest_qmp_client import GuestError, GuestQmpClient
from agent.cli.demo.images import MissingDependencyError, build_boot_sector, linux_image

_MAX_SOCKET_PATH_BYTES: Final = 107  # the size of struct sockaddr_un
_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.02

FAST_PAUSE_SECONDS: Final = 0.002
"""Pause between two writes of a boot-sector guest that should fill its disk within seconds. The guest uses much of a CPU."""
_PAUSE_SECONDS: Final = 0.2


class GuestKind(StrEnum):
    """The program in a guest: none, a boot sector that writes to a disk, or Linux."""

    IDLE = "idle"  # a machine without CPU and disk, only with a monitor; uses little memory
    WRITER = "writer"  # a boot sector that writes to `disk0` in a loop
    LINUX = "linux"  # Linux that writes to `disk0` with flushes and has the balloon `balloon0`


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """Options of a guest.

    Attributes:
        kind: the kind of guest.
        memory_mib: memory in MiB; default: 64, for Linux 128.
        disk_mib: virtual size of `disk0` in MiB. The disk's file grows with the writes.
        span_mib: size in MiB of the part of the disk to which the guest writes in a loop; default: the whole disk.
        write_kib: size of one write in KiB; default: 4 (the maximum of a boot sector is 63), for Linux 1024.
        guest_agent: whether the Linux guest runs qemu-ga and has a file system of 32 MiB on a separate disk.
        guest_shell: whether a virtio-serial port leads to a shell in this guest; see tests/lab/guest_shell.py.
        fill_seconds: interval in seconds at which a file of 256 KiB is added to the file system of 32 MiB; default: no files.
        pause_seconds: time between two writes in seconds; default: 0.2, for Linux 1.
        disk_options: additional properties of the disk device, such as `werror=stop`.
        faults: `inject-error` rules of QEMU's blkdebug driver for `disk0-storage`. Without rules, the node is a plain file.
        extra: additional arguments of QEMU, after all others.
        binary: the QEMU program.
        accel: the argument of `-accel`.
    """

    kind: GuestKind = GuestKind.IDLE
    memory_mib: int | None = None
    disk_mib: int = 64
    span_mib: int | None = None
    write_kib: int | None = None
    pause_seconds: float | None = None
    guest_agent: bool = False
    guest_shell: bool = False
    fill_seconds: float | None = None
    disk_options: str = ""
    faults: Sequence[Mapping[str, Any]] = ()
    extra: Sequence[str] = ()
    binary: str = "qemu-system-x86_64"
    accel: str = "tcg"


class Guest:
    """A QEMU process that runs while the async context is open.

    `start` after `stop` runs the guest again with the same name, UUID and disk. If the thread that started QEMU ends, the kernel kills
    QEMU.

    Attributes:
        name: the argument of -name.
        uuid: the argument of -uuid.
        folder: the directory of the guest's files, whose names begin with the guest's name.
        monitor: the QMP socket for an agent, `<name>.qmp`.
        control: the QMP socket that `command` and `wait_for_event` use.
        process: the QEMU process; None before `start` and after `stop`.
    """

    def __init__(
        self, folder: Path, name: str, options: GuestOptions | None = None, *, identity: str | None = None
    ) -> None:
        self.name = name
        self.uuid = identity or str(uuid.uuid4())
        self.folder = folder
        self.options = options or GuestOptions()
        self.monitor = folder / f"{name}.qmp"
        self.control = folder / f"{name}.control"
        self.process: asyncio.subprocess.Process | None = None
        self._client: GuestQmpClient | None = None
        self._log = folder / f"{name}.log"
        self._serial = folder / f"{name}.serial"

    async def start(self) -> None:
        """Start QEMU, and wait until its control socket answers. The guest may still be booting.

        Raises:
            GuestError: QEMU ends or does not answer. The message has the last lines of QEMU's output.
            MissingDependencyError: a program or package is missing.
        """
        if len(os.fsencode(self.control)) > _MAX_SOCKET_PATH_BYTES:
            raise GuestError(f"{self.control} is too long for the path of a socket: choose another directory")
        for program in ("setpriv", self.options.binary):
            if shutil.which(program) is None:
                raise MissingDependencyError(f"{program} is missing: install QEMU (qemu-system-x86) and util-linux")
        self._unlink_sockets()
        self._serial.unlink(missing_ok=True)
        arguments = await self._build_arguments()
        client = socket.socket(socket.AF_UNIX)
        # QEMU inherits a listening socket with a waiting connection. QEMU sends its greeting on this connection as soon as QEMU is ready.
        with socket.socket(socket.AF_UNIX) as listener, self._log.open("wb") as log:
            listener.bind(os.fspath(self.control))
            listener.listen(1)
            client.connect(os.fspath(self.control))
            descriptor = listener.fileno()
            self.process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", self.options.binary, *arguments),
                *("-chardev", f"socket,id=control,fd={descriptor},server=on,wait=off"),
                *("-mon", "chardev=control,mode=control", *self.options.extra),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[descriptor],
            )
        try:
            async with asyncio.timeout(_START_SECONDS):
                self._client = await GuestQmpClient.from_connected_socket(client)
        except (GuestError, OSError) as error:
            await self.stop()
            raise GuestError(f"{self.name} did not start ({error}): {self.last_qemu_output()}") from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop QEMU if it runs: SIGTERM first, then SIGKILL."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self.process is not None:
            self.send_signal(signal.SIGCONT)  # a stopped process cannot handle SIGTERM
            self.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                await self.kill()
            self.process = None
        self._unlink_sockets()

    async def kill(self) -> None:
        """Kill QEMU with SIGKILL. QEMU sends no event and leaves its sockets behind, as after a crash."""
        if self.process is not None:
            self.send_signal(signal.SIGKILL)
            await self.process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to QEMU if it runs. After SIGSTOP, QEMU hangs until SIGCONT."""
        # Do not use the process object, which would reap the process before asyncio notices its end.
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def command(self, command: str, /, **arguments: Any) -> Any:
        """Execute a QMP command over the control socket, and return its reply. The argument `a_b=1` becomes `"a-b": 1`.

        Raises:
            GuestError: QEMU answers with an error or does not run.
        """
        return await self._require_connection().command(command, **arguments)

    async def wait_for_event(self, name: str, timeout: float = 600.0) -> dict[str, Any]:  # noqa: ASYNC109 - as in `wait_until`
        """Return the oldest event of this name that was not returned yet. If none has arrived, wait up to `timeout` seconds.

        Raises:
            TimeoutError: the event does not arrive in time.
            GuestError: QEMU does not run.
        """
        async with asyncio.timeout(timeout):
            return await self._require_connection().wait_for_event(name)

    async def wait_until_booted(self, timeout: float = 600.0) -> None:  # noqa: ASYNC109 - as in `wait_until`
        """Wait until the guest has booted: a Linux guest has printed READY on its console, or a writer has written to its disk.

        Raises:
            TimeoutError: the guest has not booted within `timeout` seconds.
        """
        match self.options.kind:
            case GuestKind.LINUX:
                await wait_until(lambda: "READY" in self._console(), timeout)
            case GuestKind.WRITER:
                await wait_until(self.count_writes, timeout)

    async def count_writes(self) -> int:
        """Return the number of writes to `disk0` that have completed since QEMU started."""
        devices = await self.command("query-blockstats")
        return sum(device["stats"]["wr_operations"] for device in devices if "disk0" in device.get("qdev", ""))

    async def highest_written_offset(self) -> int:
        """Return the highest written offset of the storage node of `disk0`, in bytes."""
        devices = await self.command("query-blockstats")
        disk = next(device for device in devices if "disk0" in device.get("qdev", ""))
        return int(disk["parent"]["stats"]["wr_highest_offset"])

    def last_qemu_output(self, lines: int = 5) -> str:
        """Return the last lines of QEMU's standard output and error."""
        output = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return " / ".join(output[-lines:]) or "no output"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _console(self) -> str:
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def _require_connection(self) -> GuestQmpClient:
        if self._client is None:
            raise GuestError(f"{self.name} is not running")
        return self._client

    def _unlink_sockets(self) -> None:
        self.monitor.unlink(missing_ok=True)
        self.control.unlink(missing_ok=True)

    async def _build_arguments(self) -> list[str]:
        """Create the disk images, and return QEMU's arguments, except the arguments for the control socket."""
        options = self.options
        memory = options.memory_mib or (128 if options.kind is GuestKind.LINUX else 64)
        arguments = ["-name", self.name, "-uuid", self.uuid, "-accel", options.accel, "-m", str(memory)]
        arguments += ["-nodefaults", "-vga", "none", "-display", "none"]
        arguments += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        match options.kind:
            case GuestKind.IDLE:
                arguments += ["-machine", "none"]
            case GuestKind.WRITER:
                arguments += [*self._boot_disk_arguments(), *await self._disk0_arguments()]
            case GuestKind.LINUX:
                arguments += [*await self._linux_arguments(), *await self._disk0_arguments()]
                arguments += ["-device", "virtio-balloon-pci,id=balloon0"]
                arguments += self._guest_agent_arguments() if options.guest_agent else []
        return arguments

    def _boot_disk_arguments(self) -> list[str]:
        options = self.options
        image = self.folder / f"{self.name}-boot.raw"
        image.write_bytes(
            build_boot_sector(
                sectors_per_write=(options.write_kib or 4) * 2,
                last_sector=(options.span_mib or options.disk_mib) * 2048 - 1,
                pause_us=round((_PAUSE_SECONDS if options.pause_seconds is None else options.pause_seconds) * 1e6),
            )
        )
        os.truncate(image, 1 << 20)  # a BIOS does not boot from a disk smaller than one cylinder
        storage = {"driver": "file", "node-name": "boot-storage", "filename": os.fspath(image), "read-only": True}
        node = {"driver": "raw", "node-name": "boot-format", "file": "boot-storage", "read-only": True}
        return [
            *("-blockdev", json.dumps(storage), "-blockdev", json.dumps(node)),
            *("-device", "virtio-blk-pci,id=boot,drive=boot-format,bootindex=1"),
        ]

    async def _linux_arguments(self) -> list[str]:
        options = self.options
        image = await asyncio.to_thread(linux_image)
        writer_options: dict[str, object] = {
            "WRITE_KIB": options.write_kib or 1024,
            "PAUSE_SECONDS": 1 if options.pause_seconds is None else options.pause_seconds,
            "SPAN_MIB": options.span_mib or options.disk_mib,
        }
        if options.guest_agent:
            writer_options |= {"GUEST_NAME": self.name, "FILL_SECONDS": options.fill_seconds or ""}
        initramfs = image.guest_agent_initramfs if options.guest_agent else image.initramfs
        line = " ".join(["console=ttyS0", "quiet", *(f"{name}={value}" for name, value in writer_options.items())])
        console = ["-chardev", f"file,id=serial,path={self._serial}", "-serial", "chardev:serial"]
        return ["-kernel", os.fspath(image.kernel), "-initrd", os.fspath(initramfs), "-append", line, *console]

    def _guest_agent_arguments(self) -> list[str]:
        disk = self.folder / f"{self.name}-data.raw"
        disk.touch()
        os.truncate(disk, 32 << 20)
        return qemu_ga.guest_agent_device_arguments(self.folder, self.name, disk, shell=self.options.guest_shell)

    async def _disk0_arguments(self) -> list[str]:
        """Return QEMU's arguments for `disk0`: the device, its qcow2 node `disk0-format`, and its file node `disk0-storage`."""
        storage = {**await self._disk0_storage(), "node-name": "disk0-storage"}
        node = {"driver": "qcow2", "node-name": "disk0-format", "file": "disk0-storage"}
        device = ",".join(filter(None, ["virtio-blk-pci,id=disk0,drive=disk0-format", self.options.disk_options]))
        return [
            *("-blockdev", json.dumps(storage)),
            *("-blockdev", json.dumps(node), "-device", device),
        ]

    async def _disk0_storage(self) -> Mapping[str, Any]:
        """Return the -blockdev options of the node `disk0-storage`, and create the node's file if missing."""
        image = self.folder / f"{self.name}-disk0.qcow2"
        if not image.exists():
            await _make_disk(image, self.options.disk_mib)
        file = {"driver": "file", "filename": os.fspath(image)}
        faults = list(self.options.faults)
        return {"driver": "blkdebug", "image": file, "inject-error": faults} if faults else file


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]],
    timeout: float,  # noqa: ASYNC109 - the function is a timeout
) -> None:
    """Call a predicate every 20 ms until it returns a true value.

    Before it gives up, the function calls the predicate at least twice for each second of `timeout`. A busy machine may prolong the wait.

    Raises:
        TimeoutError: no call before the end of the wait returned a true value.
    """
    deadline, least_calls = time.monotonic() + timeout, 2 * timeout
    for calls in itertools.count(1):
        result = predicate()
        if await result if inspect.isawaitable(result) else result:
            return
        if calls > least_calls and time.monotonic() > deadline:
            raise TimeoutError(f"the condition did not hold within {timeout:g} s")
        await asyncio.sleep(_POLL_SECONDS)


async def _make_disk(image: Path, size_mib: int) -> None:
    command = ("qemu-img", "create", "-q", "-f", "qcow2", os.fspath(image), f"{size_mib}M")
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    except FileNotFoundError as error:
        raise MissingDependencyError("qemu-img is missing: install the package qemu-utils") from error
    _, errors = await process.communicate()
    if process.returncode:
        raise GuestError(f"qemu-img: {errors.decode(errors='replace').strip()}")
