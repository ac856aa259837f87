"""Scripted QMP monitors that issue numbered events at a given rate, and log them.

They run in a process of their own, `python -m tests.chaos.issuer`, so that neither the agent nor the judge slows them down. Like QEMU, each
monitor serves one client at a time, and issues no events without a client. The process reads commands from standard input, one per line.
`rate N` sets the events per second of all VMs together; `count` prints the number of issued events as JSON. The process exits when its
standard input is closed.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, TextIO, cast

from tests.chaos import numbered_events
from tests.lab.fake_qemu import OUT_OF_BAND, error, split_json_values
from tests.lab.transcript import Transcript

TICK_SECONDS: Final = 0.01
MAX_CATCH_UP_SECONDS: Final = 0.2
"""How much time a late tick may catch up: a longer delay issues fewer events."""
SEND_BUFFER_BYTES: Final = 32 << 10
MAX_WRITE_EVENTS: Final = 24
"""Largest number of events in one write."""


class Monitor:
    """The scripted monitor of one VM."""

    def __init__(self, vm: int, log: TextIO, transcript: Transcript) -> None:
        self.vm = vm
        self.issued = 0
        self._log = log
        self._transcript = transcript
        self._client: _ClientConnection | None = None
        self._waiting: deque[_ClientConnection] = deque()
        self._connection = -1
        self._unwritten: tuple[int, int, int] | None = None

    @property
    def ready(self) -> bool:
        """True if a client has negotiated capabilities, and the kernel has taken all earlier events."""
        client = self._client
        return (
            client is not None and client.negotiated and not client.transport.is_closing() and self._unwritten is None
        )

    def emit(self, count: int) -> int:
        """Issue `count` events in one write. Return how many were issued: 0 if the client has disconnected."""
        assert self._client is not None
        first, wall_us = self.issued, time.time_ns() // 1000
        transport = self._client.transport
        transport.write(b"".join(numbered_events.encode(self.vm, first + i, wall_us + i) for i in range(count)))
        if transport.is_closing():  # the client is gone: nothing was written
            return 0
        self.issued += count
        self._unwritten = (first, count, wall_us)
        if not transport.get_write_buffer_size():
            self.log_write()
        return count

    def log_write(self, *, whole: bool = True) -> None:
        """Log the last write. Pass `whole=False` if the client disconnected before the kernel took all of it."""
        if self._unwritten is not None:
            first, count, wall_us = self._unwritten
            at_ns = time.monotonic_ns() if whole else 0
            self._log.write(numbered_events.write_line(self.vm, self._connection, first, count, wall_us, at_ns))
            self._unwritten = None

    def on_connect(self, client: "_ClientConnection") -> None:
        """Greet a client; if another client is connected, greet it after that client has disconnected."""
        self._waiting.append(client)
        self._greet_next_client()

    def on_disconnect(self, client: "_ClientConnection") -> None:
        """Handle the disconnect of a client."""
        if client is not self._client:
            self._waiting.remove(client)
            return
        self.log_write(whole=False)
        self._log.write(numbered_events.ended_line(self.vm, self._connection, time.monotonic_ns()))
        self._client = None
        self._greet_next_client()

    def _greet_next_client(self) -> None:
        if self._client is None and self._waiting:
            self._client = self._waiting.popleft()
            self._connection += 1
            self._log.write(numbered_events.connected_line(self.vm, self._connection, time.monotonic_ns()))
            self._client.send(self._transcript.greeting)

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a command."""
        match command:
            case "query-uuid":
                return {"return": {"UUID": numbered_events.uuid_of(self.vm)}}
            case "query-name":
                return {"return": {"name": numbered_events.name_of(self.vm)}}
            case _:
                return self._transcript.answer(command, arguments)


class _ClientConnection(asyncio.Protocol):
    """The connection of one client to a scripted monitor."""

    transport: asyncio.Transport

    def __init__(self, monitor: Monitor) -> None:
        self.negotiated = False
        self._monitor = monitor
        self._text = ""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message that is not an event."""
        self.transport.write(json.dumps(message).encode() + b"\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)  # so that resume_writing means that the kernel has all
        # The agent has read all but a little of what the kernel has: an agent without CPU time gets fewer events.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._monitor.on_connect(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's own contract
        self._monitor.on_disconnect(self)

    def resume_writing(self) -> None:
        self._monitor.log_write()

    def data_received(self, data: bytes) -> None:
        requests, self._text, _ = split_json_values(self._text + data.decode())
        for request in requests:
            identity = {key: request[key] for key in ("id",) if key in request}
            self.send(self._reply(request) | identity)

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request.get("exec-oob") or request.get("execute", "")
        if command == "qmp_capabilities":
            self.negotiated = True
            return {"return": {}}
        if not self.negotiated:
            return error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        if "exec-oob" in request and command not in OUT_OF_BAND:
            return error("GenericError", f"The command {command} does not support OOB")
        return self._monitor.answer(command, request.get("arguments", {}))


class EventLoad:
    """Issues events at all monitors, at the rate that is set."""

    def __init__(self, monitors: list[Monitor], log: TextIO, seed: int) -> None:
        self._monitors = monitors
        self._log = log
        self._random = random.Random(seed)
        self._rate = 0.0

    async def issue(self) -> None:
        """Issue events until cancelled."""
        due, before = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            due, before = min(due + self._rate * (now - before), self._rate * MAX_CATCH_UP_SECONDS), now
            ready = [monitor for monitor in self._monitors if monitor.ready]
            while due >= 1 and ready:
                monitor = self._random.choice(ready)
                due -= monitor.emit(min(int(due), self._random.randint(1, MAX_WRITE_EVENTS)))
                if not monitor.ready:
                    ready.remove(monitor)

    async def read_commands(self) -> None:
        """Execute commands from standard input until it is closed."""
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := (await commands.readline()).decode():
            match line.split():
                case ["rate", rate]:
                    self._rate = float(rate)
                case ["count"]:
                    self._log.flush()
                    ready = sum(monitor.ready for monitor in self._monitors)
                    answer = {"issued": sum(monitor.issued for monitor in self._monitors), "ready": ready}
                    sys.stdout.write(f"{json.dumps(answer)}\n")
                    sys.stdout.flush()
                case _:
                    raise ValueError(line)


async def main() -> None:
    """Listen, issue events and execute commands."""
    parser = argparse.ArgumentParser(description="Issues numbered events at scripted monitors.")
    parser.add_argument("--folder", type=Path, required=True, help="directory of the sockets")
    parser.add_argument("--log", type=Path, required=True, help="path of the log")
    parser.add_argument("--vms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    transcript = Transcript.load()
    loop = asyncio.get_running_loop()
    with options.log.open("w") as log:
        monitors = [Monitor(vm, log, transcript) for vm in range(options.vms)]
        for monitor in monitors:
            path = options.folder / f"{numbered_events.name_of(monitor.vm)}.qmp"
            await loop.create_unix_server(lambda monitor=monitor: _ClientConnection(monitor), os.fspath(path))  # type: ignore[misc]
        load = EventLoad(monitors, log, options.seed)
        task = asyncio.create_task(load.issue())
        await asyncio.wait({task, asyncio.create_task(load.read_commands())}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
