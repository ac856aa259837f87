"""The process behind a monitor: which it is, what its threads and its network interfaces are for, and what the kernel says of it."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from agent.collectors.base import Facts
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.host import Process, QemuProcess, UnknownProcessError, find, interfaces_of, labels_of
from agent.host.types import File, Interface, Task, Text
from agent.model.family import Sample, Values
from agent.model.metrics.about import ABOUT
from agent.model.record import Vm, sanitize
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.session.api import SessionSettings
from agent.session.identity import ROOMS

_log = logging.getLogger(__name__)

ASKS = (
    Command("query-cpus-fast"),
    Command("query-iothreads"),
    Command("query-kvm"),
    Command("qom-get", {"path": "/machine", "property": "type"}),
)

NEEDS = {"vcpu": "query-cpus-fast", "iothread": "query-iothreads"}
"""Collectors that ask the kernel about threads, and which of these questions QEMU has to understand for them."""

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
"""Types of network cards. Enumerating types instead would load modules."""

MAX_NICS = 64
"""Cards that are asked for their addresses; QEMU's machines have room for fewer."""

FIND_SECONDS = 5.0
"""How long the host may take to tell of a process: reading fdinfo of a tap waits for the kernel's network lock."""

MAX_THREADS = 8192
"""Threads that are told. QEMU's machines have 4096 vCPUs at most (11.1)."""

Asking = Callable[[Sequence[Command]], Awaitable[list[CommandResult]]]
T = TypeVar("T")
Nics = Mapping[str, Mapping[str, Any]]


class HostProcess:
    """One VM's process. Closed with the session."""

    def __init__(self, terms: SessionSettings) -> None:
        self.about = Sample(ABOUT, (), {})
        """What the VM is, as far as was detected."""
        self._terms = terms
        self._process: Process | None = None
        self._names: frozenset[str] = frozenset()
        self._nics: Nics = {}

    def close(self) -> None:
        """Let go of the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def answer(self, files: Sequence[File]) -> Sequence[Text]:
        """Return what these files say; nothing where the process is not known."""
        return self._process.answer(files) if self._process is not None else [Text(file, None) for file in files]

    async def learn(self, ask: Asking, opener: int | None, vm: Vm, facts: Facts) -> Facts:
        """Return the facts with those of the process, as they are now.

        Args:
            ask: asks QEMU.
            opener: who opened the monitor's socket, as `find` takes it.
            vm: who it is.
            facts: what else is known.

        Raises:
            QmpError: the connection ended.
        """
        asks = [one for one in ASKS if facts.has_command(one.name)]
        answers = dict(zip((one.name for one in asks), await ask(asks) if asks else (), strict=True))
        cpus, iothreads, kvm, machine = (answers.get(one.name) for one in ASKS)
        vcpus, others = list(_vcpus(cpus)), list(_iothreads(iothreads))
        values = dict(_machine(kvm, machine))
        with contextlib.suppress(TimeoutError):
            if labels := await _unblocked(partial(labels_of, vm, self._terms.labels)):
                values["labels"] = labels
        threads = [task.id for task in (*vcpus, *others)]
        try:
            found = await _unblocked(partial(find, opener, threads, self._terms.root), _let_go)
        except (UnknownProcessError, TimeoutError) as error:
            self.close()
            why = str(error) or f"the host did not tell of it within {FIND_SECONDS:g} s"
            self.about = Sample(ABOUT, (), values | {"process_unknown": why})
            return dataclasses.replace(facts, process=None, vcpus=(), iothreads=(), cgroup=None, interfaces=())
        self.close()
        self._process = found.process
        self.about = Sample(ABOUT, (), values | {"pid": str(found.process.pid)})
        return dataclasses.replace(
            facts,
            process=_process(found),
            vcpus=tuple(dataclasses.replace(task, id=found.threads[task.id]) for task in vcpus),
            iothreads=tuple(dataclasses.replace(task, id=found.threads[task.id]) for task in others),
            cgroup=found.cgroup,
            interfaces=await self._interfaces(ask, found.process),
        )

    async def _interfaces(self, ask: Asking, process: Process) -> tuple[Interface, ...]:
        """Return its network interfaces. QEMU is asked for its cards only when there is one that was not there before."""
        try:
            there = await _unblocked(partial(interfaces_of, process, self._nics))
        except TimeoutError:
            return ()
        names = frozenset(interface.name for interface in there)
        if names <= self._names:
            return there
        self._names, self._nics = names, await _cards(ask)
        try:
            return await _unblocked(partial(interfaces_of, process, self._nics))
        except TimeoutError:
            return there


async def _unblocked(call: Callable[[], T], undo: Callable[["asyncio.Future[T]"], None] = lambda _: None) -> T:
    """Return what a call returns that may block, made in a thread of its own; `undo` is for one that nobody waited for.

    Raises:
        TimeoutError: it took longer than FIND_SECONDS.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        async with asyncio.timeout(FIND_SECONDS):
            return await asyncio.shield(running)
    except BaseException:
        running.add_done_callback(undo)
        raise
    finally:
        del running  # which has its error, whose traceback has this frame: a circle


def _let_go(running: "asyncio.Future[QemuProcess]") -> None:
    if not running.cancelled() and running.exception() is None:
        running.result().process.close()


def _process(found: QemuProcess) -> Task:
    known = {"start_seconds": found.start_seconds, "cgroup": found.cgroup_name or None}
    return Task(found.process.pid, "", {key: value for key, value in known.items() if value is not None})


def _id(item: Mapping[str, Any]) -> int | None:
    thread = item.get("thread-id")
    return thread if type(thread) is int and 0 < thread < 1 << 31 else None


def _vcpus(answer: Any) -> Iterator[Task]:
    """Yield the vCPUs' threads as QEMU counts them; none where it has no such command (before 2.12)."""
    for cpu in as_list_of_objects(answer, MAX_THREADS):
        thread = _id(cpu)
        if thread is not None and type(index := cpu.get("cpu-index")) is int:
            yield Task(thread, str(index), {"qom_path": cpu.get("qom-path"), "topology": cpu.get("props")})


def _iothreads(answer: Any) -> Iterator[Task]:
    for iothread in as_list_of_objects(answer, MAX_THREADS):
        thread = _id(iothread)
        if thread is not None and (name := as_text(iothread.get("id"))):
            known = {
                key.replace("-", "_"): iothread.get(key)
                for key in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch")
            }
            yield Task(thread, sanitize(name), known)


def _machine(kvm: Any, machine: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(machine, str):
        yield "machine", sanitize(machine.removesuffix("-machine"), 128)
    if isinstance(kvm, dict) and type(enabled := kvm.get("enabled")) is bool:
        yield "accelerator", "kvm" if enabled else "other"


async def _cards(ask: Asking) -> Nics:
    """Return the guest's network cards by MAC address."""
    rooms = await ask([Command("qom-list", {"path": room}) for room in ROOMS])
    paths = [
        (name, f"{room}/{name}")
        for room, children in zip(ROOMS, rooms, strict=True)
        for child in as_list_of_objects(children)
        if as_text(child.get("type")).startswith(_NICS) and (name := as_text(child.get("name")))
    ]
    cards: dict[str, Values] = {}
    for name, path in paths[:MAX_NICS]:
        mac, netdev = await ask([Command("qom-get", {"path": path, "property": key}) for key in ("mac", "netdev")])
        if isinstance(mac, str):
            cards[mac.lower()] = {"mac": sanitize(mac.lower(), 32), "device": sanitize(name)}
            if isinstance(netdev, str) and netdev:
                cards[mac.lower()]["netdev"] = sanitize(netdev)
    return cards
