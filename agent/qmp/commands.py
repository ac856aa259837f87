"""The allow-list of commands, and the only module that encodes requests.

A QMP client has full control over its guest. So the list is closed: neither a config nor a bug can make the agent send another command.
Reads change nothing that a guest or a manager can see. Changes and unstable commands are off until the operator enables each by name.
The arguments of an enabled command must have the form that this module defines.

Some commands are deliberately missing. `human-monitor-command` runs any command. `qom-list-types` and similar commands load modules, which
crashes a QEMU whose package was upgraded. `query-rx-filter` re-arms an event. `query-cpus` interrupts every vCPU. `cont` and all other
actions change the guest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import pairwise
from typing import Any, NewType

import orjson

from agent.qmp.errors import CommandNotAllowedError
from agent.qmp.queries import QUERIES, QueryTrigger

QMP_READS = frozenset(
    {row.name for row in QUERIES if row.trigger not in (QueryTrigger.REFUSED, QueryTrigger.ALLOWED)}
    | {"qom-get", "qom-list"}
)
"""Permitted reads: `qom-get`, `qom-list`, and the `query-*` commands in the query table whose trigger is neither REFUSED nor ALLOWED."""

READABLE_PROPERTIES = frozenset(
    {"chardev", "guest-stats", "guest-stats-polling-interval", "mac", "name", "netdev", "num-queues", "type"}
)
"""QOM properties that `qom-get` may read. All others are refused: a `secret` object has its secret in a property (QEMU 2.6 to 11.1)."""

Request = NewType("Request", bytes)
"""Bytes that may be written to a monitor. Only this module creates requests. mypy checks that clients write nothing else."""


@dataclass(frozen=True, slots=True)
class Command:
    """A QMP command with its arguments, before encoding."""

    name: str
    arguments: Mapping[str, Any] | None = None


class OptInQemuChange(StrEnum):
    """A change to QEMU, or an unstable command, that an operator can permit in the config."""

    GUEST_STATS_INTERVAL = "guest-stats-interval"
    LATENCY_HISTOGRAMS = "latency-histograms"
    MIGRATION_EVENTS = "migration-events"
    OWN_MONITOR = "own-monitor"
    VIRTIO_QUEUES = "virtio-queues"
    """Reads of virtio queues, only for disks that QEMU itself serves. For a vhost device, the command would stop the queue."""
    WRITE_THRESHOLD = "write-threshold"


@dataclass(frozen=True, slots=True)
class _PermittedCommand:
    """A command that an `OptInQemuChange` needs, with a check of its arguments.

    Attributes:
        command: the command's name.
        matches: returns whether arguments are permitted.
    """

    command: str
    matches: Callable[[Mapping[str, Any]], bool]


_MAX_STATS_INTERVAL_SECONDS = 3600

_MAX_THRESHOLD_BYTES = 2**63 - 1
"""Maximum write threshold. QEMU also accepts a negative threshold, and treats it as larger than any disk (2.3 to 11.1)."""

VIRTIO_QUEUE_STATUS = "x-query-virtio-queue-status"
"""The command that reads the state of a virtio queue (since QEMU 7.2)."""
VIRTIO_BACKEND_SUFFIX = "/virtio-backend"
"""Last part of the QOM path of a disk's virtio device."""
_MAX_QUEUE = 1023
_BOUNDARY_LISTS = ("boundaries-read", "boundaries-write", "boundaries-flush")
"""Arguments with the boundaries of histograms. The agent sets no histogram for zone appends, because few disks have zones."""

MAX_HISTOGRAM_BOUNDARIES = 32
"""Maximum number of boundaries of a histogram that the agent sets. Each boundary adds three Prometheus series for each disk."""


def set_histograms_command(device: str, boundaries_ns: Sequence[int]) -> Command:
    """Return the command that sets the latency histograms of a disk. The command replaces existing histograms.

    Send the command only for a disk without histograms. Many versions of QEMU since 4.0 take no lock for this command. These versions can
    crash if histograms are replaced or removed while an iothread serves the disk. Setting the first histograms is safe, because QEMU uses
    only complete histograms.

    Args:
        device: the device's id or QOM path, from the field `qdev` of query-blockstats.
        boundaries_ns: the boundaries between the bins, in nanoseconds, ascending.
    """
    boundaries = {name: list(boundaries_ns) for name in _BOUNDARY_LISTS}
    return Command("block-latency-histogram-set", {"id": device, **boundaries})


def _are_valid_boundaries(value: object) -> bool:
    """Return whether a value is a non-empty list of ascending boundaries. Some versions of QEMU read beyond the end of an empty list."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_HISTOGRAM_BOUNDARIES
        and all(type(bound) is int and 0 < bound < 2**63 for bound in value)
        and all(lower < upper for lower, upper in pairwise(value))
    )


OWN_MONITOR_ID = "qmp-agent"
"""QEMU's id of the monitor that the agent adds, and of the monitor's character device."""


def commands_to_add_own_monitor(path: str) -> tuple[Command, Command]:
    """Return the commands that add a monitor with a Unix socket at `path` (QEMU 11.1).

    When the client of the new monitor disconnects, QEMU removes the monitor, its character device and its socket file.
    """
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    monitor = {"qom-type": "monitor-qmp", "id": OWN_MONITOR_ID, "chardev": OWN_MONITOR_ID, "close-action": "delete"}
    return Command("chardev-add", {"id": OWN_MONITOR_ID, "backend": backend}), Command("object-add", monitor)


def commands_to_remove_own_monitor() -> tuple[Command, Command]:
    """Return the commands that undo `commands_to_add_own_monitor`, for a new monitor to which the agent cannot connect."""
    return Command("object-del", {"id": OWN_MONITOR_ID}), Command("chardev-remove", {"id": OWN_MONITOR_ID})


def _is_same_json(first: object, second: object) -> bool:
    """Return whether two values are the same JSON. `==` is not enough, because 1 equals True in Python."""
    return orjson.dumps(first, option=orjson.OPT_SORT_KEYS) == orjson.dumps(second, option=orjson.OPT_SORT_KEYS)


def _adds_own_socket(arguments: Mapping[str, Any]) -> bool:
    """Return whether `commands_to_add_own_monitor` returns such arguments of `chardev-add`, for any absolute path that ends in `.qmp`."""
    try:
        path = arguments["backend"]["data"]["addr"]["data"]["path"]
    except (KeyError, TypeError):
        return False
    if not isinstance(path, str) or not path.startswith("/") or not path.endswith(".qmp"):
        return False
    return _is_same_json(arguments, commands_to_add_own_monitor(path)[0].arguments)


_COMMANDS_BY_CHANGE = {
    OptInQemuChange.OWN_MONITOR: (
        _PermittedCommand("chardev-add", _adds_own_socket),
        *(
            _PermittedCommand(command.name, partial(_is_same_json, command.arguments))
            for command in (commands_to_add_own_monitor("")[1], *commands_to_remove_own_monitor())
        ),
    ),
    OptInQemuChange.GUEST_STATS_INTERVAL: (
        _PermittedCommand(
            "qom-set",
            lambda a: (
                a.keys() == {"path", "property", "value"}
                and a["property"] == "guest-stats-polling-interval"
                and type(a["value"]) is int
                and 0 <= a["value"] <= _MAX_STATS_INTERVAL_SECONDS
            ),
        ),
    ),
    OptInQemuChange.WRITE_THRESHOLD: (
        _PermittedCommand(
            "block-set-write-threshold",
            lambda a: (
                a.keys() == {"node-name", "write-threshold"}
                and isinstance(a["node-name"], str)
                and type(a["write-threshold"]) is int
                and 0 < a["write-threshold"] <= _MAX_THRESHOLD_BYTES
            ),
        ),
    ),
    OptInQemuChange.LATENCY_HISTOGRAMS: (
        _PermittedCommand(
            "block-latency-histogram-set",
            lambda a: (
                a.keys() == {"id", *_BOUNDARY_LISTS}  # without boundaries, the command removes all histograms
                and isinstance(a["id"], str)
                and all(_are_valid_boundaries(a[name]) for name in _BOUNDARY_LISTS)
            ),
        ),
    ),
    OptInQemuChange.VIRTIO_QUEUES: (
        _PermittedCommand(
            VIRTIO_QUEUE_STATUS,
            lambda a: (
                a.keys() == {"path", "queue"}
                and isinstance(a["path"], str)
                and a["path"].endswith(VIRTIO_BACKEND_SUFFIX)
                and type(a["queue"]) is int
                and 0 <= a["queue"] <= _MAX_QUEUE
            ),
        ),
    ),
    OptInQemuChange.MIGRATION_EVENTS: (
        _PermittedCommand(
            "migrate-set-capabilities",
            partial(_is_same_json, {"capabilities": [{"capability": "events", "state": True}]}),
        ),
    ),
}
"""The commands that each change permits."""


class AllowList:
    """Encodes permitted commands and refuses all others."""

    def __init__(self, changes: Iterable[OptInQemuChange] = ()) -> None:
        self.permit_only(changes)
        self._encoded_reads = {name: Request(b'{"execute":"%b"}' % name.encode()) for name in QMP_READS - {"qom-get"}}

    def permit_only(self, changes: Iterable[OptInQemuChange]) -> None:
        """Permit exactly these changes from now on, also on open connections."""
        self._permitted = [command for change in changes for command in _COMMANDS_BY_CHANGE[change]]

    def encode(self, command: Command) -> Request:
        """Return the bytes of an in-band request, without an id. QEMU needs no line end, because QEMU parses a request byte by byte.

        Raises:
            CommandNotAllowedError: the command is neither a permitted read nor a permitted change with arguments of the permitted form.
        """
        if command.arguments is None and command.name in self._encoded_reads:
            return self._encoded_reads[command.name]
        if not self._is_permitted_read(command) and not self._is_permitted_change(command):
            raise CommandNotAllowedError(f"{command.name} is not on the allow-list")
        return Request(orjson.dumps({"execute": command.name, "arguments": dict(command.arguments or {})}))

    def encode_all(self, commands: Iterable[Command]) -> Request:
        """Return the requests of several commands for one write.

        Raises:
            CommandNotAllowedError: one of the commands is not permitted.
        """
        return Request(b"".join(map(self.encode, commands)))

    def _is_permitted_read(self, command: Command) -> bool:
        if command.name == "qom-get":
            name = (command.arguments or {}).get("property")
            return isinstance(name, str) and name in READABLE_PROPERTIES
        return command.name in QMP_READS

    def _is_permitted_change(self, command: Command) -> bool:
        return any(
            permitted.command == command.name and permitted.matches(command.arguments or {})
            for permitted in self._permitted
        )


def negotiation_request(*, oob: bool) -> Request:
    """Return the request that ends capability negotiation. `oob` enables out-of-band execution, if QEMU has offered it."""
    if oob:
        return Request(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    return Request(b'{"execute":"qmp_capabilities"}')


def probe_request(number: int) -> Request:
    """Return an out-of-band request with an id. QEMU's monitor thread replies even while the main loop hangs (QEMU 6.0 and newer)."""
    return Request(b'{"exec-oob":"query-yank","id":%d}' % number)


def reply_sync_request(number: int) -> Request:
    """Return a marker: a query-status with an id. QEMU replies to the marker after it has replied to all earlier commands."""
    return Request(b'{"execute":"query-status","id":%d}' % number)
