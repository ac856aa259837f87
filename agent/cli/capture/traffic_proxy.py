"""Captures the QMP traffic of a monitor. An agent watches the monitor through a proxy, and the proxy writes the traffic to a file."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from agent.cli.capture import CaptureError
from agent.cli.capture.agent_runner import READ_BYTES, RequestSplitter, run_agent_on_monitor
from agent.cli.capture.capture_file import CaptureWriter, Sender
from agent.config.model import Config
from agent.model.record import sanitize
from agent.qmp.errors import ProtocolError
from agent.qmp.frames import FrameSplitter, UnreadableMessage, UnreadableMessageKind
from agent.qmp.protocol import MAX_MESSAGE_BYTES

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

UNREADABLE_REPLY = {"error": {"class": "GenericError", "desc": "qmp-agent capture could not read this reply"}}
"""Replaces an unreadable reply in the file. `replay` matches replies to commands by their order, so no reply may be absent."""


async def capture_traffic(monitor: str, path: Path, config: Config, *, seconds: float, max_bytes: int) -> str:
    """Capture the traffic of a monitor until QEMU closes the connection or a limit is reached.

    Args:
        monitor: the path of a socket, or tcp:host:port.
        path: the file, which must not exist.
        config: the agent's config, whose monitors, sinks, endpoint and Alertmanager are not used.
        seconds: the maximum duration in seconds.
        max_bytes: the maximum size of the file in bytes.

    Returns:
        The outcome: a line for the user.

    Raises:
        CaptureError: the monitor cannot be reached, another client holds the monitor, or the file cannot be written.
        StartError: the agent cannot start.
    """
    qemu, first_bytes = await _connect(monitor, config.timeouts.greeting)
    with contextlib.closing(qemu[1]), contextlib.closing(CaptureWriter(path, monitor, max_bytes)) as file:
        proxy = CapturingProxy(qemu, first_bytes, file)
        with tempfile.TemporaryDirectory(prefix="qmp-agent-capture-") as folder:
            socket = Path(folder) / "monitor.qmp"
            async with (
                await asyncio.start_unix_server(proxy.serve, socket),
                run_agent_on_monitor(socket, config, "127.0.0.1:0"),
            ):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(proxy.ended.wait(), seconds)
    if proxy.error is not None:
        raise CaptureError(f"{path}: {proxy.error}")
    return f"{file.message_count} messages written to {path}{' (size limit reached)' if file.is_full else ''}"


async def _connect(monitor: str, deadline: float) -> tuple[Stream, bytes]:
    """Connect to a monitor that no other client holds. Return the connection, and the first bytes that QEMU sent."""
    try:
        async with asyncio.timeout(deadline):
            if monitor.startswith("tcp:"):
                host, _, port = monitor.removeprefix("tcp:").rpartition(":")
                qemu = await asyncio.open_connection(host.strip("[]"), int(port))
            else:
                qemu = await asyncio.open_unix_connection(monitor)
            if first_bytes := await qemu[0].read(READ_BYTES):
                return qemu, first_bytes
    except TimeoutError:
        raise CaptureError(
            f"{sanitize(monitor)}: no greeting within {deadline:g} s: another client holds the monitor"
        ) from None
    except (OSError, ValueError) as error:
        raise CaptureError(f"{sanitize(monitor)}: {error}") from error
    raise CaptureError(f"{sanitize(monitor)}: QEMU closed the connection")


class _MessageSplitter(Protocol):
    def receive(self, data: bytes) -> Iterable[Any]: ...


class CapturingProxy:
    """A proxy between one agent and one QEMU. The proxy writes the traffic to a file.

    Attributes:
        ended: set when the file is full or cannot be written, or when the agent reconnects after QEMU closed the connection.
        error: why the file cannot be written, or None.
    """

    def __init__(self, qemu: Stream, first_bytes: bytes, file: CaptureWriter) -> None:
        self.ended = asyncio.Event()
        self.error: OSError | None = None
        self._qemu: Stream | None = qemu
        self._first = first_bytes
        self._file = file

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward the traffic between QEMU and the agent that connects."""
        qemu, self._qemu = self._qemu, None
        if qemu is None:  # the agent reconnects after it has handled the end of the first connection
            self.ended.set()
            writer.close()
            return
        directions = (
            asyncio.create_task(self._forward(reader, qemu[1], "agent", RequestSplitter())),
            asyncio.create_task(self._forward(qemu[0], writer, "qemu", FrameSplitter(MAX_MESSAGE_BYTES), self._first)),
        )
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in directions:
            direction.cancel()
        if not reader.at_eof() and reader.exception() is None:  # QEMU closed the connection, not the agent
            self._write_message("qemu", None)
        if self._file.is_full or self.error is not None:
            self.ended.set()
        writer.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        side: Sender,
        splitter: _MessageSplitter,
        data: bytes = b"",
    ) -> None:
        """Record and forward the messages of one side until the sender closes the connection or the file is full.

        Args:
            reader: the connection to read from.
            writer: the connection to forward to.
            side: the sender of the messages.
            splitter: splits the bytes into messages.
            data: bytes that were already read.
        """
        with contextlib.suppress(ConnectionError, ProtocolError):
            while (data := data or await reader.read(READ_BYTES)) and not self._file.is_full and self.error is None:
                for message in splitter.receive(data):
                    if not isinstance(message, UnreadableMessage):
                        self._write_message(side, message)
                    elif message.kind is UnreadableMessageKind.REPLY:
                        self._write_message(side, UNREADABLE_REPLY)
                writer.write(data)
                await writer.drain()
                data = b""

    def _write_message(self, side: Sender, message: dict[str, Any] | None) -> None:
        try:
            self._file.write_message(side, message)
        except OSError as error:
            self.error = self.error or error
