"""Checks and reservations on the machine that runs the tests: installed programs and free ports."""

import os
import random
import shutil
import socket
from collections import deque
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError

INSTALL_HINT: Final = "run tests/lab/install test"


def require(program: str, package: str) -> None:
    """Check that a program is installed.

    Args:
        program: The program.
        package: The Debian package that contains the program.

    Raises:
        MissingDependencyError: The program is missing. The message says how to install it.
    """
    if shutil.which(program) is None:
        raise MissingDependencyError(f"{program} is missing, which package {package} has: {INSTALL_HINT}")


def free_port() -> int:
    """Return a free TCP port below the range that the kernel uses for outgoing connections.

    No other test process gets the same port, because an abstract Unix socket reserves it.
    """
    while True:
        port = random.randrange(12000, 32000)
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0qmp-agent-lab-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        if len(_reservations) == _reservations.maxlen:
            os.close(_reservations[0])
        _reservations.append(reservation.detach())
        return port


def is_listening(port: int) -> bool:
    """Return whether a program listens on a TCP port of 127.0.0.1. A connection would show that too, but a monitor accepts only one."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[1] == f"0100007F:{port:04X}" and line[3] == "0A" for line in lines)


_reservations: Final[deque[int]] = deque(maxlen=256)
"""File descriptors of the sockets that reserve the ports returned last, open until the process ends."""
