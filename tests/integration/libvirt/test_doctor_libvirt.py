"""`qmp-agent doctor` on this host, with a VM of each kind."""

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml

from agent.cli.demo.guest import until
from agent.host.qemu_processes import command_line
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.golden_files import same_text
from tests.lab.libvirt import Libvirtd
from tests.lab.machine import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUIDS: Final = {
    name: f"00000000-0000-4000-8000-{number:012}"
    for number, name in enumerate(("free", "held", "nothing", "denied", "tcp", "tcp-held", "calls", "waits", "watched"))
}

HOLD: Final = """\
import socket, sys
held = [socket.create_connection(("127.0.0.1", int(a))) if a.isdecimal() else socket.socket(socket.AF_UNIX) for a in sys.argv[1:]]
for sock, address in zip(held, sys.argv[1:]):
    if not address.isdecimal():
        sock.connect(address)
    sock.recv(1)
print("held", flush=True)
sys.stdin.read()
"""
"""A manager that holds the addresses that it is given."""


VMS: Final = f"doctor{os.getpid()}-"
"""Prefix of the VMs' names; another test run on this machine has another."""


@dataclass(frozen=True, slots=True)
class Here:
    """VMs of each kind: those of `UUIDS`, and the libvirtd with its domain `libvirt`."""

    folder: Path
    ports: Mapping[str, int]
    libvirtd: Libvirtd

    def known(self, text: str) -> str:
        """Return doctor's output without the parts that differ between runs."""
        for number, (name, port) in enumerate(self.ports.items()):
            text = re.sub(rf"\b{port}\b", f"PORT{number}-{name}", text)
        text = (
            text.replace(str(self.libvirtd.folder), "LIBVIRT")
            .replace(str(self.folder), "FOLDER")
            .replace(VMS, "doctor-")
        )
        return re.sub(r"(pid ?\W?) \d+", r"\1 N", text)


async def run(stack: AsyncExitStack, *line: str, umask: int = 0, **options: Any) -> asyncio.subprocess.Process:
    """Start a process that ends with this one."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *line), umask=umask, stdin=asyncio.subprocess.PIPE, **options
    )

    async def end() -> None:
        process.kill()
        await process.wait()

    stack.push_async_callback(end)
    return process


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(libvirtd: Libvirtd, open_folder: Path) -> AsyncIterator[Here]:
    """A host with a VM of each kind."""
    folder = open_folder
    folder.joinpath("private").mkdir(mode=0o700)
    here = Here(folder, {"tcp": free_port(), "tcp-held": free_port()}, libvirtd)
    reconnect = "reconnect=1 -mon chardev=m,mode=control"
    monitors = {
        **{name: f"-qmp unix:{folder}/{name}.qmp,server=on,wait=off" for name in ("free", "held", "watched")},
        "denied": f"-qmp unix:{folder}/private/denied.qmp,server=on,wait=off",
        "nothing": "-monitor none",
        **{name: f"-qmp tcp:127.0.0.1:{port},server=on,wait=off" for name, port in here.ports.items()},
        "calls": f"-chardev socket,id=m,path={folder}/agent.sock,{reconnect}",
        "waits": f"-chardev socket,id=m,path={folder}/absent.sock,{reconnect}",
    }
    async with AsyncExitStack() as stack:
        for name, options in monitors.items():
            qemu = (
                f"qemu-system-x86_64 -name {VMS}{name} -uuid {UUIDS[name]} -S -machine none -nodefaults -display none"
            )
            await run(stack, *qemu.split(), *options.split(), umask=0o77 if name == "denied" else 0)
        held = (folder / "held.qmp", folder / "private/denied.qmp", folder / "free.qmp", folder / "watched.qmp")
        await until(lambda: all(path.is_socket() for path in held), 60)
        (folder / "vm-manager").write_text(HOLD)
        manager = await run(
            stack,
            *(sys.executable, f"{folder}/vm-manager", f"{folder}/held.qmp", str(here.ports["tcp-held"])),
            stdout=asyncio.subprocess.PIPE,
        )
        assert manager.stdout is not None
        async with asyncio.timeout(20):
            assert await manager.stdout.readline() == b"held\n"
        await libvirtd.domain(f"{VMS}libvirt", identity="00000000-0000-4000-8000-00000000000f")
        yield here


async def doctor(*options: str | Path) -> str:
    """Return doctor's output about the VMs of this test."""
    ended = await run_command("doctor", "--vm", f"{VMS}*", *options)
    assert (ended.status, ended.log) == (0, "")
    return ended.out


def config(here: Here, name: str, monitors: Sequence[Mapping[str, Any]]) -> Path:
    """Write a config with these monitors only."""
    path = here.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"monitors": [dict(entry) for entry in monitors]}))
    return path


async def test_doctor_reports_each_vms_holder_and_the_change_that_it_needs(here: Here) -> None:
    output = here.known(await doctor("--user", "nobody"))
    assert same_text("doctor.txt", output)


async def test_doctor_reports_the_vms_that_a_config_reaches_and_what_blocks_the_others(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitors = [
        {"dial": f"{here.folder}/*.qmp"},
        {"dial": f"{here.folder}/private/*.qmp"},
        {"dial": f"tcp:localhost:{here.ports['tcp']}"},
        {"listen": f"{here.folder}/agent.sock"},
        {"libvirt": here.libvirtd.uri},
    ]
    path = config(here, "whole", monitors)
    monkeypatch.setattr("tests.lab.agent_process.COMMAND", (str(Path(sys.executable).parent / "qmp-agent"),))
    watching = [{"dial": f"{here.folder}/watched.qmp"}, {"listen": f"{here.folder}/agent.sock"}]
    async with AgentProcess(here.folder, {"monitors": watching}) as agent:
        for name in ("watched", "calls"):
            await agent.wait_for_record("vm.attached", vm=UUIDS[name])
        output = here.known(await doctor("--config", path, "--user", "nobody"))
        assert same_text("doctor-configured.txt", output)


async def test_doctors_json_has_a_field_for_everything_that_it_reports(here: Here) -> None:
    vms = {vm["name"].removeprefix(VMS): vm for vm in json.loads(await doctor("--json", "--user", "root"))}
    assert vms.keys() == {"libvirt", *UUIDS}
    held = vms["held"]
    assert held["monitors"][0] | {"holder_pid": 0} == {
        "address": f"{here.folder}/held.qmp",
        "state": "held",
        "holder": "vm-manager",
        "holder_pid": 0,
        "missing": "",
        "entry": "",
        "used_by_manager": False,
    }
    assert any("vm-manager" in word for word in command_line(held["monitors"][0]["holder_pid"]))
    assert held["uuid"] == UUIDS["held"]
    assert {vm["state"] for vm in vms.values()} == {"unwatched"}
    assert vms["libvirt"]["manager"] == "libvirt"
    assert vms["libvirt"]["monitors"][0]["holder"] == "libvirtd"


async def test_the_config_that_doctor_proposes_reaches_the_vms(here: Here) -> None:
    vms = {vm["name"].removeprefix(VMS): vm for vm in json.loads(await doctor("--json", "--user", "root"))}
    named = ("free", "tcp", "waits", "denied")
    lines = [line for name in named for line in vms[name]["steps"] if line.startswith("    - ")]
    async with AgentProcess(here.folder, yaml.safe_load("\n".join(["monitors:", *lines])), name="named") as agent:
        for name in named:
            await agent.wait_for_record("vm.attached", vm=vms[name]["uuid"])


async def test_the_commands_that_doctor_proposes_give_the_user_access(here: Here) -> None:
    def denied(text: str) -> dict[str, Any]:
        return next(vm for vm in json.loads(text) if vm["name"] == f"{VMS}denied")

    path = config(here, "denied", [{"dial": f"{here.folder}/private/*.qmp"}])
    monitor = here.folder / "private" / "denied.qmp"
    options = ("--config", path, "--user", "nobody", "--json")
    vm = denied(await doctor(*options))
    assert (vm["state"], vm["steps"][0]) == ("unwatched", "as root:")
    for line in vm["steps"][1:]:
        assert await (await asyncio.create_subprocess_shell(line)).wait() == 0
    assert denied(await doctor(*options))["state"] == "configured"
    assert await may_write(monitor)


async def test_a_directory_of_the_agents_group_and_a_group_umask_give_the_user_access(
    here: Here,
) -> None:
    folder = here.folder / "shared"
    folder.mkdir()
    for line in (f"chgrp nogroup {folder}", f"chmod 2770 {folder}"):
        assert await (await asyncio.create_subprocess_shell(line)).wait() == 0
    async with AsyncExitStack() as stack:
        monitor = f"unix:{folder}/doctor-shared.qmp,server=on,wait=off"
        qemu = f"qemu-system-x86_64 -name {VMS}shared -S -machine none -nodefaults -display none -qmp {monitor}"
        await run(stack, *qemu.split(), umask=0o007)
        await until((folder / "doctor-shared.qmp").is_socket, 60)
        assert await may_write(folder / "doctor-shared.qmp", "nogroup")
        path = config(here, "shared", [{"dial": f"{folder}/*.qmp"}])
        output = json.loads(await doctor("--config", path, "--user", "nobody", "--json"))
        assert [vm["state"] for vm in output if vm["name"] == f"{VMS}shared"] == ["configured"]


async def may_write(path: Path, group: str = "65534") -> bool:
    """Return whether the kernel lets a process of user 65534 write."""
    as_nobody = ("setpriv", "--reuid", "65534", "--regid", group, "--clear-groups")
    return await (await asyncio.create_subprocess_exec(*as_nobody, "test", "-w", path)).wait() == 0
