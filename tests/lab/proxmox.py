"""A program that uses a VM's monitor as Proxmox VE's own do (PVE::QMPClient of qemu-server 9.2), again and again until its input ends.

    python -m tests.lab.proxmox SOCKET PAUSE_SECONDS

It connects, trying again each 100 ms where there is no room to wait, asks one question after the other without waiting for the greeting
first, and leaves. An answer has to come within three seconds of the question before it. At its end it writes a `Report` as JSON.
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

QUESTIONS: Final = (
    "qmp_capabilities",
    "query-status",
    "query-blockstats",
    "query-machines",
    "query-version",
    "query-balloon",
)
"""What pvestatd asks of each VM every ten seconds."""


@dataclass(slots=True)
class Report:
    """What came of it.

    Attributes:
        seconds: how long each visit took, from wanting to connect to the last answer.
        failures: why visits failed.
    """

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def connect(path: str) -> socket.socket:
    """Return a connected socket.

    Raises:
        OSError: it could not be had in time.
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


def visit(path: str) -> None:
    """Ask all.

    Raises:
        OSError: one was not answered in time.
    """
    with connect(path) as sock, sock.makefile("rb") as answers:
        for number, question in enumerate(QUESTIONS):
            sock.sendall(json.dumps({"execute": question, "arguments": {}, "id": str(number)}).encode())
            while True:
                line = answers.readline()
                if not line:
                    raise ConnectionError(f"hung up on before {question} was answered")
                reply: dict[str, Any] = json.loads(line)
                if reply.get("id") == str(number):
                    break


def main() -> None:
    """Visit until standard input ends, then report."""
    path, pause = sys.argv[1], float(sys.argv[2])
    report = Report()
    while not select.select([sys.stdin], [], [], pause)[0]:
        begin = time.monotonic()
        try:
            visit(path)
        except OSError as error:
            report.failures.append(str(error) or type(error).__name__)
        report.seconds.append(time.monotonic() - begin)
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    main()
