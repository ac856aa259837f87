"""Audit of every command that the agent sends to a monitor or a guest agent during a run of the tests, against a list of its own.

The audit hooks the agent's client where bytes leave it, in the tests' own process and in each agent that they start. The scripted
monitors record what they receive. The audit judges all of it when the tests have ended. A command that the agent learns to send must be
added to this list by hand, too: that is the second look.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agent.qga.client import GuestAgentClient
from agent.qga.commands import GuestRequest
from agent.qmp.client import Client
from agent.qmp.commands import Request
from tests.lab.fake_qemu import FakeQemu, split

TRACE: Final = "QMP_AGENT_WIRE_TRACE"
"""Environment variable that names the directory of the traces."""

OTHER_COMMANDS: Final = frozenset({"qom-list", "block-set-write-threshold"})
"""Commands that are allowed with any arguments, beside those that begin with `query-`."""
COSTLY_QUERIES: Final = frozenset(
    {
        "query-command-line-options",
        "query-cpu-definitions",
        "query-cpus",
        "query-machines",
        "query-qmp-schema",
        "query-rx-filter",
    }
)
"""Queries that change something, interrupt vCPUs, load modules, or return a quarter of a megabyte."""
PROPERTIES: Final = frozenset(
    {"chardev", "guest-stats", "guest-stats-polling-interval", "mac", "name", "netdev", "type"}
)
GUEST_COMMANDS: Final = frozenset(
    {
        "guest-fsfreeze-status",
        "guest-get-cpustats",
        "guest-get-diskstats",
        "guest-get-fsinfo",
        "guest-get-host-name",
        "guest-get-load",
        "guest-get-osinfo",
        "guest-get-time",
        "guest-get-timezone",
        "guest-get-users",
        "guest-info",
        "guest-network-get-interfaces",
    }
)
"""Commands to a guest agent that are allowed, all without arguments."""
EXEMPT_TESTS: Final = ("tests/integration/test_lab.py",)
"""Tests that talk to scripted monitors with a client that is not the agent's."""


def violation(request: Any) -> str | None:
    """Return why a request is forbidden, or None."""
    if not isinstance(request, dict) or not request.keys() <= {"execute", "exec-oob", "arguments", "id"}:
        return "it is no request"
    arguments = request.get("arguments", {})
    if "exec-oob" in request:
        return None if (request["exec-oob"], arguments) == ("query-yank", {}) else "out of band"
    command = request.get("execute")
    if "id" in request:  # the marker of a resynchronisation
        return None if (command, arguments) == ("query-status", {}) else "a command with an id"
    return None if _is_allowed(command, arguments) else "it is not on the list, or not in this form"


def _is_allowed(command: Any, arguments: Any) -> bool:
    """Return whether the agent may send a command with these arguments."""
    match command:
        case "qom-get":
            allowed = arguments.get("property") in PROPERTIES
        case "qom-set":
            allowed = arguments.get("property") == "guest-stats-polling-interval"
        case "migrate-set-capabilities":
            allowed = arguments == {"capabilities": [{"capability": "events", "state": True}]}
        case "chardev-add":
            allowed = _is_own_socket(arguments)
        case "object-add":
            expected = {"qom-type": "monitor-qmp", "id": "qmp-agent", "chardev": "qmp-agent", "close-action": "delete"}
            allowed = arguments == expected
        case "object-del" | "chardev-remove":
            allowed = arguments == {"id": "qmp-agent"}
        case "qmp_capabilities":
            allowed = arguments in ({}, {"enable": ["oob"]})
        case str():
            allowed = command in OTHER_COMMANDS or (command.startswith("query-") and command not in COSTLY_QUERIES)
        case _:
            allowed = False
    return bool(allowed)


def _is_own_socket(arguments: Any) -> bool:
    """Return whether a character device is a socket for the agent's own monitor."""
    path = arguments["backend"]["data"]["addr"]["data"]["path"]
    data = {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}
    return bool(arguments == {"id": "qmp-agent", "backend": {"type": "socket", "data": data}})


def guest_violation(data: bytes) -> str | None:
    """Return why the bytes of one write to a guest agent are forbidden, or None."""
    try:
        request = json.loads(data.removeprefix(b"\xff"))
    except ValueError:
        return "it is not one request"
    match request:
        case {"execute": "guest-sync-delimited", "arguments": {"id": int()}}:
            return None if data[:1] == b"\xff" else "a synchronization without the byte that resets the parser"
        case {"execute": str(name), **rest} if name in GUEST_COMMANDS and not rest:
            return None
    return "it is not on the list, or not in this form"


class CommandAudit:
    """All commands that were sent.

    Attributes:
        test: The test that runs now.
        commands: How often each command was sent.
        violations: Each forbidden request, with the test during which it was sent.
    """

    def __init__(self) -> None:
        self.test = ""
        self.commands: Counter[str] = Counter()
        self.violations: list[str] = []

    def add_requests(self, requests: list[Any]) -> None:
        """Count and judge requests."""
        for request in requests:
            self.commands[str(request.get("execute", request.get("exec-oob")))] += 1
            if (reason := violation(request)) is not None:
                self.violations.append(f"{self.test}: {reason}: {json.dumps(request)[:200]}")

    def add_write(self, data: bytes) -> None:
        """Count and judge the bytes of one write, which must hold whole requests."""
        requests, rest, broken = split(data.decode())
        if rest or broken or not requests:
            self.violations.append(f"{self.test}: a write that is not whole requests: {data[:200]!r}")
        self.add_requests(requests)

    def add_guest_write(self, data: bytes) -> None:
        """Count and judge the bytes of one write to a guest agent."""
        if (reason := guest_violation(data)) is not None:
            self.violations.append(f"{self.test}: {reason}: {data[:200]!r}")
        else:
            self.commands[json.loads(data.removeprefix(b"\xff"))["execute"]] += 1

    def add_traces(self, folder: Path) -> None:
        """Count and judge what the agent processes wrote into their traces."""
        for path in sorted(folder.glob("*.wire")):
            for line in path.read_bytes().splitlines():
                self.add_write(json.loads(line).encode())
        for path in sorted(folder.glob("*.guest")):
            for line in path.read_bytes().splitlines():
                self.add_guest_write(bytes.fromhex(line.decode()))


def install(audit: CommandAudit) -> None:
    """Report to the audit what this process's clients send and its scripted monitors receive."""
    write, guest_write, record_request = Client._write, GuestAgentClient._write, FakeQemu.record_request

    def audited_write(self: Client, data: Request) -> None:
        audit.add_write(data)
        write(self, data)

    def audited_guest_write(self: GuestAgentClient, data: GuestRequest) -> None:
        audit.add_guest_write(data)
        guest_write(self, data)

    async def audited_record_request(self: FakeQemu, request: dict[str, Any]) -> None:
        if not audit.test.startswith(EXEMPT_TESTS):
            audit.add_requests([request])
        await record_request(self, request)

    Client._write = audited_write  # type: ignore[method-assign]  # that is the hook
    GuestAgentClient._write = audited_guest_write  # type: ignore[method-assign]  # that is the hook
    FakeQemu.record_request = audited_record_request  # type: ignore[method-assign]


def main() -> int:
    """Run `qmp-agent`, with each write to a monitor appended to a trace in the directory that TRACE names."""
    from agent.cli.main import main as qmp_agent  # noqa: PLC0415 - after the hook

    folder = os.environ.get(TRACE)
    if folder is not None:
        path, write = Path(folder) / f"{os.getpid()}.wire", Client._write

        def traced_write(self: Client, data: Request) -> None:
            with path.open("ab", buffering=0) as file:  # unbuffered: the agent may be killed at any moment
                file.write(json.dumps(data.decode()).encode() + b"\n")
            write(self, data)

        guest_path, guest_write = Path(folder) / f"{os.getpid()}.guest", GuestAgentClient._write

        def traced_guest_write(self: GuestAgentClient, data: GuestRequest) -> None:
            with guest_path.open("ab", buffering=0) as file:
                file.write(data.hex().encode() + b"\n")
            guest_write(self, data)

        GuestAgentClient._write = traced_guest_write  # type: ignore[method-assign]  # that is the hook
        Client._write = traced_write  # type: ignore[method-assign]  # that is the hook
    return qmp_agent()


if __name__ == "__main__":
    sys.exit(main())
