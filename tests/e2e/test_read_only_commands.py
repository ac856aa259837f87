"""The agent sends no command that is not on its list. The tests try every command of QEMU through every input of the agent."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.config.errors import ConfigError
from agent.config.loader import validate_yaml
from agent.config.model import Config
from agent.model.record import Vm
from agent.qmp.commands import QMP_READS, AllowList, Command, OptInQemuChange
from agent.qmp.errors import CommandNotAllowedError
from tests.lab import command_audit
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.lab.scripted_peer import connected

ROOT = Path(__file__).parents[2]
ALLOWED_CHANGES: dict[str, Any] = {
    "qom-get": {"path": "/machine/peripheral/balloon0", "property": "guest-stats"},
    "qom-set": {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 10},
    "migrate-set-capabilities": {"capabilities": [{"capability": "events", "state": True}]},
    "block-set-write-threshold": {"node-name": "disk0", "write-threshold": 1 << 20},
}


@pytest.fixture
async def schema(start_guest: StartGuest) -> list[dict[str, Any]]:
    """The reply of a real QEMU to query-qmp-schema."""
    entities: list[dict[str, Any]] = await (await start_guest("schema")).command("query-qmp-schema")
    return entities


def command_names(schema: list[dict[str, Any]]) -> list[str]:
    return [entity["name"] for entity in schema if entity["meta-type"] == "command"]


def arguments(schema: list[dict[str, Any]], name: str) -> list[dict[str, Any] | None]:
    """Return several arguments that QEMU accepts for a command: no arguments, the required ones, all, and those of allowed changes."""
    by_name = {entity["name"]: entity for entity in schema}
    command = next(e for e in schema if e["meta-type"] == "command" and e["name"] == name)

    def value(kind: str, depth: int = 0) -> Any:
        entity = by_name[kind]
        match entity["meta-type"]:
            case "builtin":
                return {"string": "x", "int": 1, "number": 1.5, "boolean": True, "null": None}.get(
                    entity["json-type"], 1
                )
            case "enum":
                return entity["members"][0]["name"] if "members" in entity else entity["values"][0]
            case "array":
                return [value(entity["element-type"], depth + 1)] if depth < 4 else []
            case "alternate":
                return value(entity["members"][0]["type"], depth + 1)
            case "object" if depth < 4:
                required = [member for member in entity["members"] if "default" not in member]
                return {member["name"]: value(member["type"], depth + 1) for member in required}
        return {}

    members = by_name[command["arg-type"]]["members"]
    every = {member["name"]: value(member["type"]) for member in members}
    required = {member["name"]: every[member["name"]] for member in members if "default" not in member}
    return [None, {}, required, every, *ALLOWED_CHANGES.values()]


async def test_only_commands_on_the_list_are_encoded(schema: list[dict[str, Any]]) -> None:
    names = command_names(schema)
    assert len(names) > 150
    encoded = set()
    for allow in (AllowList(), *(AllowList([change]) for change in OptInQemuChange), AllowList(OptInQemuChange)):
        for name in names:
            for given in arguments(schema, name):
                try:
                    data = allow.encode(Command(name, given))
                except CommandNotAllowedError:
                    continue
                request = json.loads(data)
                assert command_audit.violation(request) is None, request
                assert request.keys() <= {"execute", "arguments"}
                encoded.add(request["execute"])
    assert encoded == (QMP_READS | ALLOWED_CHANGES.keys()) & {*names}


async def test_a_connection_that_gets_a_forbidden_command_sends_nothing(
    schema: list[dict[str, Any]], fake: FakeQemu
) -> None:
    async with connected(fake.path) as client:
        requests, written = len(fake.requests), client.bytes_written
        for name in command_names(schema):
            if name in QMP_READS:
                continue
            for given in arguments(schema, name):
                with pytest.raises(CommandNotAllowedError):
                    await client.execute([Command("query-status"), Command(name, given)], deadline=60)
        assert client.bytes_written == written
        assert len(fake.requests) == requests
        await client.execute([Command("query-status")], deadline=60)


class RogueController:
    """A compromised threshold controller. It wants the session to send every command."""

    # ruff: noqa: ARG002 - the signatures are Commander's

    def __init__(self, commands: Sequence[Command]) -> None:
        self.remaining = list(commands)
        self.done: list[bool] = []

    def pop_collectors_to_poll(self, vm: Vm) -> set[str]:
        return {"block"}

    def has_pending_commands(self, vm: Vm) -> bool:
        return bool(self.remaining)

    async def pop_pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        batch, self.remaining = self.remaining[:50], self.remaining[50:]
        return [("disk", command) for command in batch]

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        self.done.append(done)


async def test_a_session_refuses_forbidden_commands_of_its_threshold_controller(
    schema: list[dict[str, Any]], fake: FakeQemu
) -> None:
    commands = [
        Command(name, given)
        for name in command_names(schema)
        if name not in QMP_READS
        for given in arguments(schema, name)
    ]
    rogue = RogueController(commands)
    async with supervised(observer := RecordingObserver(), fake.path, context=quick_context(thresholds=rogue)):
        await observer.wait_until(lambda: len(rogue.done) == len(commands))
    assert not any(rogue.done)
    assert observer.types("vm") == ["vm.attached", "vm.detached"]  # each command is refused, and the session goes on


async def test_no_config_can_enable_a_command_by_name(schema: list[dict[str, Any]]) -> None:
    for name in command_names(schema):
        for entry in (f"allow: {{{name}: true}}", f"allow: [{name}]", f"commands: [{name}]", f"allow: {name}"):
            with pytest.raises(ConfigError):
                validate_yaml(f"monitors: [{{dial: /run/x}}]\n{entry}\n", "f", Config)


async def test_neither_names_from_qemu_nor_http_requests_become_commands(
    schema: list[dict[str, Any]], folder: Path
) -> None:
    names = command_names(schema)
    evil = '"}}{"execute":"quit"}\r\n{"execute":"human-monitor-command","arguments":{"command-line":"quit"}}'
    disks = [
        {"qdev": f"{name}{evil}", "node-name": f"{name}{evil}", "stats": {"wr_highest_offset": 9}} for name in names
    ]
    child = {"name": f"balloon0{evil}", "type": "child<virtio-balloon-pci>"}
    replies: dict[str, Any] = {
        "query-blockstats": disks,
        "query-named-block-nodes": [{"node-name": disk["node-name"], "drv": "file", "file": evil} for disk in disks],
        "qom-list": [child],
        "qom-get": 0,
        "query-name": {"name": evil},
        "query-status": {"status": evil, "running": True},
    }
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "100ms"},
        "alerts": {"disks": {"mode": "arm"}},
        "allow": {"guest_stats_interval": "10s", "migration_events": True},
    }
    async with FakeQemu(folder / "vm1.qmp", replies=replies) as fake, AgentProcess(folder, config) as agent:
        await fake.wait_for("query-blockstats", 2)
        for name in names:
            fake.emit(name, {"execute": name, "device": evil, "node-name": evil})
            fake.emit(f'X"}}{{"execute":"{name}"', {})
        async with aiohttp.ClientSession() as session:
            for name in names:
                for path in (f"/{name}", f"/metrics?execute={name}", f"/records/{name}", f"/records?severity={name}"):
                    async with session.get(agent.url + path) as response:
                        assert response.status in (200, 400, 404), path
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + 3)
    assert [request for request in fake.requests if command_audit.violation(request) is not None] == []


def test_requests_are_encoded_in_one_file_and_written_in_one_function() -> None:
    encoders, written = set(), set()
    for path in (ROOT / "agent").rglob("*.py"):
        text = path.read_text()
        if re.search(r"\bRequest\(|[\"']execute[\"']|[\"'{]exec-oob|qmp_capabilities", text):
            encoders.add(path.relative_to(ROOT / "agent").as_posix())
        if path.parent.name in ("qmp", "monitors", "libvirt", "session", "collectors", "alerts"):
            written |= {path.name} if re.search(r"\.write\(|\.sendall\(|\.sendto\(|sock_sendall", text) else set()
    captures = {
        "cli/capture/capture_file.py",
        "cli/capture/replay.py",
    }  # read captures, and replay them as a server
    assert encoders <= {"qmp/commands.py", "qga/commands.py", "cli/demo/guest_qmp_client.py", *captures}
    assert written == {"client.py"}
    writers = re.findall(
        r"    def (\w+)\((?:(?!    def ).)*?\.write\(", (ROOT / "agent/qmp/client.py").read_text(), re.DOTALL
    )
    assert writers == ["_write"]
