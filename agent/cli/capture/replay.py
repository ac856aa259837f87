"""Replays a capture file: a fake QEMU sends the captured messages to an agent at their captured times.

The fake QEMU answers a command with the captured reply to the same command. If the command was captured several times, the fake QEMU
uses the last exchange before the current time. The fake QEMU never sends a reply before its captured time. The agent may send its commands
in another order, so a different agent version can replay the file. The fake QEMU answers a command that is not in the file with
CommandNotFound.
"""

import asyncio
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import orjson

from agent.cli.capture import CaptureError
from agent.cli.capture.agent_runner import READ_BYTES, RequestSplitter, run_agent_on_monitor
from agent.cli.capture.capture_file import CaptureLine, read_capture, remove_secrets
from agent.config.model import Config


@dataclass(frozen=True, slots=True)
class CapturedReply:
    """The reply to a captured command, and the times of both in seconds since the header. `replied_at` is infinite without a reply."""

    sent_at: float
    replied_at: float
    reply: dict[str, Any]


class Capture:
    """The content of a capture file.

    Attributes:
        greeting: QEMU's greeting.
        events: QEMU's events.
        duration_seconds: the time of the last line, in seconds since the header.
        closed_by_qemu: whether QEMU closed the connection at the end of the capture.
    """

    def __init__(self, lines: Sequence[CaptureLine]) -> None:
        self.greeting = next((line.message for line in lines if line.message and "QMP" in line.message), {})
        self.events = [line for line in lines if line.message is not None and "event" in line.message]
        self.duration_seconds = lines[-1].seconds if lines else 0.0
        self.closed_by_qemu = bool(lines) and lines[-1].message is None
        self._exchanges: dict[bytes, list[CapturedReply]] = defaultdict(list)
        in_band, out_of_band = deque[CaptureLine](), dict[Any, CaptureLine]()
        for line in lines:
            message = line.message or {}
            if line.sender == "agent":
                if "exec-oob" in message:
                    out_of_band[message.get("id")] = line
                else:
                    in_band.append(line)
            elif message.keys() & {"return", "error"} and (in_band or message.get("id") in out_of_band):
                is_oob = message.get("id") in out_of_band
                command = out_of_band.pop(message["id"]) if is_oob else in_band.popleft()
                self._add(command, line.seconds, message)
        for command in (*in_band, *out_of_band.values()):
            self._add(command, inf, {})

    def _add(self, command: CaptureLine, replied_at: float, reply: dict[str, Any]) -> None:
        assert command.message is not None
        self._exchanges[_command_key(command.message)].append(CapturedReply(command.seconds, replied_at, reply))

    def find_reply(self, request: dict[str, Any], seconds: float) -> CapturedReply | None:
        """Return the last captured exchange of a command before a time.

        Args:
            request: the command with its arguments.
            seconds: the time in seconds since the header.

        Returns:
            The exchange; the first exchange if all exchanges are later than `seconds`. None if the command is not in the capture.
        """
        exchanges = self._exchanges.get(_command_key(remove_secrets(request)))
        if exchanges is None:
            return None
        return exchanges[max(0, bisect_right(exchanges, seconds, key=lambda exchange: exchange.sent_at) - 1)]


def _command_key(request: dict[str, Any]) -> bytes:
    return orjson.dumps({name: request[name] for name in request if name != "id"}, option=orjson.OPT_SORT_KEYS)


NOT_CAPTURED = {"error": {"class": "CommandNotFound", "desc": "this command is not in the capture"}}


def _id_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the member of the reply that repeats the request's id, or an empty object without an id."""
    return {"id": request["id"]} if "id" in request else {}


class ReplayedMonitor:
    """A fake QEMU monitor that replays a capture to the first agent that connects.

    Attributes:
        ended: set at the end of the capture. For a capture in which QEMU closed the connection, set when the agent reconnects.
    """

    def __init__(self, capture: Capture, speed: float) -> None:
        self.ended = asyncio.Event()
        self._capture = capture
        self._speed = speed
        self._start: float | None = None
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Replay the capture on the first connection, and set `ended` at its end.

        If QEMU closed the captured connection, set `ended` when the agent reconnects.
        """
        if self._start is None:
            self._start = time.monotonic()
            _send(writer, self._capture.greeting)
            loops = (self._read_requests(reader, writer), self._reply_in_order(writer), self._send_events(writer))
            tasks = [asyncio.create_task(loop) for loop in loops]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            if not self._capture.closed_by_qemu:
                self.ended.set()
                while await reader.read(READ_BYTES):
                    pass  # wait until the agent closes the connection
        else:  # the agent reconnects after it has handled the end of the first connection
            self.ended.set()
        writer.close()

    @property
    def _now(self) -> float:
        assert self._start is not None
        return (time.monotonic() - self._start) * self._speed

    async def _read_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests = RequestSplitter()
        while data := await reader.read(READ_BYTES):
            for request in requests.receive(data):
                if "exec-oob" not in request:
                    self._requests.put_nowait(request)
                elif (
                    exchange := self._capture.find_reply(request, self._now)
                ) is not None and exchange.replied_at < inf:
                    _send(writer, exchange.reply | _id_of(request))

    async def _reply_in_order(self, writer: asyncio.StreamWriter) -> None:
        """Reply to the in-band commands one after the other, until cancelled."""
        while True:
            request = await self._requests.get()
            exchange = self._capture.find_reply(request, self._now)
            if exchange is not None:
                # Send a late reply of a hung QEMU at its captured time, even if the command arrives later than in the capture.
                await asyncio.sleep(max(0.0, exchange.replied_at - max(self._now, exchange.sent_at)) / self._speed)
            reply = exchange.reply if exchange is not None else NOT_CAPTURED
            _send(writer, {key: value for key, value in reply.items() if key != "id"} | _id_of(request))

    async def _send_events(self, writer: asyncio.StreamWriter) -> None:
        """Send the events at their captured times, with the current time as their timestamp. Return at the end of the capture."""
        for line in self._capture.events:
            await self._sleep_until(line.seconds)
            seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
            _send(writer, {**(line.message or {}), "timestamp": {"seconds": seconds, "microseconds": micros}})
        await self._sleep_until(self._capture.duration_seconds)

    async def _sleep_until(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds - self._now) / self._speed)


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(orjson.dumps(message) + b"\r\n")


async def replay_capture(path: Path, config: Config, *, listen: str, speed: float) -> None:
    """Replay a capture file to an agent and print the agent's records.

    Args:
        path: the capture file.
        config: the agent's config, whose monitors, sinks, endpoint and Alertmanager are not used.
        listen: the address of the agent's endpoint, `host:port`.
        speed: factor by which the replay is faster than the capture.

    Raises:
        CaptureError: the file is not a capture file, or it has no greeting.
        StartError: the agent cannot start.
    """
    capture = Capture(read_capture(path))
    if not capture.greeting:
        raise CaptureError(f"{path}: the file has no greeting from QEMU")
    monitor = ReplayedMonitor(capture, speed)
    with tempfile.TemporaryDirectory(prefix="qmp-agent-replay-") as folder:
        socket = Path(folder) / "monitor.qmp"
        async with await asyncio.start_unix_server(monitor.serve, socket), run_agent_on_monitor(socket, config, listen):
            await monitor.ended.wait()
