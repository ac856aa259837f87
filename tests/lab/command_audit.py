"""Audit of all commands to monitors and guest agents that the agent sends during the tests. Commands that are not listed here fail the run.

The audit records the bytes that the agent's client writes, in the tests' process and in each agent process that the tests start. It also
records the requests that scripted monitors and scripted guest agents receive. If a change allows the agent a new command, add the
command to this list by hand, too. So every new command is reviewed twice.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agent.qga.client import GuestAgentClient
from agent.qga.commands import GuestRequest
from agent.qmp.client import QmpClient
from agent.qmp.commands import Request
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.fake_qemu import FakeQemu, split_json_values

TRACE: Final = "QMP_AGENT_WIRE_TRACE"
"""Environment variable with the directory for traces of agent processes."""

OTHER_COMMANDS: Final = frozenset({"qom-list", "block-set-write-threshold"})
"""Commands that are allowed with any arguments, in addition to commands that begin with `query-`."""
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
"""Forbidden queries. They change something, interrupt vCPUs, load modules, or return 250 kB."""
PROPERTIES: Final = frozenset(
    {"chardev", "guest-stats", "guest-stats-polling-interval", "mac", "name", "netdev", "num-queues", "type"}
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
"""Tests whose requests to scripted monitors do not come from the agent's client."""


def violation(request: Any) -> str | None:
    """Return why a request is forbidden; None if the request is allowed."""
    if not isinstance(request, dict) or not request.keys() <= {"execute", "exec-oob", "arguments", "id"}:
        return "it is not a request"
    arguments = request.get("arguments", {})
    if "exec-oob" in request:
        return None if (request["exec-oob"], arguments) == ("query-yank", {}) else "out of band"
    command = request.get("execute")
    if "id" in request:  # the marker of a resynchronisation
        return None if (command, arguments) == ("query-status", {}) else "a command with an id"
    return None if _is_allowed(command, arguments) else "the command is not on the list, or has other arguments"


def _is_allowed(command: Any, arguments: Any) -> bool:
    """Return whether the agent may send a command with these arguments."""
    match command:
        case "qom-get":
            allowed = arguments.get("property") in PROPERTIES
        case "qom-set":
            allowed = arguments.get("property") == "guest-stats-polling-interval"
        case "x-query-virtio-queue-status":
            allowed = arguments.keys() == {"path", "queue"} and arguments["path"].endswith("/virtio-backend")
        case "migrate-set-capabilities":
            allowed = arguments == {"capabilities": [{"capability": "events", "state": True}]}
        case "block-latency-histogram-set" | "chardev-add":
            allowed = (_is_own_socket if command == "chardev-add" else _sets_histograms)(arguments)
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


def _sets_histograms(arguments: Any) -> bool:
    """Return whether a command sets three equal histograms with boundaries. Without boundaries, it would remove histograms."""
    read, write, flush = (arguments.get(f"boundaries-{kind}") for kind in ("read", "write", "flush"))
    return len(arguments) == 4 and "id" in arguments and bool(read) and read == write == flush


def _is_own_socket(arguments: Any) -> bool:
    """Return whether a character device is a socket for the agent's own monitor."""
    path = arguments["backend"]["data"]["addr"]["data"]["path"]
    data = {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}
    return bool(arguments == {"id": "qmp-agent", "backend": {"type": "socket", "data": data}})


def guest_violation(data: bytes) -> str | None:
    """Return why the bytes of one write to a guest agent are forbidden; None if they are allowed."""
    try:
        request = json.loads(data.removeprefix(b"\xff"))
    except ValueError:
        return "it is not one request"
    match request:
        case {"execute": "guest-sync-delimited", "arguments": {"id": int()}}:
            return None if data[:1] == b"\xff" else "a synchronization without the byte that resets the parser"
        case {"execute": str(name), **rest} if name in GUEST_COMMANDS and not rest:
            return None
    return "the command is not on the list, or has other arguments"


class CommandAudit:
    """Collects all requests that the agent sent, and checks them.

    Attributes:
        test: The test that runs now.
        commands: The number of requests by command.
        violations: A text for each forbidden request, with the test that ran.
    """

    def __init__(self) -> None:
        self.test = ""
        self.commands: Counter[str] = Counter()
        self.violations: list[str] = []

    def add_requests(self, requests: list[Any]) -> None:
        """Count and check requests."""
        for request in requests:
            self.commands[str(request.get("execute", request.get("exec-oob")))] += 1
            if (reason := violation(request)) is not None:
                self.violations.append(f"{self.test}: {reason}: {json.dumps(request)[:200]}")

    def add_write(self, data: bytes) -> None:
        """Count and check the requests in the bytes of one write. A write must consist of complete requests."""
        requests, incomplete, invalid = split_json_values(data.decode())
        if incomplete or invalid or not requests:
            self.violations.append(f"{self.test}: a write with an incomplete request: {data[:200]!r}")
        self.add_requests(requests)

    def add_guest_write(self, data: bytes) -> None:
        """Count and check the bytes of one write to a guest agent."""
        if self.check_guest_request(data):
            self.commands[json.loads(data.removeprefix(b"\xff"))["execute"]] += 1

    def check_guest_request(self, data: bytes) -> bool:
        """Check the bytes of one request to a guest agent, and return whether they are allowed."""
        if (reason := guest_violation(data)) is not None:
            self.violations.append(f"{self.test}: {reason}: {data[:200]!r}")
        return reason is None

    def add_traces(self, folder: Path) -> None:
        """Count and check the requests in the traces of agent processes."""
        for path in sorted(folder.glob("*.wire")):
            for line in path.read_bytes().splitlines():
                self.add_write(json.loads(line).encode())
        for path in sorted(folder.glob("*.guest")):
            for line in path.read_bytes().splitlines():
                self.add_guest_write(bytes.fromhex(line.decode()))


def start_recording(audit: CommandAudit) -> None:
    """Let the audit record what clients in this process send and what scripted monitors in this process receive."""
    write, guest_write = QmpClient._write, GuestAgentClient._write
    record_request, record_guest_request = FakeQemu.record_request, FakeGuestAgent.record_request

    def audited_write(self: QmpClient, data: Request) -> None:
        audit.add_write(data)
        write(self, data)

    def audited_guest_write(self: GuestAgentClient, data: GuestRequest) -> None:
        audit.add_guest_write(data)
        guest_write(self, data)

    async def audited_record_request(self: FakeQemu, request: dict[str, Any]) -> None:
        if not audit.test.startswith(EXEMPT_TESTS):
            audit.add_requests([request])
        await record_request(self, request)

    async def audited_record_guest_request(self: FakeGuestAgent, line: bytes) -> dict[str, Any]:
        audit.check_guest_request(line)
        return await record_guest_request(self, line)

    QmpClient._write = audited_write  # type: ignore[method-assign]  # that is the hook
    GuestAgentClient._write = audited_guest_write  # type: ignore[method-assign]  # that is the hook
    FakeQemu.record_request = audited_record_request  # type: ignore[method-assign]
    FakeGuestAgent.record_request = audited_record_guest_request  # type: ignore[method-assign]


def main() -> int:
    """Run `qmp-agent`. Append each write to a monitor to a trace file, if the environment variable TRACE is set."""
    from agent.cli.main import main as qmp_agent  # noqa: PLC0415 - after the hook

    folder = os.environ.get(TRACE)
    if folder is not None:
        path, write = Path(folder) / f"{os.getpid()}.wire", QmpClient._write

        def traced_write(self: QmpClient, data: Request) -> None:
            with path.open("ab", buffering=0) as file:  # unbuffered, because the agent may be killed at any time
                file.write(json.dumps(data.decode()).encode() + b"\n")
            write(self, data)

        guest_path, guest_write = Path(folder) / f"{os.getpid()}.guest", GuestAgentClient._write

        def traced_guest_write(self: GuestAgentClient, data: GuestRequest) -> None:
            with guest_path.open("ab", buffering=0) as file:
                file.write(data.hex().encode() + b"\n")
            guest_write(self, data)

        GuestAgentClient._write = traced_guest_write  # type: ignore[method-assign]  # that is the hook
        QmpClient._write = traced_write  # type: ignore[method-assign]  # that is the hook
    return qmp_agent()


if __name__ == "__main__":
    sys.exit(main())
