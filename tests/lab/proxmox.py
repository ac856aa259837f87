"""A program that polls a VM's monitor as Proxmox VE's tools do (PVE::QMPClient of qemu-server 9.2), until its standard input ends.

    python -m tests.lab.proxmox SOCKET PAUSE_SECONDS

A poll connects, with a retry every 100 ms while the backlog is full, sends one command after the other without waiting for the greeting
first, and disconnects. Each reply has to arrive within three seconds of its command. At its end the program writes a `Report` as JSON.
"""

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

TIMEOUT_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 0.1

COMMANDS: Final = (
    "qmp_capabilities",
    "query-status",
    "query-blockstats",
    "query-machines",
    "query-version",
    "query-balloon",
)
"""The commands that pvestatd sends to each VM every ten seconds."""


@dataclass(slots=True)
class Report:
    """Result of all polls.

    Attributes:
        seconds: duration of each poll, from the first attempt to connect to the last reply.
        failures: why polls failed.
    """

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def connect(path: str) -> socket.socket:
    """Return a connected socket.

    Raises:
        OSError: the backlog stayed full for too long, or nothing listens.
    """
    until = time.monotonic() + TIMEOUT_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        try:
            sock.connect(path)
        except BlockingIOError:
            sock.close()
            if time.monotonic() > until:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            sock.settimeout(TIMEOUT_SECONDS)
            return sock


def poll(path: str) -> None:
    """Send all commands and read their replies.

    Raises:
        OSError: a reply did not arrive in time.
    """
    with connect(path) as sock, sock.makefile("rb") as replies:
        for number, command in enumerate(COMMANDS):
            sock.sendall(json.dumps({"execute": command, "arguments": {}, "id": str(number)}).encode())
            while True:
                line = replies.readline()
                if not line:
                    raise ConnectionError(f"disconnected before the reply to {command}")
                reply: dict[str, Any] = json.loads(line)
                if reply.get("id") == str(number):
                    break


def main() -> None:
    """Poll until standard input ends, then report."""
    path, pause = sys.argv[1], float(sys.argv[2])
    report = Report()
    while not select.select([sys.stdin], [], [], pause)[0]:
        start = time.monotonic()
        try:
            poll(path)
        except OSError as error:
            report.failures.append(str(error) or type(error).__name__)
        report.seconds.append(time.monotonic() - start)
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    main()
