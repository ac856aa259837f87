"""Requirements of the lab on the machine: installed programs and free ports."""

import contextlib
import random
import shutil
import socket
from typing import Final

from agent.cli.demo.images import LabMissing

INSTALL_HINT: Final = "run tests/lab/install test"


def require(program: str, package: str) -> None:
    """Raise LabMissing, with a hint how to install it, if a program is missing.

    Args:
        program: The program.
        package: The package that has it.
    """
    if shutil.which(program) is None:
        raise LabMissing(f"{program} is missing, which package {package} has: {INSTALL_HINT}")


def free_port() -> int:
    """Return a free TCP port below the range that the kernel uses for outgoing connections."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
