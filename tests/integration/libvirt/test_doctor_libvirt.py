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

from agent.host.qemu_processes import read_command_line
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.golden_files import same_text
from tests.lab.libvirt import Libvirtd
from tests.lab.machine import free_port, is_listening
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUIDS: Final = {
    name: f"00000000-0000-4000-8000-{number:012}"
    for number, name in enumerate(("free", "held", "nothing", "denied", "tcp", "tcp-held", "calls", "waits", "watched"))
}

HOLDER_SCRIPT: Final = """\
import socket, sys
held = [socket.create_connection(("127.0.0.1", int(a))) if a.isdecimal() else socket.socket(socket.AF_UNIX) for a in sys.argv[1:]]
for sock, address in zip(held, sys.argv[1:]):
    if not address.isdecimal():
        sock.connect(address)
    sock.recv(1)
print("held", flush=True)
sys.stdin.read()
"""
"""A program that stands for a VM manager: it connects to the sockets and ports of its arguments, and stays connected."""


VM_NAME_PREFIX: Final = f"doctor{os.getpid()}-"
"""Prefix of the VMs' names; another test run on this machine has another."""


@dataclass(frozen=True, slots=True)
class VmHost:
    """A host with a VM of each kind: the VMs of `UUIDS`, and a libvirtd with the domain `libvirt`.

    Attributes:
        folder: the directory with the VMs' sockets.
        ports: the TCP port of each VM whose monitor is on TCP, by its name.
        libvirtd: the libvirtd.
    """

    folder: Path
    ports: Mapping[str, int]
    libvirtd: Libvirtd

    def without_run_details(self, text: str) -> str:
        """Return doctor's output without the parts that differ between runs."""
        for number, (name, port) in enumerate(self.ports.items()):
            text = re.sub(rf"\b{port}\b", f"PORT{number}-{name}", text)
        text = (
            text.replace(str(self.libvirtd.folder), "LIBVIRT")
            .replace(str(self.folder), "FOLDER")
            .replace(VM_NAME_PREFIX, "doctor-")
        )
        return re.sub(r"(pid ?\W?) \d+", r"\1 N", text)


async def start_process(
    stack: AsyncExitStack, *line: str, umask: int = 0, **options: Any
) -> asyncio.subprocess.Process:
    """Start a process that ends when the stack is closed, or when this process ends."""
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
async def vm_host(libvirtd: Libvirtd, open_folder: Path) -> AsyncIterator[VmHost]:
    """A host with a VM of each kind."""
    folder = open_folder
    folder.joinpath("private").mkdir(mode=0o700)
    vm_host = VmHost(folder, {"tcp": free_port(), "tcp-held": free_port()}, libvirtd)
    reconnect = "reconnect=1 -mon chardev=m,mode=control"
    monitors = {
        **{name: f"-qmp unix:{folder}/{name}.qmp,server=on,wait=off" for name in ("free", "held", "watched")},
        "denied": f"-qmp unix:{folder}/private/denied.qmp,server=on,wait=off",
        "nothing": "-monitor none",
        **{name: f"-qmp tcp:127.0.0.1:{port},server=on,wait=off" for name, port in vm_host.ports.items()},
        "calls": f"-chardev socket,id=m,path={folder}/agent.sock,{reconnect}",
        "waits": f"-chardev socket,id=m,path={folder}/absent.sock,{reconnect}",
    }
    async with AsyncExitStack() as stack:
        for name, options in monitors.items():
            qemu = f"qemu-system-x86_64 -name {VM_NAME_PREFIX}{name} -uuid {UUIDS[name]} -S -machine none -nodefaults -display none"
            process = await start_process(stack, *qemu.split(), *options.split(), umask=0o77 if name == "denied" else 0)
            await until(lambda pid=process.pid: is_qemu(pid), 180)  # type: ignore[misc]
        sockets = (folder / "held.qmp", folder / "private/denied.qmp", folder / "free.qmp", folder / "watched.qmp")
        await until(lambda: all(path.is_socket() for path in sockets), 180)
        await until(lambda: all(is_listening(port) for port in vm_host.ports.values()), 180)
        (folder / "vm-manager").write_text(HOLDER_SCRIPT)
        manager = await start_process(
            stack,
            *(sys.executable, f"{folder}/vm-manager", f"{folder}/held.qmp", str(vm_host.ports["tcp-held"])),
            stdout=asyncio.subprocess.PIPE,
        )
        assert manager.stdout is not None
        async with asyncio.timeout(300):
            assert await manager.stdout.readline() == b"held\n"
        await libvirtd.domain(f"{VM_NAME_PREFIX}libvirt", identity="00000000-0000-4000-8000-00000000000f")
        yield vm_host


def is_qemu(pid: int) -> bool:
    """Return whether a process has become QEMU: before, it is the program that starts QEMU."""
    return Path(f"/proc/{pid}/exe").readlink().name == "qemu-system-x86_64"


async def doctor(*options: str | Path) -> str:
    """Return doctor's output about the VMs of this test."""
    result = await run_command("doctor", "--vm", f"{VM_NAME_PREFIX}*", *options)
    assert (result.status, result.log) == (0, "")
    return result.out


def write_config(vm_host: VmHost, name: str, monitors: Sequence[Mapping[str, Any]]) -> Path:
    """Write a config with these monitors only."""
    path = vm_host.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"monitors": [dict(entry) for entry in monitors]}))
    return path


async def test_doctor_reports_each_vms_holder_and_the_change_that_it_needs(vm_host: VmHost) -> None:
    output = vm_host.without_run_details(await doctor("--user", "nobody"))
    assert same_text("doctor.txt", output)


async def test_doctor_reports_the_vms_that_a_config_reaches_and_what_blocks_the_others(
    vm_host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitors = [
        {"dial": f"{vm_host.folder}/*.qmp"},
        {"dial": f"{vm_host.folder}/private/*.qmp"},
        {"dial": f"tcp:localhost:{vm_host.ports['tcp']}"},
        {"listen": f"{vm_host.folder}/agent.sock"},
        {"libvirt": vm_host.libvirtd.uri},
    ]
    path = write_config(vm_host, "whole", monitors)
    monkeypatch.setattr("tests.lab.agent_process.COMMAND", (str(Path(sys.executable).parent / "qmp-agent"),))
    watching = [{"dial": f"{vm_host.folder}/watched.qmp"}, {"listen": f"{vm_host.folder}/agent.sock"}]
    async with AgentProcess(vm_host.folder, {"monitors": watching}, is_forked=False) as agent:
        for name in ("watched", "calls"):
            await agent.wait_for_record("vm.attached", vm=UUIDS[name])
        output = vm_host.without_run_details(await doctor("--config", path, "--user", "nobody"))
        assert same_text("doctor-configured.txt", output)


async def test_doctors_json_has_a_field_for_everything_that_it_reports(vm_host: VmHost) -> None:
    vms = {vm["name"].removeprefix(VM_NAME_PREFIX): vm for vm in json.loads(await doctor("--json", "--user", "root"))}
    assert vms.keys() == {"libvirt", *UUIDS}
    held = vms["held"]
    assert held["monitors"][0] | {"holder_pid": 0} == {
        "address": f"{vm_host.folder}/held.qmp",
        "state": "held",
        "holder": "vm-manager",
        "holder_pid": 0,
        "missing": "",
        "entry": "",
        "used_by_manager": False,
    }
    assert any("vm-manager" in word for word in read_command_line(held["monitors"][0]["holder_pid"]))
    assert held["uuid"] == UUIDS["held"]
    assert {vm["state"] for vm in vms.values()} == {"unwatched"}
    assert vms["libvirt"]["manager"] == "libvirt"
    assert vms["libvirt"]["monitors"][0]["holder"] == "libvirtd"


async def test_the_config_that_doctor_proposes_reaches_the_vms(vm_host: VmHost) -> None:
    vms = {vm["name"].removeprefix(VM_NAME_PREFIX): vm for vm in json.loads(await doctor("--json", "--user", "root"))}
    proposed_names = ("free", "tcp", "waits", "denied")
    lines = [line for name in proposed_names for line in vms[name]["steps"] if line.startswith("    - ")]
    async with AgentProcess(vm_host.folder, yaml.safe_load("\n".join(["monitors:", *lines])), name="named") as agent:
        for name in proposed_names:
            await agent.wait_for_record("vm.attached", vm=vms[name]["uuid"])


async def test_the_commands_that_doctor_proposes_give_the_user_access(vm_host: VmHost) -> None:
    def report_of_denied_vm(text: str) -> dict[str, Any]:
        return next(vm for vm in json.loads(text) if vm["name"] == f"{VM_NAME_PREFIX}denied")

    path = write_config(vm_host, "denied", [{"dial": f"{vm_host.folder}/private/*.qmp"}])
    monitor = vm_host.folder / "private" / "denied.qmp"
    options = ("--config", path, "--user", "nobody", "--json")
    vm = report_of_denied_vm(await doctor(*options))
    assert (vm["state"], vm["steps"][0]) == ("unwatched", "as root:")
    for line in vm["steps"][1:]:
        assert await (await asyncio.create_subprocess_shell(line)).wait() == 0
    assert report_of_denied_vm(await doctor(*options))["state"] == "configured"
    assert await may_write(monitor)


async def test_a_directory_of_the_agents_group_and_a_group_umask_give_the_user_access(
    vm_host: VmHost,
) -> None:
    folder = vm_host.folder / "shared"
    folder.mkdir()
    for line in (f"chgrp nogroup {folder}", f"chmod 2770 {folder}"):
        assert await (await asyncio.create_subprocess_shell(line)).wait() == 0
    async with AsyncExitStack() as stack:
        monitor = f"unix:{folder}/doctor-shared.qmp,server=on,wait=off"
        qemu = (
            f"qemu-system-x86_64 -name {VM_NAME_PREFIX}shared -S -machine none -nodefaults -display none -qmp {monitor}"
        )
        await start_process(stack, *qemu.split(), umask=0o007)
        await until((folder / "doctor-shared.qmp").is_socket, 180)
        assert await may_write(folder / "doctor-shared.qmp", "nogroup")
        path = write_config(vm_host, "shared", [{"dial": f"{folder}/*.qmp"}])
        output = json.loads(await doctor("--config", path, "--user", "nobody", "--json"))
        assert [vm["state"] for vm in output if vm["name"] == f"{VM_NAME_PREFIX}shared"] == ["configured"]


async def may_write(path: Path, group: str = "65534") -> bool:
    """Return whether the kernel lets a process of user 65534 write."""
    as_nobody = ("setpriv", "--reuid", "65534", "--regid", group, "--clear-groups")
    return await (await asyncio.create_subprocess_exec(*as_nobody, "test", "-w", path)).wait() == 0
