"""A program that polls a VM's monitor like Proxmox VE (PVE::QMPClient of qemu-server 9.2), until standard input ends.

    python -m tests.lab.proxmox SOCKET PAUSE_SECONDS

A poll connects, sends one command after the other, and disconnects. It retries the connection every 100 ms while the socket's backlog is
full. It does not wait for the greeting. The program writes a line after its first poll, and at the end a `Report` as JSON.
"""

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

TIMEOUT_SECONDS: Final = 120.0
"""Timeout of a reply. Proxmox waits for three seconds, in which a loaded machine may not run QEMU at all."""
RETRY_SECONDS: Final = 0.1

COMMANDS: Final = (
    "qmp_capabilities",
    "query-status",
    "query-blockstats",
    "query-machines",
    "query-version",
    "query-balloon",
)
"""The commands that pvestatd sends to each VM every ten seconds, without query-proxmox-support, which only Proxmox' QEMU has."""


@dataclass(slots=True)
class Report:
    """The result of all polls.

    Attributes:
        seconds: the duration of each poll, from the first attempt to connect until the last reply.
        failures: the error of each failed poll.
    """

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def connect(path: str) -> socket.socket:
    """Return a connected socket.

    Raises:
        OSError: the backlog stayed full for too long, or no process listens.
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
        if len(report.seconds) == 1:
            sys.stdout.write("polling\n")
            sys.stdout.flush()
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    main()
