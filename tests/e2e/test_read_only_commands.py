"""Nothing makes the agent say anything to a QEMU that is not on its list: every command there is, by every way in."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.config.loader import ConfigError, validate
from agent.config.model import Config
from agent.model.record import Vm
from agent.qmp.commands import READS, AllowList, Change, Command
from agent.qmp.errors import CommandRefusedError
from tests.lab import command_audit
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.lab.scripted_peer import connected

ROOT = Path(__file__).parents[2]
FORMS: dict[str, Any] = {
    "qom-get": {"path": "/machine/peripheral/balloon0", "property": "guest-stats"},
    "qom-set": {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 10},
    "migrate-set-capabilities": {"capabilities": [{"capability": "events", "state": True}]},
    "block-set-write-threshold": {"node-name": "disk0", "write-threshold": 1 << 20},
}


@pytest.fixture
async def schema(start_guest: StartGuest) -> list[dict[str, Any]]:
    """All that a real QEMU says it understands."""
    found: list[dict[str, Any]] = await (await start_guest("schema")).command("query-qmp-schema")
    return found


def commands(schema: list[dict[str, Any]]) -> list[str]:
    return [entity["name"] for entity in schema if entity["meta-type"] == "command"]


def arguments(schema: list[dict[str, Any]], name: str) -> list[dict[str, Any] | None]:
    """Return arguments that QEMU would take for a command: none, the least that it needs, and all that it knows."""
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
                needed = [member for member in entity["members"] if "default" not in member]
                return {member["name"]: value(member["type"], depth + 1) for member in needed}
        return {}

    members = by_name[command["arg-type"]]["members"]
    all_known = {member["name"]: value(member["type"]) for member in members}
    least = {member["name"]: all_known[member["name"]] for member in members if "default" not in member}
    return [None, {}, least, all_known, *FORMS.values()]


async def test_of_all_that_qemu_understands_in_all_its_forms_the_list_alone_becomes_bytes(
    schema: list[dict[str, Any]],
) -> None:
    names = commands(schema)
    assert len(names) > 150
    said = set()
    for allow in (AllowList(), *(AllowList([change]) for change in Change), AllowList(Change)):
        for name in names:
            for given in arguments(schema, name):
                try:
                    data = allow.encode(Command(name, given))
                except CommandRefusedError:
                    continue
                request = json.loads(data)
                assert command_audit.violation(request) is None, request
                assert request.keys() <= {"execute", "arguments"}
                said.add(request["execute"])
    assert said == (READS | FORMS.keys()) & {*names}


async def test_a_connection_that_is_asked_to_say_anything_else_says_nothing_at_all(
    schema: list[dict[str, Any]], fake: FakeQemu
) -> None:
    async with connected(fake.path) as client:
        said, written = len(fake.requests), client.bytes_written
        for name in commands(schema):
            if name in READS:
                continue
            for given in arguments(schema, name):
                with pytest.raises(CommandRefusedError):
                    await client.execute([Command("query-status"), Command(name, given)], deadline=1)
        assert client.bytes_written == written
        assert len(fake.requests) == said
        await client.execute([Command("query-status")], deadline=1)


class Rogue:
    """A commander that has been taken over: it orders everything."""

    # ruff: noqa: ARG002 - the signatures are Commander's

    def __init__(self, orders: Sequence[Command]) -> None:
        self.left = list(orders)
        self.done: list[bool] = []

    def refreshes_due(self, vm: Vm) -> set[str]:
        return {"block"}

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        now, self.left = self.left[:50], self.left[50:]
        return [("disk", ask) for ask in now]

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        self.done.append(done)


async def test_whoever_gives_a_session_orders_is_not_obeyed_past_the_list(
    schema: list[dict[str, Any]], fake: FakeQemu
) -> None:
    orders = [
        Command(name, given) for name in commands(schema) if name not in READS for given in arguments(schema, name)
    ]
    rogue = Rogue(orders)
    async with supervised(observer := RecordingObserver(), fake.path, context=quick_context(thresholds=rogue)):
        await observer.wait_until(lambda: len(rogue.done) == len(orders))
    assert not any(rogue.done)
    assert observer.types("vm") == ["vm.attached", "vm.detached"]  # it is refused order by order, and goes on


async def test_no_config_turns_on_a_command_by_its_name(schema: list[dict[str, Any]]) -> None:
    for name in commands(schema):
        for entry in (f"allow: {{{name}: true}}", f"allow: [{name}]", f"commands: [{name}]", f"allow: {name}"):
            with pytest.raises(ConfigError):
                validate(f"monitors: [{{dial: /run/x}}]\n{entry}\n", "f", Config)


async def test_no_name_that_a_qemu_gives_becomes_a_command_and_no_request_to_the_endpoint_does(
    schema: list[dict[str, Any]], folder: Path
) -> None:
    names = commands(schema)
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
        "alerts": {"write_threshold": {"mode": "arm"}},
        "allow": {"guest_stats_interval": "10s", "migration_events": True},
    }
    async with FakeQemu(folder / "vm1.qmp", replies=replies) as fake, AgentProcess(folder, config) as agent:
        await fake.wait_for("query-blockstats", 2)
        for name in names:
            fake.emit(name, {"execute": name, "device": evil, "node-name": evil})
            fake.emit(f'X"}}{{"execute":"{name}"', {})
        async with asyncio.timeout(30):
            for name in names:
                for path in (f"/{name}", f"/metrics?execute={name}", f"/records/{name}", f"/records?severity={name}"):
                    status, _ = await agent.get(path)
                    assert status in (200, 400, 404), path
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + 3)
    assert [request for request in fake.requests if command_audit.violation(request) is not None] == []


def test_bytes_for_a_monitor_are_made_in_one_file_and_written_in_one_place() -> None:
    made, written = set(), set()
    for path in (ROOT / "agent").rglob("*.py"):
        text = path.read_text()
        if re.search(r"\bRequest\(|[\"']execute[\"']|[\"'{]exec-oob|qmp_capabilities", text):
            made.add(path.relative_to(ROOT / "agent").as_posix())
        if path.parent.name in ("qmp", "monitors", "libvirt", "session", "collectors", "alerts"):
            written |= {path.name} if re.search(r"\.write\(|\.sendall\(|\.sendto\(|sock_sendall", text) else set()
    speaks_of_them = {
        "cli/capture/file.py",
        "cli/capture/replay.py",
    }  # recordings, and a stand-in that is asked and never asks
    assert made <= {"qmp/commands.py", "cli/demo/control.py", *speaks_of_them}
    assert written == {"client.py"}
    writers = re.findall(
        r"    def (\w+)\((?:(?!    def ).)*?\.write\(", (ROOT / "agent/qmp/client.py").read_text(), re.DOTALL
    )
    assert writers == ["_write"]
