"""Discovery of a VM's process on the host: pid, threads and network interfaces, from QEMU's replies and the kernel's files."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from agent.collectors.base import VmFacts
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.host.interfaces import find_process_interfaces
from agent.host.libvirt_metadata import parse_libvirt_labels, read_libvirt_labels
from agent.host.process import Process
from agent.host.qemu_process_identification import QemuProcess, UnidentifiedProcessError, identify_qemu_process
from agent.host.types import (
    KernelFileContents,
    KernelFilesToRead,
    ProcessOrThread,
    VirtualFunctionCountersToRead,
    VmHostInterface,
)
from agent.model.family import FieldValues, Sample
from agent.model.metrics.identity import IDENTITY
from agent.model.record import Vm, sanitize
from agent.monitors import DomainXmlReader
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.session.identity_and_features import DEVICE_CONTAINERS
from agent.session.shared_types import SessionContext

PROCESS_COMMANDS = (
    Command("query-cpus-fast"),
    Command("query-iothreads"),
    Command("query-kvm"),
    Command("qom-get", {"path": "/machine", "property": "type"}),
)
"""Commands whose replies describe a VM's threads, accelerator and machine type."""

THREAD_LIST_COMMANDS = {"vcpu": "query-cpus-fast", "iothread": "query-iothreads"}
"""The QMP command that lists the threads, by name of the collector that reads the threads."""

_NIC_TYPES = tuple(
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
"""Prefixes of the QOM types of network cards. The list is fixed, because QEMU would load modules to list the types."""

MAX_NICS = 64
"""Maximum number of network cards to query. QEMU's machines have fewer slots."""

HOST_TIMEOUT_SECONDS = 5.0
"""Timeout of each lookup on the host. A lookup can hang: a read of a tap's fdinfo waits for a lock of the kernel's network stack."""

MAX_THREADS = 8192
"""Maximum number of threads to report. QEMU 11.1 supports at most 4096 vCPUs."""

Execute = Callable[[Sequence[Command]], Awaitable[list[CommandResult]]]
"""Executes commands on QEMU and returns their results in the same order."""

T = TypeVar("T")
NicsByMac = Mapping[str, Mapping[str, Any]]
"""Properties of network cards by MAC address in lower case."""


class HostProcess:
    """The QEMU process of one VM on this host. Call `close` when the session ends.

    Attributes:
        identity: sample that describes the VM, with the fields that are known.
        timed_out: whether the last lookup of the process took too long. On a slow host, the next lookup may succeed.
    """

    def __init__(self, context: SessionContext) -> None:
        self.identity = Sample(IDENTITY, (), {})
        self.timed_out = False
        self._context = context
        self._process: Process | None = None
        self._interface_names: frozenset[str] = frozenset()
        self._nics: NicsByMac = {}
        self._has_virtual_functions = False

    def close(self) -> None:
        """Close the process's directory in /proc."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def read_files(self, files: Sequence[KernelFilesToRead]) -> Sequence[KernelFileContents]:
        """Read the kernel's files about the process. If the process is unknown, each reply has the content None."""
        if self._process is None:
            return [KernelFileContents(request, [None] * len(request.names)) for request in files]
        if not self._has_virtual_functions:
            return self._process.read_files(files)
        read, virtual_function_counters = self._process.read_files, self._context.virtual_function_counters
        return [
            virtual_function_counters.read_cached_counters(file)
            if isinstance(file, VirtualFunctionCountersToRead)
            else read((file,))[0]
            for file in files
        ]

    async def discover(
        self,
        execute: Execute,
        socket_owner: int | None,
        vm: Vm,
        facts: VmFacts,
        domain: DomainXmlReader | None = None,
    ) -> VmFacts:
        """Find the VM's process, and return the facts with the process's threads, cgroup and network interfaces.

        Args:
            execute: executes commands on QEMU.
            socket_owner: pid of the process that opened the monitor's socket; None if unknown. `identify_qemu_process` describes its use.
            vm: the VM.
            facts: the facts about the VM that are known already.
            domain: the connection to the VM if the connection goes through libvirt; otherwise None.

        Raises:
            QmpError: the connection ended.
        """
        commands = [command for command in PROCESS_COMMANDS if facts.has_command(command.name)]
        results = await execute(commands) if commands else ()
        replies = dict(zip((command.name for command in commands), results, strict=True))
        cpus, threads, kvm, machine = (replies.get(command.name) for command in PROCESS_COMMANDS)
        vcpus, iothreads = list(_parse_vcpus(cpus)), list(_parse_iothreads(threads))
        values = dict(_parse_machine(kvm, machine))
        if labels := await self._read_labels(vm, domain):
            values["labels"] = labels
        thread_ids = [task.id for task in (*vcpus, *iothreads)]
        find = partial(identify_qemu_process, socket_owner, thread_ids, self._context.root)
        self.timed_out = False
        try:
            qemu = await _run_with_timeout(find, _close_found_process)
        except (UnidentifiedProcessError, TimeoutError) as error:
            self.close()
            self.timed_out = isinstance(error, TimeoutError)
            cause = str(error) or f"the lookup on the host timed out after {HOST_TIMEOUT_SECONDS:g} s"
            self.identity = Sample(IDENTITY, (), values | {"process_unknown_reason": cause})
            return dataclasses.replace(facts, process=None, vcpus=(), iothreads=(), cgroup=None, interfaces=())
        self.close()
        self._process = qemu.process
        self.identity = Sample(IDENTITY, (), values | {"pid": str(qemu.process.pid)})
        return dataclasses.replace(
            facts,
            process=_to_task(qemu),
            vcpus=tuple(dataclasses.replace(task, id=qemu.threads[task.id]) for task in vcpus),
            iothreads=tuple(dataclasses.replace(task, id=qemu.threads[task.id]) for task in iothreads),
            cgroup=qemu.cgroup,
            interfaces=await self._find_interfaces(execute, qemu.process),
        )

    async def _read_labels(self, vm: Vm, domain: DomainXmlReader | None) -> dict[str, str]:
        """Return the VM's labels: from libvirt if the connection goes through libvirt, otherwise from libvirt's files."""
        config = self._context.settings.labels
        with contextlib.suppress(TimeoutError):
            if domain is None:
                return await _run_with_timeout(partial(read_libvirt_labels, vm, config))
            xml = await domain.read_domain_xml(deadline=HOST_TIMEOUT_SECONDS)
            node = self._context.settings.host
            return await _run_with_timeout(
                partial(parse_libvirt_labels, xml, config, pod=domain.libvirt_container_name, node=node)
            )
        return {}

    async def _find_interfaces(self, execute: Execute, process: Process) -> tuple[VmHostInterface, ...]:
        """Return the process's network interfaces. Query the network cards from QEMU only if an interface is new."""
        try:
            interfaces = await _run_with_timeout(partial(find_process_interfaces, process, self._nics))
        except TimeoutError:
            return ()
        self._has_virtual_functions = any(interface.vf is not None for interface in interfaces)
        names = frozenset(interface.name for interface in interfaces if interface.vf is None)
        if names <= self._interface_names:
            return interfaces
        self._interface_names, self._nics = names, await _query_nics(execute)
        try:
            return await _run_with_timeout(partial(find_process_interfaces, process, self._nics))
        except TimeoutError:
            return interfaces


async def _run_with_timeout(
    call: Callable[[], T], on_late_result: Callable[["asyncio.Future[T]"], None] = lambda _: None
) -> T:
    """Run a blocking call in a thread and return its result.

    Args:
        call: the call.
        on_late_result: called with the call's future if the call ends after the timeout, to release resources of the result.

    Raises:
        TimeoutError: the call took longer than HOST_TIMEOUT_SECONDS.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        async with asyncio.timeout(HOST_TIMEOUT_SECONDS):
            return await asyncio.shield(running)
    except BaseException:
        running.add_done_callback(on_late_result)
        raise
    finally:
        # Breaks a reference cycle: the future refers to an error, and the error's traceback refers to this frame.
        del running


def _close_found_process(finished: "asyncio.Future[QemuProcess]") -> None:
    if not finished.cancelled() and finished.exception() is None:
        finished.result().process.close()


def _to_task(qemu: QemuProcess) -> ProcessOrThread:
    values = {"start_seconds": qemu.start_seconds, "cgroup": qemu.cgroup_name or None}
    return ProcessOrThread(qemu.process.pid, "", {key: value for key, value in values.items() if value is not None})


def _thread_id(item: Mapping[str, Any]) -> int | None:
    thread = item.get("thread-id")
    return thread if type(thread) is int and 0 < thread < 1 << 31 else None


def _parse_vcpus(reply: Any) -> Iterator[ProcessOrThread]:
    """Yield the vCPU threads in the reply to query-cpus-fast, with their thread ids in QEMU's pid namespace."""
    for cpu in list_of_objects_or_empty(reply, MAX_THREADS):
        thread = _thread_id(cpu)
        if thread is not None and type(index := cpu.get("cpu-index")) is int:
            yield ProcessOrThread(thread, str(index), {"qom_path": cpu.get("qom-path"), "topology": cpu.get("props")})


def _parse_iothreads(reply: Any) -> Iterator[ProcessOrThread]:
    for iothread in list_of_objects_or_empty(reply, MAX_THREADS):
        thread = _thread_id(iothread)
        if thread is not None and (name := text_or_empty(iothread.get("id"))):
            values = {
                key.replace("-", "_"): iothread.get(key)
                for key in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch")
            }
            yield ProcessOrThread(thread, sanitize(name), values)


def _parse_machine(kvm: Any, machine: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of the replies to query-kvm and to the query of the machine type."""
    if isinstance(machine, str):
        yield "machine", sanitize(machine.removesuffix("-machine"), 128)
    if isinstance(kvm, dict) and type(enabled := kvm.get("enabled")) is bool:
        yield "accelerator", "kvm" if enabled else "other"


async def _query_nics(execute: Execute) -> NicsByMac:
    """Return the properties of the guest's network cards."""
    listings = await execute([Command("qom-list", {"path": container}) for container in DEVICE_CONTAINERS])
    paths = [
        (name, f"{container}/{name}")
        for container, children in zip(DEVICE_CONTAINERS, listings, strict=True)
        for child in list_of_objects_or_empty(children)
        if text_or_empty(child.get("type")).startswith(_NIC_TYPES) and (name := text_or_empty(child.get("name")))
    ]
    nics: dict[str, FieldValues] = {}
    for name, path in paths[:MAX_NICS]:
        mac, netdev = await execute([Command("qom-get", {"path": path, "property": key}) for key in ("mac", "netdev")])
        if isinstance(mac, str):
            nics[mac.lower()] = {"mac": sanitize(mac.lower(), 32), "device": sanitize(name)}
            if isinstance(netdev, str) and netdev:
                nics[mac.lower()]["netdev"] = sanitize(netdev)
    return nics
