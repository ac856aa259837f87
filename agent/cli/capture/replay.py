"""Replaying: a stand-in for QEMU says to an agent what was recorded, when it was said.

A question is answered as it was answered last by then, and not before it was; so the agent need not ask in the order in which it was
recorded, nor be the version that recorded it. One that was never asked is a command that this QEMU does not have.
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
from agent.cli.capture.file import CaptureLine, read, without_secrets
from agent.cli.capture.wire import READ_BYTES, RequestFrames, watching
from agent.config.model import Config


@dataclass(frozen=True, slots=True)
class RecordedExchange:
    """A question and its answer, in the file's seconds; `answered` is infinite where it never was."""

    asked: float
    answered: float
    answer: dict[str, Any]


class Recording:
    """What a file says.

    Attributes:
        greeting: QEMU's first message.
        events: what it said unasked.
        end: the seconds of the last line.
        hung_up: whether QEMU did, at the end.
    """

    def __init__(self, lines: Sequence[CaptureLine]) -> None:
        self.greeting = next((line.message for line in lines if line.message and "QMP" in line.message), {})
        self.events = [line for line in lines if line.message is not None and "event" in line.message]
        self.end = lines[-1].seconds if lines else 0.0
        self.hung_up = bool(lines) and lines[-1].message is None
        self._exchanges: dict[bytes, list[RecordedExchange]] = defaultdict(list)
        in_band, beside = deque[CaptureLine](), dict[Any, CaptureLine]()
        for line in lines:
            message = line.message or {}
            if line.side == "agent":
                if "exec-oob" in message:
                    beside[message.get("id")] = line
                else:
                    in_band.append(line)
            elif message.keys() & {"return", "error"} and (in_band or message.get("id") in beside):
                asked = beside.pop(message["id"]) if message.get("id") in beside else in_band.popleft()
                self._keep(asked, line.seconds, message)
        for asked in (*in_band, *beside.values()):
            self._keep(asked, inf, {})

    def _keep(self, asked: CaptureLine, seconds: float, answer: dict[str, Any]) -> None:
        assert asked.message is not None
        self._exchanges[_key(asked.message)].append(RecordedExchange(asked.seconds, seconds, answer))

    def exchange(self, request: dict[str, Any], seconds: float) -> RecordedExchange | None:
        """Return how such a question went when it was last asked by then, or else first; None where it never was."""
        found = self._exchanges.get(_key(without_secrets(request)))
        if found is None:
            return None
        return found[max(0, bisect_right(found, seconds, key=lambda exchange: exchange.asked) - 1)]


def _key(request: dict[str, Any]) -> bytes:
    return orjson.dumps({name: request[name] for name in request if name != "id"}, option=orjson.OPT_SORT_KEYS)


UNKNOWN = {"error": {"class": "CommandNotFound", "desc": "it was not asked when this was recorded"}}


class ReplayedMonitor:
    """Plays a tape, from when an agent connects, so many times as fast.

    Attributes:
        over: set at the tape's end, once the agent knows.
    """

    def __init__(self, tape: Recording, speed: float) -> None:
        self.over = asyncio.Event()
        self._tape = tape
        self._speed = speed
        self._start: float | None = None
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be QEMU to the agent that connects, and to no other."""
        if self._start is None:
            self._start = time.monotonic()
            _say(writer, self._tape.greeting)
            parts = (self._listen(reader, writer), self._answer(writer), self._tell(writer))
            tasks = [asyncio.create_task(part) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            if not self._tape.hung_up:
                self.over.set()
                while await reader.read(READ_BYTES):
                    pass  # it is the agent who leaves
        else:  # it has noticed that QEMU hung up, and tries again
            self.over.set()
        writer.close()

    @property
    def _now(self) -> float:
        assert self._start is not None
        return (time.monotonic() - self._start) * self._speed

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests = RequestFrames()
        while data := await reader.read(READ_BYTES):
            for request in requests.receive(data):
                if "exec-oob" not in request:
                    self._asked.put_nowait(request)
                elif (found := self._tape.exchange(request, self._now)) is not None and found.answered < inf:
                    _say(writer, found.answer | {"id": request.get("id")})

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        """Answer one question after the other."""
        while True:
            request = await self._asked.get()
            found = self._tape.exchange(request, self._now)
            if found is not None:
                # A QEMU that hung did so until the tape says, whenever it is asked meanwhile.
                await asyncio.sleep(max(0.0, found.answered - max(self._now, found.asked)) / self._speed)
            _say(writer, found.answer if found is not None else UNKNOWN)

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Say the events, each as if it happened now, and return at the end."""
        for line in self._tape.events:
            await self._reach(line.seconds)
            seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
            _say(writer, {**(line.message or {}), "timestamp": {"seconds": seconds, "microseconds": micros}})
        await self._reach(self._tape.end)

    async def _reach(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds - self._now) / self._speed)


def _say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(orjson.dumps(message) + b"\r\n")


async def replay(path: Path, config: Config, *, listen: str, speed: float) -> None:
    """Have an agent watch what a file says, to its end; its records are printed.

    Args:
        path: the file.
        config: what the agent goes by.
        listen: where its endpoint is.
        speed: how many times as fast.

    Raises:
        CaptureError: it is no such file.
        StartError: the agent cannot be started.
    """
    tape = Recording(read(path))
    if not tape.greeting:
        raise CaptureError(f"{path}: there is no QEMU's greeting in it")
    stand_in = ReplayedMonitor(tape, speed)
    with tempfile.TemporaryDirectory(prefix="qmp-agent-replay-") as folder:
        socket = Path(folder) / "monitor.qmp"
        async with await asyncio.start_unix_server(stand_in.serve, socket), watching(socket, config, listen):
            await stand_in.over.wait()
