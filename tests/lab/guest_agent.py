"""The real guest agent, qemu-ga, on a plain Unix socket. It reports values of this machine.

The tests run the qemu-ga that this machine has installed, and those of other Debian releases, which are downloaded and unpacked but not
installed. `python -m tests.lab.guest_agent` downloads them in advance.
"""

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Final, Self

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory, run_program
from tests.lab.debian_release import unpack
from tests.lab.machine import INSTALL_HINT, require
from tests.lab.qemus import OTHER_RELEASES
from tests.lab.waiting import until

OWN: Final = "/usr/sbin/qemu-ga"

_LAUNCHER: Final = """\
#!/bin/sh
# Use the loader and libraries of its own release: the machine's are older.
root=${0%/*}/root
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \\
    "$root/usr/sbin/qemu-ga" "$@"
"""


def find_guest_agent(release: str = "") -> str:
    """Return the qemu-ga of a Debian release that was fetched. For an empty name, return the installed qemu-ga.

    Raises:
        MissingDependencyError: it was not fetched or installed; the message says how to do it.
    """
    if not release:
        require(OWN, "qemu-guest-agent")
        return OWN
    launcher = cache_directory() / f"qemu-ga-{release}" / "qemu-ga"
    if not launcher.exists():
        raise MissingDependencyError(f"qemu-ga of Debian {release} was not fetched: {INSTALL_HINT}")
    return os.fspath(launcher)


def _build(release: str, scratch: Path) -> None:
    unpack(release, ("qemu-guest-agent",), scratch)
    launcher = scratch / "built" / "qemu-ga"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    run_program(os.fspath(launcher), "--version")


class GuestAgentProcess:
    """qemu-ga that listens at `socket`. As an async context manager it runs while the `with` block runs.

    Attributes:
        socket: its socket.
        process: the process; None before start and after stop.
    """

    def __init__(self, folder: Path, *, name: str = "vm1", release: str = "") -> None:
        self.socket = folder / f"{name}.qga"
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder / f"{name}.qga-state"
        self._program = find_guest_agent(release)

    async def start(self) -> None:
        """Start it and wait until its socket exists."""
        self._folder.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", self._program, "-m", "unix-listen", "-p", os.fspath(self.socket)),
            *("-t", os.fspath(self._folder), "-f", os.fspath(self._folder / "pid")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(self.socket.exists)

    async def stop(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()
        self.process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal if it still runs. SIGSTOP makes it hang until SIGCONT."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


if __name__ == "__main__":
    for name in OTHER_RELEASES:
        try:
            build_directory_once(cache_directory() / f"qemu-ga-{name}", partial(_build, name))
            sys.stdout.write(f"qemu-ga of Debian {name} is ready\n")
        except MissingDependencyError as missing:
            sys.stdout.write(f"qemu-ga of Debian {name} is not available, its tests are skipped: {missing}\n")
