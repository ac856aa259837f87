"""Recording: an agent of our own watches the monitor through us, and all that passes is written down."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from agent.cli.capture import CaptureError
from agent.cli.capture.file import CaptureWriter, Side
from agent.cli.capture.wire import READ_BYTES, RequestFrames, watching
from agent.config.model import Config
from agent.model.record import sanitize
from agent.qmp.errors import ProtocolError
from agent.qmp.frames import Frames, Unreadable
from agent.qmp.protocol import MAX_MESSAGE_BYTES

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def record(monitor: str, path: Path, config: Config, *, seconds: float, max_bytes: int) -> str:
    """Record a monitor until QEMU hangs up, for at most so long and so many bytes; return what was done.

    Args:
        monitor: a socket's path, or tcp:host:port.
        path: the file, which must not be there yet.
        config: what the agent that asks goes by.
        seconds: the longest that it takes.
        max_bytes: the most that is written.

    Raises:
        CaptureError: the monitor cannot be had, or the file cannot be written.
        StartError: the agent cannot be started.
    """
    qemu, first = await _taken(monitor, config.timeouts.greeting)
    with contextlib.closing(qemu[1]), contextlib.closing(CaptureWriter(path, monitor, max_bytes)) as to:
        between = _RecordingProxy(qemu, first, to)
        with tempfile.TemporaryDirectory(prefix="qmp-agent-record-") as folder:
            socket = Path(folder) / "monitor.qmp"
            async with await asyncio.start_unix_server(between.serve, socket), watching(socket, config, "127.0.0.1:0"):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(between.over.wait(), seconds)
    if between.trouble is not None:
        raise CaptureError(f"{path}: {between.trouble}")
    return f"{to.lines} messages are in {path}{', which is full' if to.full else ''}"


async def _taken(monitor: str, deadline: float) -> tuple[Stream, bytes]:
    """Return a connection to a monitor that is free, and the first bytes that came over it."""
    try:
        async with asyncio.timeout(deadline):
            if monitor.startswith("tcp:"):
                host, _, port = monitor.removeprefix("tcp:").rpartition(":")
                qemu = await asyncio.open_connection(host.strip("[]"), int(port))
            else:
                qemu = await asyncio.open_unix_connection(monitor)
            if first := await qemu[0].read(READ_BYTES):
                return qemu, first
    except TimeoutError:
        raise CaptureError(f"{sanitize(monitor)}: no greeting within {deadline:g} s: another client holds it") from None
    except (OSError, ValueError) as error:
        raise CaptureError(f"{sanitize(monitor)}: {error}") from error
    raise CaptureError(f"{sanitize(monitor)}: it hung up")


class _Cutter(Protocol):
    def receive(self, data: bytes) -> Iterable[Any]: ...


class _RecordingProxy:
    """Between one agent and one QEMU.

    Attributes:
        over: set when no more can be had: QEMU hung up, and the agent knows, or the file takes no more.
        trouble: why it takes no more, where that is not its size.
    """

    def __init__(self, qemu: Stream, first: bytes, to: CaptureWriter) -> None:
        self.over = asyncio.Event()
        self.trouble: OSError | None = None
        self._qemu: Stream | None = qemu
        self._first = first
        self._to = to

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what the agent that connects and QEMU say to each other."""
        qemu, self._qemu = self._qemu, None
        if qemu is None:  # as QEMU we serve one; this one has noticed that we hung up, and tries again
            self.over.set()
            writer.close()
            return
        ways = (
            asyncio.create_task(self._pass(reader, qemu[1], "agent", RequestFrames())),
            asyncio.create_task(self._pass(qemu[0], writer, "qemu", Frames(MAX_MESSAGE_BYTES), self._first)),
        )
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        if not reader.at_eof() and reader.exception() is None:  # the agent has not left, so QEMU has
            self._put("qemu", None)
        if self._to.full or self.trouble is not None:
            self.over.set()
        writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: Side, cutter: _Cutter, data: bytes = b""
    ) -> None:
        """Write down and pass on what one side says until it hangs up, breaks the protocol, or there is no room."""
        with contextlib.suppress(ConnectionError, ProtocolError):
            while (data := data or await reader.read(READ_BYTES)) and not self._to.full and self.trouble is None:
                for message in cutter.receive(data):
                    if not isinstance(message, Unreadable):  # the file holds JSON
                        self._put(side, message)
                writer.write(data)
                await writer.drain()
                data = b""

    def _put(self, side: Side, message: dict[str, Any] | None) -> None:
        try:
            self._to.put(side, message)
        except OSError as error:
            self.trouble = self.trouble or error
