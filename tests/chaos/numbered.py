"""Events that carry a number: what the issuer writes and what the judge expects, made of the number alone; and the issuer's log."""

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
"""Two kinds of event, neither of which QEMU coalesces, so that one can be given a topic of its own."""

_READY_EVERY: Final = 16
_PAD: Final = "".join(random.Random(0).choices(string.ascii_letters + string.digits + ' "\\/{}äß€', k=8192))


def uuid_of(vm: int) -> str:
    """Return a VM's UUID."""
    return str(UUID(int=(0xC4A05 << 104) + vm + 1))


def name_of(vm: int) -> str:
    """Return a VM's name."""
    return f"vm{vm:02d}"


def kind_of(n: int) -> str:
    """Return which event has this number."""
    return READY if n % _READY_EVERY == 0 else COMPLETED


def payload(vm: int, n: int) -> dict[str, Any]:
    """Return the data of a VM's event with this number; its length differs from one to the next."""
    draw = zlib.crc32(b"%d %d" % (vm, n))
    pad = _PAD[draw % 7000 :][: draw // 7000 % 300]
    return {"type": "commit", "device": f"disk{n % 3}", "len": n, "offset": n, "speed": 0, "n": n, "pad": pad}


def encode(vm: int, n: int, wall_us: int) -> bytes:
    """Return an event as QEMU writes it."""
    seconds, microseconds = divmod(wall_us, 1_000_000)
    message = {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": kind_of(n),
        "data": payload(vm, n),
    }
    return json.dumps(message).encode() + b"\r\n"


# The issuer's log: a line for each write (`w`), each client greeted (`c`) and each that left (`e`).


def write_line(vm: int, connection: int, first: int, count: int, wall_us: int, written_ns: int) -> str:
    """Return the line that says that events from `first` on were written at an instant of the monotonic clock; 0: perhaps not whole."""
    return f"w {vm} {connection} {first} {count} {wall_us} {written_ns}\n"


def connected_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the line that says that a client came."""
    return f"c {vm} {connection} {at_ns}\n"


def ended_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the line that says that it left."""
    return f"e {vm} {connection} {at_ns}\n"


@dataclass(slots=True)
class Connection:
    """A client's time at a VM's monitor, in nanoseconds of the monotonic clock; `ended_ns` is None while it is there."""

    connected_ns: int
    ended_ns: int | None = None


@dataclass(slots=True)
class Issued:
    """What was issued of one VM, each list by the event's number.

    Attributes:
        wall_us: the event's own time, microseconds since the epoch.
        written_ns: when the kernel had all of it, on the monotonic clock; 0: perhaps it never had.
        connection: on which of `connections`.
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
                logs[vm]._take(what, connection, rest)
        return logs

    def _take(self, what: str, connection: int, rest: list[int]) -> None:
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
