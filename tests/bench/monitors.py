"""Many scripted monitors in one process, which send the replies of a real QEMU 7.2 with two disks at once.

They serve to measure the cost of a client: a fleet of real QEMUs takes a hundred times the memory. Each has its own UUID and name.
"""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast
from uuid import UUID

from tests.lab.fake_qemu import split_json_values
from tests.lab.transcript import Transcript

_COMMAND: Final = re.compile(rb'"(?:execute|exec-oob)"\s*:\s*"([a-z_-]+)"')
_IDLE: Final = re.compile(rb'(?<="idle_time_ns": )\d+')
_BLOCK: Final = Path(__file__).parent.parent / "golden" / "collectors" / "block.json"


def two_disks() -> list[dict[str, Any]]:
    """Return the reply of a real QEMU with two disks to query-blockstats."""
    reply: list[dict[str, Any]] = json.loads(_BLOCK.read_text())[0]["replies"][0]["return"]
    return reply


class Monitors:
    """A number of monitors at `folder`/vm<number>.qmp. As an async context manager they listen while the `with` block runs.

    Attributes:
        paths: The sockets.
        answers: Replies by command, as bytes on the wire.
        answered: The number of replies by command.
        own_blockstats: Replies of single monitors to query-blockstats, by number, as bytes on the wire.
        polled_at: When each monitor was last asked query-blockstats, by number.
        longest_gap: The longest time between two such commands to one monitor.
        clients: The connection of each monitor that has a client, by its number.
        own_replies: By a monitor's number, replies to its next client that differ from those of the other monitors.
    """

    def __init__(self, folder: Path, count: int, replies: Mapping[str, Any] | None = None) -> None:
        self.paths = [folder / f"vm{number}.qmp" for number in range(count)]
        self.answered: Counter[bytes] = Counter()
        self.own_blockstats: dict[int, bytes] = {}
        self.polled_at: dict[int, float] = {}
        self.longest_gap = 0.0
        self.clients: dict[int, _Server] = {}
        self.own_replies: dict[int, Mapping[str, Any]] = {}
        transcript = Transcript.load()
        self.greeting = line(transcript.greeting)
        answers = {exchange["command"]: exchange["reply"] for exchange in transcript.exchanges}
        # Migration events are on, as with libvirt: then the steady poll of a VM is a single command.
        answers |= {"query-migrate-capabilities": {"return": [{"capability": "events", "state": True}]}}
        answers |= {"query-blockstats": {"return": two_disks()}} | dict(replies or {})
        self.answers = {command.encode(): line(reply) for command, reply in answers.items()}
        self.answers[b"qmp_capabilities"] = line({"return": {}})
        self._servers: dict[int, asyncio.AbstractServer] = {}

    async def __aenter__(self) -> Self:
        await self.listen(range(len(self.paths)))
        return self

    async def listen(self, numbers: Iterable[int]) -> None:
        """Start listening on these monitors."""
        for number in numbers:
            factory = partial(_Server, self, number)
            self._servers[number] = await asyncio.get_running_loop().create_unix_server(factory, self.paths[number])

    def descriptors(self) -> list[int]:
        """Return the descriptors of the listening sockets, in the order of the monitors."""
        servers = (cast("asyncio.Server", self._servers[number]) for number in sorted(self._servers))
        return [server.sockets[0].fileno() for server in servers]

    def end(self, numbers: Iterable[int]) -> None:
        """End these monitors as a crash would: their sockets stay behind."""
        for number in numbers:
            self._servers.pop(number).close()
            if (client := self.clients.get(number)) is not None:
                client.transport.abort()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(list(self._servers))

    async def drained(self) -> None:
        """Wait until the clients have read what was sent."""
        for client in list(self.clients.values()):
            await client.drained()

    def emit(self, number: int, event: str, data: Mapping[str, Any], time_ns: int) -> None:
        """Send an event to the client of a monitor."""
        seconds, rest = divmod(time_ns, 1_000_000_000)
        stamp = {"seconds": seconds, "microseconds": rest // 1000}
        self.clients[number].transport.write(line({"timestamp": stamp, "event": event, "data": data}))


class _Server(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, monitors: Monitors, number: int) -> None:
        self._monitors = monitors
        self._number = number
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._own = {
            b"query-uuid": line({"return": {"UUID": str(UUID(int=number + 1))}}),
            b"query-name": line({"return": {"name": f"vm{number}"}}),
        }
        self._own |= {command.encode(): line(reply) for command, reply in monitors.own_replies.get(number, {}).items()}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._monitors.clients[self._number] = self
        self.transport.write(self._monitors.greeting)

    def data_received(self, data: bytes) -> None:
        answers = self._monitors.answers
        for command, number in _numbered(data) if b'"id"' in data else ((c, None) for c in _COMMAND.findall(data)):
            self._monitors.answered[command] += 1
            answer = self._own.get(command) or answers.get(command) or _UNKNOWN
            if command == b"query-blockstats":  # a real reply always differs, even for an idle disk
                answer = _IDLE.sub(b"%d" % time.monotonic_ns(), self._monitors.own_blockstats.get(self._number, answer))
                self._measure_gap()
            if number is not None:
                answer = b'{"id": ' + number + b", " + answer[1:]
            self.transport.write(answer)

    def _measure_gap(self) -> None:
        monitors, now = self._monitors, time.monotonic()
        before = monitors.polled_at.get(self._number, now)
        monitors.polled_at[self._number], monitors.longest_gap = now, max(monitors.longest_gap, now - before)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._monitors.clients.get(self._number) is self:
            del self._monitors.clients[self._number]
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def drained(self) -> None:
        await self._may_write.wait()


def _numbered(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield commands and their ids as JSON, for requests of qemu.qmp and for probes."""
    for request in split_json_values(data.decode())[0]:
        number = json.dumps(request["id"]).encode() if "id" in request else None
        yield request.get("execute", request.get("exec-oob")).encode(), number


def line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


_UNKNOWN: Final = line({"error": {"class": "CommandNotFound", "desc": "The command is not known here"}})
