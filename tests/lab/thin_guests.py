"""Real guests with a thin disk (qcow2 on a file, a loop device or a network block device), and an agent that monitors them."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import orjson

from agent.app.agent import Agent
from agent.cli.demo.guest import FAST_PAUSE_SECONDS, Guest, GuestKind, GuestOptions
from agent.config.model import Config
from agent.model.record import EncodedRecord
from tests.lab.waiting import until

MIB: Final = 1 << 20

Data = dict[str, Any]

_DISK0: Final = "/machine/peripheral/disk0/virtio-backend"


async def run(*command: str) -> str:
    """Run a program and return its output.

    Raises:
        AssertionError: The program failed.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{command}: {err.decode()}"
    return out.decode().strip()


class LoopDevice:
    """A loop device on a sparse file. It can be extended like a logical volume.

    Attributes:
        path: The path of the device, while the context is open.
    """

    def __init__(self, file: Path, size: int) -> None:
        self.path = ""
        self._file = file
        self._size = size

    @staticmethod
    def is_available() -> bool:
        return os.geteuid() == 0 and shutil.which("losetup") is not None and Path("/dev/loop-control").exists()

    async def __aenter__(self) -> Self:
        with self._file.open("wb") as file:
            file.truncate(self._size)
        self.path = await run("losetup", "--find", "--show", str(self._file))
        return self

    async def __aexit__(self, *_: object) -> None:
        await run("losetup", "--detach", self.path)

    async def extend(self, size: int) -> None:
        os.truncate(self._file, size)
        await run("losetup", "--set-capacity", self.path)


@contextlib.asynccontextmanager
async def network_device(socket: Path, size: int) -> AsyncIterator[Mapping[str, Any]]:
    """Serve a sparse file as a network block device while the `with` block runs. Yield the options of QEMU's driver for this device."""
    file = socket.with_suffix(".raw")
    with file.open("wb") as image:
        image.truncate(size)
    command = ("qemu-nbd", "--format=raw", "--persistent", "--shared=4", f"--socket={socket}", str(file))
    server = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", *command)
    try:
        await until(socket.exists)
        yield {"driver": "nbd", "server": {"type": "unix", "path": str(socket)}}
    finally:
        server.kill()
        await server.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinOptions(GuestOptions):
    """Options of a guest that fills a thin disk fast.

    Attributes:
        storage: Options of the block node below the qcow2 node; None for a new file.
    """

    kind: GuestKind = GuestKind.WRITER
    write_kib: int | None = 63
    pause_seconds: float | None = FAST_PAUSE_SECONDS
    storage: Mapping[str, Any] | None = None


class ThinGuest(Guest):
    """A guest whose `disk0` is the qcow2 node `disk0-format`. The node below, `disk0-storage`, can have any driver."""

    options: ThinOptions

    async def _disk0_storage(self) -> Mapping[str, Any]:
        return await super()._disk0_storage() if self.options.storage is None else self.options.storage

    async def nodes(self) -> dict[str, Data]:
        """Return QEMU's block nodes by name."""
        return {node["node-name"]: node for node in await self.command("query-named-block-nodes", flat=True)}

    async def slot(self, node: str = "disk0-storage") -> int:
        """Return a node's write threshold."""
        return int((await self.nodes())[node]["write_threshold"])

    async def stop_writes_at(self, offset: int | None) -> None:
        """Hold the guest's writes when its storage is filled up to an offset, whatever the speed of the machine; None for no limit.

        A request that exceeds the limit still completes, and QEMU writes metadata of less than 1 MiB besides. Later requests wait.
        """
        limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr", "bps_wr"), 0)
        if (
            offset is not None
        ):  # QEMU's bucket has room for so many bytes, is empty at first, and leaks a byte per second
            limits |= {"bps_wr": 1, "bps_wr_max": max(1, offset - await self.highest_written_offset())}
        await self.command("block_set_io_throttle", id=_DISK0, **limits)


def thin_guest(folder: Path, name: str = "vm1", *, identity: str | None = None, **options: Any) -> ThinGuest:
    """Return a guest with a thin disk. It runs while its async context is open."""
    return ThinGuest(folder, name, ThinOptions(**options), identity=identity)


async def make_qcow2(target: str, size: int) -> None:
    await run("qemu-img", "create", "-q", "-f", "qcow2", target, str(size))


@dataclass
class ListSink:
    """A sink that stores the records it receives."""

    name: str = "list"
    records: list[Data] = field(default_factory=list)

    async def open(self) -> None:
        """Do nothing."""

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        self.records += [orjson.loads(entry.body) for entry in batch if entry.body]  # a tombstone has no body
        return ()

    async def close(self) -> None:
        """Do nothing."""


class AlertWatcher:
    """An agent in this process, and the alerts that it emitted.

    Attributes:
        app: The agent.
        url: The URL of the agent's endpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        poll: float = 1.0,
        resync: float = 300.0,
        storage: float = 30.0,
        pool_levels: Sequence[str] | None = None,
        alerts: Mapping[str, Any] | None = None,
        **thresholds: Any,
    ) -> None:
        """Configure the agent.

        Args:
            folder: The directory of the monitors' sockets.
            poll: Interval between two polls in seconds.
            resync: Interval between two resyncs in seconds.
            storage: Interval between two readings of the pools in seconds.
            pool_levels: Levels of the pools; None for the defaults.
            alerts: Further keys of the section `alerts`.
            thresholds: Keys of the section `alerts.disks`.
        """
        self.url = ""
        self._folder = folder
        self._sink = ListSink()
        config = {
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "host": "hv7",
            "web": {"listen_address": "127.0.0.1:0"},
            "intervals": {"poll": poll, "resync": resync, "storage": storage},
            "alerts": {"disks": {"mode": "arm", **thresholds}, **(alerts or {})}
            | ({"pools": {"levels": list(pool_levels)}} if pool_levels is not None else {}),
        }
        self.app = Agent(Config.model_validate(config), self._sink)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.url = await self._stack.enter_async_context(self.app.run_in_background())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def alerts(self) -> list[Data]:
        """The data of all alert records in order. Each also has the record's `subject`, `vm` and `severitytext`.

        Alerts of this machine's own file systems, which may be nearly full, are left out.
        """
        return [
            record["data"]
            | {"subject": record.get("subject"), "vm": record.get("vmname", "")}
            | {"severitytext": record["severitytext"]}
            for record in self._sink.records
            if record["type"].startswith("qemu.alert.") and not self._is_of_this_machine(record)
        ]

    def _is_of_this_machine(self, alert: Data) -> bool:
        subject = Path(alert.get("subject", ""))
        is_pool = alert["type"].startswith("qemu.alert.pool_") and subject.is_absolute()
        return is_pool and not subject.is_relative_to(self._folder)

    async def until_attached(self, vm: str = "vm1") -> None:
        """Wait until the agent is attached to a VM, receives its events and knows its disk `disk0`."""
        await until(lambda: self.space(vm), 180)

    def event_times(self, *names: str) -> list[float]:
        """Return the times of the records of these events, in the order of delivery, in seconds since the epoch."""
        types = {f"qemu.event.{name.lower()}" for name in names}
        records = [record for record in self._sink.records if record["type"] in types]
        return [datetime.fromisoformat(record["time"]).timestamp() for record in records]

    def alternates(self) -> bool:
        """Return whether the records of each alert are firing and resolved in turn."""
        states: dict[str, str] = {}
        for alert in self.alerts:
            if states.get(alert["fingerprint"], "resolved") == alert["state"]:
                return False
            states[alert["fingerprint"]] = alert["state"]
        return True

    def levels(self, state: str = "firing", **data: Any) -> list[str]:
        """Return the levels whose alerts changed to this state, in order."""
        return [
            alert["level"]
            for alert in self.alerts
            if alert["state"] == state and "level" in alert and data.items() <= alert.items()
        ]

    async def until(self, level: str, state: str = "firing", timeout: float = 400.0, **data: Any) -> None:  # noqa: ASYNC109
        """Wait until the alert of a level has changed to a state.

        Raises:
            AssertionError: The alert did not change within `timeout` seconds.
        """
        try:
            await until(lambda: level in self.levels(state, **data), timeout)
        except TimeoutError:
            raise AssertionError(f"{level} is not {state} within {timeout:g} s: {self.alerts}") from None

    def space(self, vm: str, device: str = "disk0") -> Data:
        """Return the values of a disk's space sample; empty if there is no sample."""
        return dict(self.values(vm, "block_space").get((device,), {}))

    def values(self, vm: str, family: str) -> Mapping[Any, Data]:
        """Return the last values of a VM's family, by labels."""
        for view_vm, view in self.app.snapshot.one_view_per_uuid():
            if view_vm.name == vm and family in view.polls:
                return view.polls[family].current
        return {}

    def records(self, type_: str) -> list[Data]:
        """Return the data of all records of a type, in order."""
        return [record["data"] for record in self._sink.records if record["type"] == type_]
