"""What the lab asks of the machine it runs on."""

import contextlib
import random
import shutil
import socket
from typing import Final

from agent.cli.demo.images import LabMissing

CURE: Final = "run tests/lab/install test"


def require(program: str, package: str) -> None:
    """Raise LabMissing, with its cure, if there is no such program.

    Args:
        program: its name.
        package: what to call the thing that has it.
    """
    if shutil.which(program) is None:
        raise LabMissing(f"there is no {program}, which {package} has: {CURE}")


def free_port() -> int:
    """Return a port nobody listens on, from below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
