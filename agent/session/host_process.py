"""Discovery of a VM's process on the host: its pid, its threads and its network interfaces, from QEMU's answers and the kernel."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from agent.collectors.base import Facts
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.host import Process, QemuProcess, UnknownProcessError, find_process, interfaces_of, labels_of
from agent.host.types import FileReply, FileRequest, Interface, Task
from agent.model.family import Sample, Values
from agent.model.metrics.about import ABOUT
from agent.model.record import Vm, sanitize
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.session.api import SessionContext
from agent.session.identity import DEVICE_CONTAINERS

COMMANDS = (
    Command("query-cpus-fast"),
    Command("query-iothreads"),
    Command("query-kvm"),
    Command("qom-get", {"path": "/machine", "property": "type"}),
)

REQUIRED_COMMANDS = {"vcpu": "query-cpus-fast", "iothread": "query-iothreads"}
"""By collector that reads files of threads, the QMP command that lists these threads."""

_NICS = tuple(
    f"child<{kind}"
    for kind in (
        "virtio-net-",
        "e1000",
        "igb",
        "rtl8139",
        "vmxnet3",
        "pcnet",
        "ne2k",
        "i8255",
        "tulip",
        "usb-net",
        "spapr-vlan",
    )
)
"""Prefixes of network card types. Listing the types through QEMU would load modules."""

MAX_NICS = 64
"""Maximum number of network cards to query; QEMU's machines have room for fewer."""

HOST_TIMEOUT_SECONDS = 5.0
"""Timeout of each lookup on the host. Reading the fdinfo of a tap waits for the kernel's network lock."""

MAX_THREADS = 8192
"""Maximum number of threads to report. QEMU's machines have at most 4096 vCPUs (11.1)."""

Execute = Callable[[Sequence[Command]], Awaitable[list[CommandResult]]]
T = TypeVar("T")
Nics = Mapping[str, Mapping[str, Any]]
"""Properties of network cards by MAC address in lower case."""


class HostProcess:
    """The process of one VM. Close it with the session."""

    def __init__(self, context: SessionContext) -> None:
        self.about = Sample(ABOUT, (), {})
        """Description of the VM, as far as it is known."""
        self._context = context
        self._process: Process | None = None
        self._interface_names: frozenset[str] = frozenset()
        self._nics: Nics = {}

    def close(self) -> None:
        """Close the process's directory."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def read(self, files: Sequence[FileRequest]) -> Sequence[FileReply]:
        """Return the texts of these files; all are None if the process is unknown."""
        return (
            self._process.read_files(files) if self._process is not None else [FileReply(file, None) for file in files]
        )

    async def discover(self, execute: Execute, socket_owner: int | None, vm: Vm, facts: Facts) -> Facts:
        """Find the VM's process and return the facts with its data added.

        Args:
            execute: executes commands on QEMU.
            socket_owner: pid of the process that opened the monitor's socket, or None; see `find_process`.
            vm: the VM.
            facts: the facts so far.

        Raises:
            QmpError: the connection ended.
        """
        commands = [command for command in COMMANDS if facts.has_command(command.name)]
        results = await execute(commands) if commands else ()
        answers = dict(zip((command.name for command in commands), results, strict=True))
        cpus_answer, iothreads_answer, kvm, machine = (answers.get(command.name) for command in COMMANDS)
        vcpus, iothreads = list(_vcpus(cpus_answer)), list(_iothreads(iothreads_answer))
        values = dict(_machine(kvm, machine))
        with contextlib.suppress(TimeoutError):
            if labels := await _in_thread(partial(labels_of, vm, self._context.settings.labels)):
                values["labels"] = labels
        threads = [task.id for task in (*vcpus, *iothreads)]
        try:
            qemu = await _in_thread(partial(find_process, socket_owner, threads, self._context.root), _close_result)
        except (UnknownProcessError, TimeoutError) as error:
            self.close()
            cause = str(error) or f"the lookup on the host timed out after {HOST_TIMEOUT_SECONDS:g} s"
            self.about = Sample(ABOUT, (), values | {"process_unknown": cause})
            return dataclasses.replace(facts, process=None, vcpus=(), iothreads=(), cgroup=None, interfaces=())
        self.close()
        self._process = qemu.process
        self.about = Sample(ABOUT, (), values | {"pid": str(qemu.process.pid)})
        return dataclasses.replace(
            facts,
            process=_process_task(qemu),
            vcpus=tuple(dataclasses.replace(task, id=qemu.threads[task.id]) for task in vcpus),
            iothreads=tuple(dataclasses.replace(task, id=qemu.threads[task.id]) for task in iothreads),
            cgroup=qemu.cgroup,
            interfaces=await self._interfaces(execute, qemu.process),
        )

    async def _interfaces(self, execute: Execute, process: Process) -> tuple[Interface, ...]:
        """Return the process's network interfaces. QEMU's network cards are queried only when a new interface appears."""
        try:
            interfaces = await _in_thread(partial(interfaces_of, process, self._nics))
        except TimeoutError:
            return ()
        names = frozenset(interface.name for interface in interfaces)
        if names <= self._interface_names:
            return interfaces
        self._interface_names, self._nics = names, await _query_nics(execute)
        try:
            return await _in_thread(partial(interfaces_of, process, self._nics))
        except TimeoutError:
            return interfaces


async def _in_thread(call: Callable[[], T], undo: Callable[["asyncio.Future[T]"], None] = lambda _: None) -> T:
    """Run a blocking call in a thread and return its result.

    Args:
        call: the call.
        undo: handles the result when it arrives after the timeout.

    Raises:
        TimeoutError: the call took longer than HOST_TIMEOUT_SECONDS.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        async with asyncio.timeout(HOST_TIMEOUT_SECONDS):
            return await asyncio.shield(running)
    except BaseException:
        running.add_done_callback(undo)
        raise
    finally:
        del running  # breaks a reference cycle: the future holds an error whose traceback holds this frame


def _close_result(running: "asyncio.Future[QemuProcess]") -> None:
    if not running.cancelled() and running.exception() is None:
        running.result().process.close()


def _process_task(qemu: QemuProcess) -> Task:
    values = {"start_seconds": qemu.start_seconds, "cgroup": qemu.cgroup_name or None}
    return Task(qemu.process.pid, "", {key: value for key, value in values.items() if value is not None})


def _thread_id(item: Mapping[str, Any]) -> int | None:
    thread = item.get("thread-id")
    return thread if type(thread) is int and 0 < thread < 1 << 31 else None


def _vcpus(answer: Any) -> Iterator[Task]:
    """Yield the vCPU threads with QEMU's own thread ids; none for QEMU before 2.12, which lacks the command."""
    for cpu in as_list_of_objects(answer, MAX_THREADS):
        thread = _thread_id(cpu)
        if thread is not None and type(index := cpu.get("cpu-index")) is int:
            yield Task(thread, str(index), {"qom_path": cpu.get("qom-path"), "topology": cpu.get("props")})


def _iothreads(answer: Any) -> Iterator[Task]:
    for iothread in as_list_of_objects(answer, MAX_THREADS):
        thread = _thread_id(iothread)
        if thread is not None and (name := as_text(iothread.get("id"))):
            values = {
                key.replace("-", "_"): iothread.get(key)
                for key in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch")
            }
            yield Task(thread, sanitize(name), values)


def _machine(kvm: Any, machine: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(machine, str):
        yield "machine", sanitize(machine.removesuffix("-machine"), 128)
    if isinstance(kvm, dict) and type(enabled := kvm.get("enabled")) is bool:
        yield "accelerator", "kvm" if enabled else "other"


async def _query_nics(execute: Execute) -> Nics:
    """Return the guest's network cards by MAC address."""
    listings = await execute([Command("qom-list", {"path": container}) for container in DEVICE_CONTAINERS])
    paths = [
        (name, f"{container}/{name}")
        for container, children in zip(DEVICE_CONTAINERS, listings, strict=True)
        for child in as_list_of_objects(children)
        if as_text(child.get("type")).startswith(_NICS) and (name := as_text(child.get("name")))
    ]
    nics: dict[str, Values] = {}
    for name, path in paths[:MAX_NICS]:
        mac, netdev = await execute([Command("qom-get", {"path": path, "property": key}) for key in ("mac", "netdev")])
        if isinstance(mac, str):
            nics[mac.lower()] = {"mac": sanitize(mac.lower(), 32), "device": sanitize(name)}
            if isinstance(netdev, str) and netdev:
                nics[mac.lower()]["netdev"] = sanitize(netdev)
    return nics
