"""Execution of QMP commands for a domain: by translation into libvirt's own calls, or by passthrough to QEMU.

libvirt's own calls cover a part of QMP. Any other command fails with CommandNotFound, as if QEMU lacked the command. The agent does not
send a command again after CommandNotFound. Passthrough sends every command to QEMU, and libvirt then marks the domain as tainted.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from agent.monitors.libvirt import qmp_results_from_stats
from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.devices import NO_DEVICES, DomainDevices, parse_devices
from agent.monitors.libvirt.libvirt_python import LibvirtConnection
from agent.monitors.libvirt.lifecycle import LibvirtMigrationPhase
from agent.monitors.libvirt.qmp_results_from_stats import FetchedDomainData, FileSizes, Stats
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.qmp.client import CommandResult
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import AmbiguousReplyError, CommandError, QmpError, UnreadableReplyError


@dataclass(frozen=True, slots=True)
class ConnectedLibvirtd:
    """A libvirtd that the agent is connected to.

    Attributes:
        api: the module libvirt.
        qemu: the module libvirt_qemu.
        pool: makes calls to the libvirtd.
        stats: fetches domains' statistics from the libvirtd.
        read_only: whether connections are read-only.
        passthrough: whether commands go through libvirt to QEMU.
        container: name of the container that the libvirtd runs in; empty on the host itself.
    """

    api: Any
    qemu: Any
    pool: ConnectionPool
    stats: StatsBatcher
    read_only: bool
    passthrough: bool
    container: str = ""


class LibvirtCommandExecutor(Protocol):
    """Executes QMP commands for one libvirt domain.

    Attributes:
        current_command: name of the command that QEMU executes now; empty during a libvirt call that serves several commands.
    """

    current_command: str

    async def execute(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Execute commands and return their results, in order. The caller sets the deadline.

        Raises:
            QmpError: a failure that concerns all commands; `ConnectionPool.call_with_connection` lists the errors.
        """


class PassthroughExecutor:
    """Sends commands to QEMU by libvirt's virDomainQemuMonitorCommand."""

    def __init__(self, daemon: ConnectedLibvirtd, uuid: str, allow: AllowList) -> None:
        self.current_command = ""
        self._daemon = daemon
        self._uuid = uuid
        self._allow = allow

    async def execute(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Return the commands' results, in order."""
        requests = [(command.name, self._allow.encode(command).decode()) for command in commands]
        return await self._daemon.pool.call_with_connection(
            lambda connection: [self._send_command(connection, *request) for request in requests]
        )

    def _send_command(self, connection: LibvirtConnection, name: str, request: str) -> CommandResult:
        """Send one command and return its result. This method runs in a thread."""
        self.current_command = name
        try:
            text = self._daemon.qemu.qemuMonitorCommand(connection.look_up_domain(self._uuid), request, 0)
        except self._daemon.api.libvirtError as error:
            if connection.is_lost() or error.get_error_code() == self._daemon.api.VIR_ERR_NO_DOMAIN:
                raise
            return CommandError("GenericError", error.get_error_message())
        return _parse_reply(text)


def _parse_reply(text: str) -> CommandResult:
    """Return the result in a reply of QEMU; an UnreadableReplyError if the reply cannot be read."""
    try:
        reply = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return UnreadableReplyError(f"QEMU's reply is not valid JSON: {error}")
    match reply:
        case {"return": value}:
            return value
        case {"error": {"class": str(error_class), "desc": str(desc)}}:
            return CommandError(error_class, desc)
    return UnreadableReplyError("QEMU's reply has neither a return value nor an error")


class TranslatingExecutor:
    """Executes commands by libvirt's own calls. Converts libvirt's statistics and the domain's XML to QMP results."""

    def __init__(
        self, daemon: ConnectedLibvirtd, uuid: str, name: str, migration_phase: Callable[[], LibvirtMigrationPhase]
    ) -> None:
        """Create an executor.

        Args:
            daemon: the domain's libvirtd.
            uuid: the domain's UUID.
            name: the domain's name.
            migration_phase: returns the progress of the domain's migration to this host.
        """
        self._daemon = daemon
        self._uuid = uuid
        self._name = name
        self._migration_phase = migration_phase
        self.current_command = ""
        self._arrival_reported = False
        self._devices: DomainDevices | None = None

    async def execute(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Return the commands' results, in order."""
        data = await self._fetch_domain_data(commands)
        return [await self._execute_command(command, data) for command in commands]

    async def _fetch_domain_data(self, commands: Sequence[Command]) -> FetchedDomainData:
        """Fetch only the data that these commands need."""
        stats, stats_error = await self._fetch_stats(commands)
        devices, devices_error = await self._read_devices(commands, stats)
        sizes: FileSizes = {}
        if any(command.name == "query-named-block-nodes" for command in commands):
            with contextlib.suppress(CommandError, UnreadableReplyError):  # after a failure, records lack the sizes
                sizes = await self._read_file_sizes(devices)
        return FetchedDomainData(self._uuid, self._name, stats, devices, sizes, stats_error, devices_error)

    async def _fetch_stats(self, commands: Sequence[Command]) -> tuple[Stats, QmpError | None]:
        """Return the statistics that the commands need, and an error if the statistics cannot be fetched."""
        groups, names = 0, qmp_results_from_stats.stats_groups(commands)
        for group in names:
            groups |= getattr(self._daemon.api, f"VIR_DOMAIN_STATS_{group}")
        try:
            return await self._daemon.stats.fetch(self._uuid, groups) if groups else {}, None
        except CommandError as error:
            return {}, error
        except UnreadableReplyError as error:
            return {}, error if len(names) == 1 else AmbiguousReplyError(str(error))

    async def _read_devices(self, commands: Sequence[Command], stats: Stats) -> tuple[DomainDevices, QmpError | None]:
        """Return the devices if these commands need them, and an error if the XML cannot be read.

        Read the XML again if one of the commands is in `DEVICE_REFRESH_COMMANDS`, or if the statistics list an image that is not known.
        """
        if not any(map(qmp_results_from_stats.needs_devices, commands)):
            return NO_DEVICES, None
        devices = self._devices
        refresh = any(command.name in qmp_results_from_stats.DEVICE_REFRESH_COMMANDS for command in commands)
        if devices is not None and not refresh and qmp_results_from_stats.is_every_stats_image_known(stats, devices):
            return devices, None
        self._devices = None
        try:
            xml: str = await self._daemon.pool.call_with_connection(
                lambda connection: connection.look_up_domain(self._uuid).XMLDesc(0)
            )
            devices = self._devices = parse_devices(xml)
        except (CommandError, UnreadableReplyError) as error:
            return NO_DEVICES, error
        except ValueError as error:
            return NO_DEVICES, UnreadableReplyError(f"the domain's XML cannot be read: {error}")
        return devices, None

    async def _execute_command(self, command: Command, data: FetchedDomainData) -> CommandResult:
        arguments = command.arguments or {}
        if command.name == "qom-set":
            return await self._apply_change(lambda domain: domain.setMemoryStatsPeriod(arguments["value"], 0))
        if command.name == "block-set-write-threshold":
            return await self._set_threshold(arguments["node-name"], arguments["write-threshold"], data)
        result = self._add_migration_state(command, qmp_results_from_stats.build_qmp_result(command, data))
        if result is None:
            return CommandError("CommandNotFound", f"libvirt does not report {command.name} without passthrough")
        return result

    async def _set_threshold(self, node: str, threshold: int, data: FetchedDomainData) -> CommandResult:
        """Set the threshold of a storage node. Refuse if libvirt does not report the node's current threshold."""
        if (error := data.stats_error or data.devices_error) is not None:
            return error
        target = data.devices.libvirt_disk_name_of_node(node)
        if target is None:
            return CommandError("GenericError", f"libvirt has no image for the node {node}")
        if not qmp_results_from_stats.is_write_threshold_reported(node, data):
            return CommandError("GenericError", f"libvirt does not report the threshold that the node {node} has now")
        return await self._apply_change(lambda domain: domain.setBlockThreshold(target, threshold))

    def _add_migration_state(self, command: Command, result: Any) -> Any:
        """Return `result`, or a result that shows a migration to this host. libvirt's domain states do not show the migration.

        While the migration runs, query-status returns `inmigrate`. After a migration that query-status has not shown, query-migrate
        returns `completed` once.
        """
        phase = self._migration_phase()
        if (
            phase is LibvirtMigrationPhase.ARRIVING
            and command.name == "query-status"
            and result != qmp_results_from_stats.STATUS_RUNNING
        ):
            self._arrival_reported = True
            return {"status": "inmigrate", "running": False}
        if phase is LibvirtMigrationPhase.ARRIVED and command.name == "query-migrate" and not self._arrival_reported:
            self._arrival_reported = True
            return {"status": "completed"}
        return result

    async def _apply_change(self, change: Callable[[Any], object]) -> CommandResult:
        """Call `change` with libvirt's object of the domain, in a thread. Return an empty result, or libvirt's error."""

        def call(connection: LibvirtConnection) -> dict[str, Any]:
            change(connection.look_up_domain(self._uuid))
            return {}

        try:
            return await self._daemon.pool.call_with_connection(call)
        except CommandError as error:
            return error

    async def _read_file_sizes(self, devices: DomainDevices) -> FileSizes:
        """Return the sizes of the disks that are files. libvirtd reads these sizes from the file system, without QEMU."""
        targets = [disk.target for disk in devices.disks.values() if disk.layers and disk.layers[0].protocol == "file"]

        def read(connection: LibvirtConnection) -> FileSizes:
            domain = connection.look_up_domain(self._uuid)
            sizes: dict[str, tuple[int, int]] = {}
            for target in targets:
                try:
                    _, allocation, physical = domain.blockInfo(target)
                    sizes[target] = allocation, physical
                except self._daemon.api.libvirtError:  # libvirtd cannot read this file
                    if connection.is_lost():
                        raise
            return sizes

        return await self._daemon.pool.call_with_connection(read) if targets else {}
