"""A scripted QMP monitor, for behaviour that a real QEMU does not show on demand.

By default, the monitor behaves like QEMU. It serves one client at a time and refuses commands before the handshake. It runs commands in
order, but `exec-oob` at once. It ends each reply with CRLF. The default replies were captured from a real QEMU, see `transcript.py`.
"""

import asyncio
import codecs
import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.lab.transcript import Transcript

OUT_OF_BAND = frozenset({"migrate-pause", "migrate-recover", "query-yank", "yank"})


@dataclass(frozen=True, slots=True)
class FakeError:
    """An error reply."""

    kind: str = "GenericError"
    text: str = "it does not work"


Reply = Any | FakeError | Callable[[dict[str, Any]], Any]
"""The `return` value of a reply, or a FakeError, or a function that returns one of these for the command's arguments."""


class FakeQemu:
    """A QMP monitor at a Unix socket. As an async context manager, it listens while the `with` block runs.

    Attributes:
        path: The path of the socket.
        replies: The reply to each command; tests may change it at any time. The transcript has the replies to other commands. The error
            CommandNotFound is the reply to commands that are in neither.
        greeting: The first message to a client.
        requests: All requests of all clients, oldest first, including the handshakes.
        pretty: Whether replies span several lines, as with QEMU's `pretty=on`.
        clients: The number of clients that got a greeting.
    """

    def __init__(
        self,
        path: Path,
        *,
        replies: Mapping[str, Reply] | None = None,
        greeting: Mapping[str, Any] | None = None,
        pretty: bool = False,
        transcript: Transcript | None = None,
    ) -> None:
        self.path = path
        self.transcript = transcript or Transcript.load()
        self.replies: dict[str, Reply] = dict(replies or {})
        self.greeting: Mapping[str, Any] = self.transcript.greeting if greeting is None else greeting
        self.requests: list[dict[str, Any]] = []
        self.pretty = pretty
        self.clients = 0
        self._held: dict[str, asyncio.Event] = {}
        self._free = asyncio.Event()
        self._free.set()
        self._request_received = asyncio.Condition()
        self._client: _Client | None = None
        self._session: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # --- Controls for tests ---

    def emit(self, event: str, data: Mapping[str, Any] | None = None, *, at: float | None = None) -> None:
        """Send an event to the client. Without a client that has completed the handshake, the event is lost, as in QEMU.

        Args:
            event: The event's name.
            data: The event's data; None for an event without data.
            at: The event's time in seconds since 1970; None for now.
        """
        seconds, microseconds = divmod(round((time.time() if at is None else at) * 1_000_000), 1_000_000)
        message: dict[str, Any] = {"timestamp": {"seconds": seconds, "microseconds": microseconds}, "event": event}
        if data is not None:
            message["data"] = data
        if self._client is not None and self._client.negotiated:
            self._client.send(message)

    def send_raw(self, raw: bytes) -> None:
        """Send these bytes to the client unchanged."""
        assert self._client is not None, "there is no client"
        self._client.write(raw)

    def hang(self, command: str) -> None:
        """Withhold the reply to this command until `release` is called. Later in-band commands wait, too."""
        self._held.setdefault(command, asyncio.Event())

    def release(self, command: str) -> None:
        """End `hang` for this command, and send the withheld reply."""
        held = self._held.pop(command, None)
        if held is not None:
            held.set()

    def busy(self) -> None:
        """Act as if another client held the monitor: accept connections, but send no greeting."""
        self._free.clear()
        self.drop()

    def free(self) -> None:
        """End `busy`, and send the greeting to the client that waits."""
        self._free.set()

    def drop(self) -> None:
        """Close the connection of the current client, if there is one."""
        if self._session is not None:
            self._session.cancel()

    async def wait_for(self, command: str, times: int = 1) -> None:
        """Wait until the command has been received this many times in total."""
        async with self._request_received:
            await self._request_received.wait_for(lambda: self.count(command) >= times)

    def count(self, command: str) -> int:
        """Return how many times the command has been received."""
        return sum(command in (request.get("execute"), request.get("exec-oob")) for request in self.requests)

    # --- The server ---

    async def start(self) -> None:
        """Listen."""
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self.path.unlink(missing_ok=True)
        listener.bind(os.fspath(self.path))
        listener.listen(1)  # like QEMU's: while one client is served, two more may connect
        self._task = asyncio.create_task(self._serve(listener))

    async def stop(self, *, leave_socket: bool = False) -> None:
        """Close the connection and stop listening.

        Args:
            leave_socket: Whether the file of the socket stays, as after a crash of QEMU. Connections to it are refused then.
        """
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if not leave_socket:
            self.path.unlink(missing_ok=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, listener: socket.socket) -> None:
        with listener:
            while True:
                await self._free.wait()
                connected, _ = await asyncio.get_running_loop().sock_accept(listener)
                reader, writer = await asyncio.open_unix_connection(sock=connected)
                self._client = _Client(self, reader, writer)
                self.clients += 1
                self._session = asyncio.create_task(self._client.serve())
                try:
                    await asyncio.wait([self._session])
                    if not self._session.cancelled():
                        self._session.result()
                finally:
                    self._session.cancel()
                    self._client = self._session = None

    async def record_request(self, request: dict[str, Any]) -> None:
        """Append a request to `requests`."""
        self.requests.append(request)
        async with self._request_received:
            self._request_received.notify_all()

    async def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a command. Wait while the reply is withheld."""
        held = self._held.get(command)
        if held is not None:
            await held.wait()
        if command not in self.replies:
            return self.transcript.answer(command, arguments)
        reply = self.replies[command]
        if callable(reply):
            reply = reply(arguments)
        return error(reply.kind, reply.text) if isinstance(reply, FakeError) else {"return": reply}


class _Client:
    """A client's connection to a FakeQemu, from the greeting to the end."""

    def __init__(self, fake: FakeQemu, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.negotiated = False
        self._oob = False
        self._fake = fake
        self._reader = reader
        self._writer = writer
        self._in_band: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps(message, indent=4 if self._fake.pretty else None)
        self.write(text.replace("\n", "\r\n").encode() + b"\r\n")

    def write(self, raw: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(raw)

    async def serve(self) -> None:
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._reply_in_order())]
        try:
            self.send(self._fake.greeting)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises the error of a reply function that failed
        finally:
            for task in tasks:
                task.cancel()
            self._writer.close()

    async def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = ""
        while True:
            try:
                data = await self._reader.read(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            requests, text, broken = split_json_values(text + decoder.decode(data))
            for request in requests:
                await self._handle_request(request)
            if broken:
                self.send(error("GenericError", "JSON parse error, expecting value"))

    async def _handle_request(self, request: Any) -> None:
        if not isinstance(request, dict):
            self.send(error("GenericError", "QMP input must be a JSON object"))
            return
        await self._fake.record_request(request)
        identity = {key: request[key] for key in ("id",) if key in request}
        if "exec-oob" not in request:
            self._in_band.put_nowait(request)
        elif not self._oob:
            self.send(error("GenericError", "QMP input member 'exec-oob' is unexpected") | identity)
        elif request["exec-oob"] not in OUT_OF_BAND:
            text = f"The command {request['exec-oob']} does not support OOB"
            self.send(error("GenericError", text) | identity)
        else:
            self.send(await self._fake.answer(request["exec-oob"], request.get("arguments", {})) | identity)

    async def _reply_in_order(self) -> None:
        """Reply to the in-band commands, one after the other."""
        while True:
            request = await self._in_band.get()
            command = request.get("execute", "")
            if command == "qmp_capabilities" or not self.negotiated:
                reply = self._negotiate(command, request.get("arguments", {}))
            else:
                reply = await self._fake.answer(command, request.get("arguments", {}))
            if isinstance(raw := self._fake.replies.get(command), bytes):
                self.write(raw)
            else:
                self.send(reply | {key: request[key] for key in ("id",) if key in request})

    def _negotiate(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command != "qmp_capabilities":
            return error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        if self.negotiated:
            return error("CommandNotFound", "Capabilities negotiation is already complete, command ignored")
        enabled = set(arguments.get("enable", ()))
        missing = enabled - set(self._fake.greeting["QMP"]["capabilities"])
        if missing:
            return error("GenericError", f"Capability '{missing.pop()}' not available")
        self._oob = "oob" in enabled
        self.negotiated = True
        return {"return": {}}


def error(kind: str, text: str) -> dict[str, Any]:
    """Return an error reply in QEMU's form."""
    return {"error": {"class": kind, "desc": text}}


def split_json_values(text: str) -> tuple[list[Any], str, bool]:
    """Split received text into JSON values. The values need no separator.

    Returns:
        The complete values, an incomplete value at the end (or an empty text), and whether a part of the text is invalid JSON.
    """
    # QEMU's parser is reset by a control character, and by the character for the byte 0xFF.
    before, *after = re.split(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd]", text)
    values = []
    rest = before.lstrip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError:
            break
        values.append(value)
        rest = rest[end:].lstrip()
    if after:
        later_values, rest, _ = split_json_values(after[-1])
        return values + later_values, rest, True
    outside_strings = re.sub(r'"(\\.|[^"\\])*("|$)', "", rest)
    if rest and outside_strings.count("}") >= outside_strings.count("{"):
        return values, "", True  # the braces are balanced, but the text is not JSON
    return values, rest, False
