"""A node like KubeVirt's on this machine: `python -m tests.kubevirt [--pods 10] [--seconds N]`.

Starts libvirts in mount, PID and UTS namespaces of their own, each with one VM, as KubeVirt's pods have them. One agent with the entry
`libvirt: auto` watches them all. Prints the page's address when the page shows every VM, and runs until Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Libvirtd
from tests.lab.waiting import until

NAMESPACE: Final = "demo"
START_SECONDS: Final = 600.0
"""Timeout of the start of all libvirts, or until all VMs are on the page."""


def print_line(text: str) -> None:
    """Print a line at once, even into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def start_pod(stack: AsyncExitStack, folder: Path, number: int) -> Libvirtd:
    """Start a libvirt in its own namespaces, with one VM.

    Raises:
        MissingDependencyError: libvirt is not installed, or this user is not root.
    """
    folder.mkdir()  # noqa: ASYNC240 - a new directory
    libvirt = await stack.enter_async_context(Libvirtd(folder))
    await libvirt.domain(f"{NAMESPACE}_vm-{number}")  # KubeVirt names a domain by its namespace and VM
    return libvirt


async def names_on_page(agent: AgentProcess) -> set[str]:
    """Return the names of the VMs in the data of the agent's page."""
    status, body = await agent.get("/overview")
    return {vm["name"] for vm in json.loads(body)["vms"].values()} if status == 200 else set()


async def run(pods: int, seconds: float | None) -> None:
    """Run the node until Ctrl-C, or for some seconds after the page shows all VMs.

    Raises:
        MissingDependencyError: libvirt is not installed, or this user is not root.
    """
    started = time.monotonic()
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        folder.chmod(0o755)  # noqa: ASYNC240 - QEMU runs as another user
        libvirts = []
        for number in range(pods):
            libvirts.append(await start_pod(stack, folder / f"pod{number}", number))
            print_line(f"{time.monotonic() - started:5.1f} s  pod {number + 1} of {pods} runs")
        entry = {"libvirt": "auto", "containers": [libvirt.container for libvirt in libvirts]}
        agent = await stack.enter_async_context(AgentProcess(folder, {"monitors": [entry]}))
        print_line(f"{time.monotonic() - started:5.1f} s  the agent runs")

        async def has_all() -> bool:
            return len(await names_on_page(agent)) == pods

        await until(has_all, START_SECONDS)
        for name in sorted(await names_on_page(agent)):
            print_line(f"         {name}")
        print_line(f"{time.monotonic() - started:5.1f} s  the page has all {pods} VMs: {agent.url}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopped.wait()


def main() -> int:
    """Run the node; return 1 if a program is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubevirt", description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=10, help="number of libvirts, each with one VM; default: 10")
    parser.add_argument("--seconds", type=float, help="end after this time; default: at Ctrl-C")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.pods, options.seconds))
    except MissingDependencyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
