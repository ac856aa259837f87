"""Numbered events, and the issuer's log. The VM and the number determine the content of an event, so the judge can compute it too."""

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
"""Names of two events that QEMU does not coalesce. The first has a Kafka topic of its own."""

_READY_EVERY: Final = 16
_PAD: Final = "".join(random.Random(0).choices(string.ascii_letters + string.digits + ' "\\/{}äß€', k=8192))


def uuid_of(vm: int) -> str:
    """Return a VM's UUID."""
    return str(UUID(int=(0xC4A05 << 104) + vm + 1))


def name_of(vm: int) -> str:
    """Return a VM's name."""
    return f"vm{vm:02d}"


def event_name(n: int) -> str:
    """Return the name of the event with number `n`."""
    return READY if n % _READY_EVERY == 0 else COMPLETED


def payload(vm: int, n: int) -> dict[str, Any]:
    """Return the data of the event with number `n` of a VM; its length varies."""
    draw = zlib.crc32(b"%d %d" % (vm, n))
    pad = _PAD[draw % 7000 :][: draw // 7000 % 300]
    return {"type": "commit", "device": f"disk{n % 3}", "len": n, "offset": n, "speed": 0, "n": n, "pad": pad}


def encode(vm: int, n: int, wall_us: int) -> bytes:
    """Return the bytes of an event as QEMU writes them."""
    seconds, microseconds = divmod(wall_us, 1_000_000)
    message = {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": event_name(n),
        "data": payload(vm, n),
    }
    return json.dumps(message).encode() + b"\r\n"


# The issuer's log has a line for each write (`w`), each greeted client (`c`) and each disconnected client (`e`).


def write_line(vm: int, connection: int, first: int, count: int, wall_us: int, written_ns: int) -> str:
    """Return the log line of one write.

    Args:
        vm: number of the VM.
        connection: number of the connection.
        first: number of the first event.
        count: how many events.
        wall_us: time of the first event, microseconds since the epoch.
        written_ns: when the kernel had taken the whole write, by the monotonic clock; 0 if it may not have.
    """
    return f"w {vm} {connection} {first} {count} {wall_us} {written_ns}\n"


def connected_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the log line of a client that was greeted; `at_ns` is by the monotonic clock."""
    return f"c {vm} {connection} {at_ns}\n"


def ended_line(vm: int, connection: int, at_ns: int) -> str:
    """Return the log line of a client that disconnected; `at_ns` is by the monotonic clock."""
    return f"e {vm} {connection} {at_ns}\n"


@dataclass(slots=True)
class Connection:
    """When a client of a VM's monitor connected and disconnected, by the monotonic clock in nanoseconds. None: not disconnected yet."""

    connected_ns: int
    ended_ns: int | None = None


@dataclass(slots=True)
class IssuedEvents:
    """The events that one VM issued. The index in the first three arrays is the number of the event.

    Attributes:
        wall_us: timestamp of each event, microseconds since the epoch.
        written_ns: when the kernel had taken each event, by the monotonic clock; 0 if it may not have.
        connection: to which client each event was written, as an index in `connections`.
        connections: the clients of the VM's monitor.
    """

    wall_us: "array[int]" = field(default_factory=lambda: array("q"))
    written_ns: "array[int]" = field(default_factory=lambda: array("q"))
    connection: "array[int]" = field(default_factory=lambda: array("l"))
    connections: list[Connection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.wall_us)

    @classmethod
    def read(cls, path: Path, vms: int) -> list[Self]:
        """Return the events of each VM, from the issuer's log."""
        logs = [cls() for _ in range(vms)]
        with path.open() as lines:
            for line in lines:
                what, *fields = line.split()
                vm, connection, *rest = map(int, fields)
                logs[vm]._add_log_line(what, connection, rest)
        return logs

    def _add_log_line(self, what: str, connection: int, rest: list[int]) -> None:
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
