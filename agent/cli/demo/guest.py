"""Real QEMU processes, started and ended by us, whose guests do something worth watching."""

import asyncio
import contextlib
import inspect
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

from agent.cli.demo.control import Control, GuestError
from agent.cli.demo.images import LabMissing, boot_sector, linux_image

_LONGEST_SOCKET_PATH: Final = 107  # bytes: what struct sockaddr_un holds
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02


class GuestKind(StrEnum):
    """What runs in the virtual machine."""

    IDLE = "idle"  # no processor and no disk: a monitor that answers, for little memory
    WRITER = "writer"  # a boot sector that writes to `disk0` for ever
    LINUX = "linux"  # a Linux that writes to `disk0` with flushes and has the balloon `balloon0`


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """How a guest is made.

    Attributes:
        kind: what runs in it.
        memory_mib: its memory; by default 64 MiB, 128 for a Linux.
        disk_mib: size of `disk0` as the guest sees it. The file of it grows with what is written.
        span_mib: how much of the disk is written to before the guest starts over; by default all of it.
        write_kib: size of one write, by default 4 KiB (a boot sector can do 63 at most), 1024 for a Linux.
        pause_seconds: time between two writes, by default 2 ms, 1 s for a Linux.
        disk_options: more properties of the disk's device, such as `werror=stop`.
        faults: rules of QEMU's blkdebug driver (`inject-error`) that `disk0-storage` breaks by; none: a plain file.
        extra: more arguments of QEMU, after ours.
        binary: the QEMU to run.
        accel: what executes it, as QEMU's `-accel` takes it.
    """

    kind: GuestKind = GuestKind.IDLE
    memory_mib: int | None = None
    disk_mib: int = 64
    span_mib: int | None = None
    write_kib: int | None = None
    pause_seconds: float | None = None
    disk_options: str = ""
    faults: Sequence[Mapping[str, Any]] = ()
    extra: Sequence[str] = ()
    binary: str = "qemu-system-x86_64"
    accel: str = "tcg"


class Guest:
    """One QEMU process; as an async context manager it runs from entering to leaving.

    It can be started again after a stop: its name, UUID and disk stay. It cannot outlive the thread that starts it.

    Attributes:
        name: QEMU's -name.
        uuid: QEMU's -uuid.
        folder: where its files are, all named after it.
        monitor: the QMP socket that an agent may take, `<name>.qmp`.
        control: the QMP socket that we take ourselves; `command` and `event` go over it.
        process: the running process, None before start and after stop.
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
        self._line: Control | None = None
        self._log = folder / f"{name}.log"
        self._serial = folder / f"{name}.serial"

    async def start(self) -> None:
        """Start QEMU and return when its monitors answer, which is before the guest has booted.

        Raises:
            GuestError: if QEMU ends or does not answer; with the last lines that it said.
            LabMissing: if a program or package that it takes is not there.
        """
        if len(os.fsencode(self.control)) > _LONGEST_SOCKET_PATH:
            raise GuestError(f"{self.control} is too long for the path of a socket: choose another folder")
        for program in ("setpriv", self.options.binary):
            if shutil.which(program) is None:
                raise LabMissing(f"there is no {program}: install QEMU (qemu-system-x86) and util-linux")
        self._unlink_sockets()
        self._serial.unlink(missing_ok=True)
        arguments = await self._arguments()
        client = socket.socket(socket.AF_UNIX)
        # QEMU is handed a listening socket to which we are connected before it runs: its first answer says that it is
        # ready, the end of the connection that it has died, and nobody need ask for either.
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
                self._line = await Control.open(client)
        except (GuestError, OSError) as error:
            await self.stop()
            raise GuestError(f"{self.name} did not start ({error}): {self.last_words()}") from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End QEMU, if it runs: asked first, then killed."""
        if self._line is not None:
            await self._line.close()
            self._line = None
        if self.process is not None:
            self.send_signal(signal.SIGCONT)  # in case somebody has stopped it
            self.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                await self.kill()
            self.process = None
        self._unlink_sockets()

    async def kill(self) -> None:
        """End QEMU as a crash would: no event, and its sockets stay behind until the next start or stop."""
        if self.process is not None:
            self.send_signal(signal.SIGKILL)
            await self.process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send QEMU a signal, if it still runs: SIGSTOP makes it hang, SIGCONT go on."""
        # Not by the process object: that looks for its end first, under the feet of asyncio, which then misses it.
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def command(self, command: str, /, **arguments: Any) -> Any:
        """Ask QEMU over the control socket and return the answer; `a_b=1` is sent as `"a-b": 1`.

        Raises:
            GuestError: if QEMU answers with an error, is gone, or was not started.
        """
        return await self._connected().command(command, **arguments)

    async def event(self, name: str, timeout: float = 10.0) -> dict[str, Any]:  # noqa: ASYNC109 - as in `until`
        """Take the oldest event of that name not taken yet, waiting up to `timeout` seconds for one.

        Raises:
            TimeoutError: if none came in time.
            GuestError: if QEMU is gone, or was not started.
        """
        async with asyncio.timeout(timeout):
            return await self._connected().event(name)

    async def booted(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - as in `until`
        """Wait until the guest is at its work: a Linux says so on its console, a writer has written.

        Raises:
            TimeoutError: if it does not come to that in `timeout` seconds.
        """
        match self.options.kind:
            case GuestKind.LINUX:
                await until(lambda: "READY" in self._console(), timeout)
            case GuestKind.WRITER:
                await until(self.writes, timeout)

    async def writes(self) -> int:
        """Return how many writes `disk0` has completed since QEMU's start."""
        devices = await self.command("query-blockstats")
        return sum(device["stats"]["wr_operations"] for device in devices if "disk0" in device.get("qdev", ""))

    async def highest(self) -> int:
        """Return where the highest write to what `disk0` lies on ended, in bytes."""
        devices = await self.command("query-blockstats")
        disk = next(device for device in devices if "disk0" in device.get("qdev", ""))
        return int(disk["parent"]["stats"]["wr_highest_offset"])

    def last_words(self, lines: int = 5) -> str:
        """Return the last lines that QEMU wrote to its standard output and error."""
        said = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return " / ".join(said[-lines:]) or "it said nothing"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _console(self) -> str:
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def _connected(self) -> Control:
        if self._line is None:
            raise GuestError(f"{self.name} does not run")
        return self._line

    def _unlink_sockets(self) -> None:
        self.monitor.unlink(missing_ok=True)
        self.control.unlink(missing_ok=True)

    async def _arguments(self) -> list[str]:
        """Return QEMU's arguments but for the control socket, making the images they name."""
        options = self.options
        memory = options.memory_mib or (128 if options.kind is GuestKind.LINUX else 64)
        arguments = ["-name", self.name, "-uuid", self.uuid, "-accel", options.accel, "-m", str(memory)]
        arguments += ["-nodefaults", "-vga", "none", "-display", "none"]
        arguments += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        match options.kind:
            case GuestKind.IDLE:
                arguments += ["-machine", "none"]
            case GuestKind.WRITER:
                arguments += [*self._boot_disk(), *await self._disk()]
            case GuestKind.LINUX:
                arguments += [*await self._linux(), *await self._disk(), "-device", "virtio-balloon-pci,id=balloon0"]
        return arguments

    def _boot_disk(self) -> list[str]:
        options = self.options
        image = self.folder / f"{self.name}-boot.raw"
        image.write_bytes(
            boot_sector(
                sectors_per_write=(options.write_kib or 4) * 2,
                last_sector=(options.span_mib or options.disk_mib) * 2048 - 1,
                pause_us=round((0.002 if options.pause_seconds is None else options.pause_seconds) * 1e6),
            )
        )
        os.truncate(image, 1 << 20)  # a BIOS boots from no disk of less than one cylinder
        storage = {"driver": "file", "node-name": "boot-storage", "filename": os.fspath(image), "read-only": True}
        node = {"driver": "raw", "node-name": "boot-format", "file": "boot-storage", "read-only": True}
        return [
            *("-blockdev", json.dumps(storage), "-blockdev", json.dumps(node)),
            *("-device", "virtio-blk-pci,id=boot,drive=boot-format,bootindex=1"),
        ]

    async def _linux(self) -> list[str]:
        options = self.options
        image = await asyncio.to_thread(linux_image)
        work = {
            "WRITE_KIB": options.write_kib or 1024,
            "PAUSE_SECONDS": 1 if options.pause_seconds is None else options.pause_seconds,
            "SPAN_MIB": options.span_mib or options.disk_mib,
        }
        line = " ".join(["console=ttyS0", "quiet", *(f"{name}={value}" for name, value in work.items())])
        console = ["-chardev", f"file,id=serial,path={self._serial}", "-serial", "chardev:serial"]
        return ["-kernel", os.fspath(image.kernel), "-initrd", os.fspath(image.initramfs), "-append", line, *console]

    async def _disk(self) -> list[str]:
        """Return the arguments of `disk0`: a device on qcow2 node `disk0-format` on node `disk0-storage`."""
        storage = {**await self._storage(), "node-name": "disk0-storage"}
        node = {"driver": "qcow2", "node-name": "disk0-format", "file": "disk0-storage"}
        device = ",".join(filter(None, ["virtio-blk-pci,id=disk0,drive=disk0-format", self.options.disk_options]))
        return [
            *("-blockdev", json.dumps(storage)),
            *("-blockdev", json.dumps(node), "-device", device),
        ]

    async def _storage(self) -> Mapping[str, Any]:
        """Return what `disk0` lies on, as QEMU's block drivers take it: a file, made where it is not there yet."""
        image = self.folder / f"{self.name}-disk0.qcow2"
        if not image.exists():
            await _make_disk(image, self.options.disk_mib)
        file = {"driver": "file", "filename": os.fspath(image)}
        faults = list(self.options.faults)
        return {"driver": "blkdebug", "image": file, "inject-error": faults} if faults else file


async def until(
    predicate: Callable[[], object | Awaitable[object]],
    timeout: float,  # noqa: ASYNC109 - the deadline is the point
) -> None:
    """Wait until the predicate holds, asking every 20 ms: for what no event tells of.

    Raises:
        TimeoutError: if it does not hold within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout:g} s")
        await asyncio.sleep(_POLL_SECONDS)


async def _make_disk(image: Path, size_mib: int) -> None:
    command = ("qemu-img", "create", "-q", "-f", "qcow2", os.fspath(image), f"{size_mib}M")
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    except FileNotFoundError as error:
        raise LabMissing("there is no qemu-img: install the package qemu-utils") from error
    _, said = await process.communicate()
    if process.returncode:
        raise GuestError(f"qemu-img: {said.decode(errors='replace').strip()}")
