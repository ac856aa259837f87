"""Numbered events: their content depends on the number alone, for the issuer and the judge. Also the issuer's log."""

import json
import random
import string
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

HOST: Final = "chaos"
"""The host's name in records."""

READY, COMPLETED = "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"
"""Two events that QEMU does not coalesce; one has a topic of its own."""

_READY_EVERY: Final = 16
_PAD: Final = "".join(random.Random(0).choices(string.ascii_letters + string.digits + ' "\\/{}äß€', k=8192))


def uuid_of(vm: int) -> str:
    """Return a VM's UUID."""
    return str(UUID(int=(0xC4A05 << 104) + vm + 1))


def name_of(vm: int) -> str:
    """Return a VM's name."""
    return f"vm{vm:02d}"


def kind_of(n: int) -> str:
    """Return the event with a number."""
    return READY if n % _READY_EVERY == 0 else COMPLETED


def payload(vm: int, n: int) -> dict[str, Any]:
    """Return the data of a VM's event with a number; the length varies."""
    draw = zlib.crc32(b"%d %d" % (vm, n))
    pad = _PAD[draw % 7000 :][: draw // 7000 % 300]
    return {"type": "commit", "device": f"disk{n % 3}", "len": n, "offset": n, "speed": 0, "n": n, "pad": pad}


def encode(vm: int, n: int, wall_us: int) -> bytes:
    """Return the bytes of an event as QEMU writes them."""
    seconds, microseconds = divmod(wall_us, 1_000_000)
    message = {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": kind_of(n),
        "data": payload(vm, n),
    }
    return json.dumps(message).encode() + b"\r\n"


# The issuer's log: a line for each write (`w`), each client greeted (`c`) and each that left (`e`).


def write_line(vm: int, connection: int, first: int, count: int, wall_us: int, written_ns: int) -> str:
    """Return the log line of one write.

    Args:
        vm: number of the VM.
        connection: number of the connection.
        first: number of the first event.
        count: how many events.
        wall_us: time of the first event, microseconds since the epoch.
        written_ns: when the kernel had all of it, on the monotonic clock; 0 if it may be incomplete.
    """
    return f"w {vm} {connection} {first} {count} {wall_us} {written_ns}\n"


def connected_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the log line of a client that connected."""
    return f"c {vm} {connection} {at_ns}\n"


def ended_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the log line of a client that disconnected."""
    return f"e {vm} {connection} {at_ns}\n"


@dataclass(slots=True)
class Connection:
    """A client's connection to a VM's monitor, in nanoseconds of the monotonic clock; `ended_ns` is None while it lasts."""

    connected_ns: int
    ended_ns: int | None = None


@dataclass(slots=True)
class Issued:
    """The events that one VM issued; each list is by the event's number.

    Attributes:
        wall_us: the event's own time, microseconds since the epoch.
        written_ns: when the kernel had all of it, on the monotonic clock; 0 if it may be incomplete.
        connection: index in `connections`.
        connections: the VM's clients.
    """

    wall_us: "array[int]" = field(default_factory=lambda: array("q"))
    written_ns: "array[int]" = field(default_factory=lambda: array("q"))
    connection: "array[int]" = field(default_factory=lambda: array("l"))
    connections: list[Connection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.wall_us)

    @classmethod
    def read(cls, path: Path, vms: int) -> list[Self]:
        """Read the issuer's log, by VM."""
        logs = [cls() for _ in range(vms)]
        with path.open() as lines:
            for line in lines:
                what, *fields = line.split()
                vm, connection, *rest = map(int, fields)
                logs[vm]._add(what, connection, rest)
        return logs

    def _add(self, what: str, connection: int, rest: list[int]) -> None:
        if what == "c":
            assert connection == len(self.connections)
            self.connections.append(Connection(rest[0]))
        elif what == "e":
            self.connections[connection].ended_ns = rest[0]
        else:
            first, count, wall_us, written_ns = rest
            assert first == len(self)
            self.wall_us.extend(range(wall_us, wall_us + count))
            self.written_ns.extend([written_ns] * count)
            self.connection.extend([connection] * count)
