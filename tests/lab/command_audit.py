"""What the agent said to every monitor in a run of the tests, and whether each of it may be said.

The agent's client is tapped where bytes leave it, in the tests' own process and in each agent that they start, and the scripted
monitors note what reaches them. What was seen is judged when the tests have ended, by this file's own list: whoever adds a command to the
agent adds it here too, by hand, having thought about it twice.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agent.qmp.client import Client
from agent.qmp.commands import Request
from tests.lab.fake_qemu import FakeQemu, split

TRACE: Final = "QMP_AGENT_WIRE_TRACE"
"""The environment variable that names the folder in which traces are kept."""

OTHERS: Final = frozenset({"qom-list", "block-set-write-threshold"})
"""What may be said in any form, beside questions that begin with `query-`."""
COSTLY: Final = frozenset(
    {
        "query-command-line-options",
        "query-cpu-definitions",
        "query-cpus",
        "query-machines",
        "query-qmp-schema",
        "query-rx-filter",
    }
)
"""Questions that change something, interrupt vCPUs, load modules, or are a quarter of a megabyte long."""
PROPERTIES: Final = frozenset({"guest-stats", "guest-stats-polling-interval", "mac", "netdev", "type"})
SPEAKS_FOR_ITSELF: Final = ("tests/integration/test_lab.py",)
"""Tests that talk to scripted monitors as somebody else than the agent would."""


def fault(request: Any) -> str | None:
    """Return what is wrong with a request, or None."""
    if not isinstance(request, dict) or not request.keys() <= {"execute", "exec-oob", "arguments", "id"}:
        return "it is no request"
    arguments = request.get("arguments", {})
    if "exec-oob" in request:
        good = request["exec-oob"] == "query-yank" and not arguments
        return None if good else "out of band"
    match request.get("execute"):
        case "qom-get" | "qom-set":
            good = arguments.get("property") in PROPERTIES
        case "migrate-set-capabilities":
            good = arguments == {"capabilities": [{"capability": "events", "state": True}]}
        case "chardev-add":
            good = _own_socket(arguments)
        case "object-add":
            wanted = {"qom-type": "monitor-qmp", "id": "qmp-agent", "chardev": "qmp-agent", "close-action": "delete"}
            good = arguments == wanted
        case "object-del" | "chardev-remove":
            good = arguments == {"id": "qmp-agent"}
        case "qmp_capabilities":
            good = arguments in ({}, {"enable": ["oob"]})
        case str(command):
            good = command in OTHERS or (command.startswith("query-") and command not in COSTLY)
        case _:
            good = False
    return None if good and "id" not in request else "it is not on the list, or not in this form"


def _own_socket(arguments: Any) -> bool:
    """Return whether a character device is a socket for the agent's own monitor."""
    path = arguments["backend"]["data"]["addr"]["data"]["path"]
    data = {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}
    return bool(arguments == {"id": "qmp-agent", "backend": {"type": "socket", "data": data}})


class Wire:
    """All that was said.

    Attributes:
        test: the test that runs now.
        commands: how often each command was said.
        faults: what was said and may not be, with the test that had it said.
    """

    def __init__(self) -> None:
        self.test = ""
        self.commands: Counter[str] = Counter()
        self.faults: list[str] = []

    def said(self, requests: list[Any]) -> None:
        """Take requests."""
        for request in requests:
            self.commands[str(request.get("execute", request.get("exec-oob")))] += 1
            if (wrong := fault(request)) is not None:
                self.faults.append(f"{self.test}: {wrong}: {json.dumps(request)[:200]}")

    def wrote(self, data: bytes) -> None:
        """Take the bytes of one write; a write holds whole requests."""
        requests, rest, broken = split(data.decode())
        if rest or broken or not requests:
            self.faults.append(f"{self.test}: a write that is not whole requests: {data[:200]!r}")
        self.said(requests)

    def read(self, folder: Path) -> None:
        """Take what agents that the tests started have written down."""
        for path in sorted(folder.glob("*.wire")):
            for line in path.read_bytes().splitlines():
                self.wrote(json.loads(line).encode())


def tap(wire: Wire) -> None:
    """Have all that this process's clients and scripted monitors see told to a wire."""
    write, note = Client._write, FakeQemu.note

    def writing(self: Client, data: Request) -> None:
        wire.wrote(data)
        write(self, data)

    async def noting(self: FakeQemu, request: dict[str, Any]) -> None:
        if not wire.test.startswith(SPEAKS_FOR_ITSELF):
            wire.said([request])
        await note(self, request)

    Client._write = writing  # type: ignore[method-assign]  # that is the tap
    FakeQemu.note = noting  # type: ignore[method-assign]


def main() -> int:
    """Be `qmp-agent`, with all that it says to monitors written down where TRACE says."""
    from agent.cli.main import main as command  # noqa: PLC0415 - after the tap

    folder = os.environ.get(TRACE)
    if folder is not None:
        path, write = Path(folder) / f"{os.getpid()}.wire", Client._write

        def writing(self: Client, data: Request) -> None:
            with path.open("ab", buffering=0) as file:  # at once: the agent may be killed at any moment
                file.write(json.dumps(data.decode()).encode() + b"\n")
            write(self, data)

        Client._write = writing  # type: ignore[method-assign]  # that is the tap
    return command()


if __name__ == "__main__":
    sys.exit(main())
