"""The allow-list of commands, and the only module that encodes requests.

A QMP client has full control over its guest, so the list is closed: neither a config nor a bug can make the agent send another command.
Reads change nothing that a guest or a manager can see. Each change is off until the operator enables it by name. The arguments of a
change must have the form that is written here.

Deliberately missing: `human-monitor-command` (runs any command), `qom-list-types` and similar commands (load modules, which crashes a
QEMU whose package was upgraded), `query-rx-filter` (re-arms an event), `query-cpus` (interrupts every vCPU), `cont` and all other actions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NewType

import orjson

from agent.qmp.errors import CommandRefusedError
from agent.qmp.queries import QUERIES, QueryPolicy

READS = frozenset({row.name for row in QUERIES if row.policy is not QueryPolicy.REFUSED} | {"qom-get", "qom-list"})
"""Permitted reads: every `query-*` command whose policy in the query table is not REFUSED, and the reads of QOM."""

READABLE_PROPERTIES = frozenset(
    {"chardev", "guest-stats", "guest-stats-polling-interval", "mac", "name", "netdev", "type"}
)
"""QOM properties that `qom-get` may read. Others are refused because a `secret` object has its secret in one (QEMU 2.6 to 11.1)."""

Request = NewType("Request", bytes)
"""Bytes that may be written to a monitor. Only this module creates them. A client writes no other bytes, which mypy checks."""


@dataclass(frozen=True, slots=True)
class Command:
    """A QMP command with its arguments, before encoding."""

    name: str
    arguments: Mapping[str, Any] | None = None


class Change(StrEnum):
    """A change of a QEMU that an operator can permit in the config."""

    GUEST_STATS_INTERVAL = "guest-stats-interval"
    MIGRATION_EVENTS = "migration-events"
    OWN_MONITOR = "own-monitor"
    WRITE_THRESHOLD = "write-threshold"


@dataclass(frozen=True, slots=True)
class _CommandForm:
    """A command that a change needs.

    Attributes:
        command: the command's name.
        matches: returns whether arguments have the permitted form.
    """

    command: str
    matches: Callable[[Mapping[str, Any]], bool]


_MAX_STATS_INTERVAL_SECONDS = 3600

_MAX_THRESHOLD_BYTES = 2**63 - 1
"""QEMU also accepts a negative threshold, and treats it as larger than any disk (2.3 to 11.1)."""

OWN_MONITOR_ID = "qmp-agent"
"""QEMU's id of the monitor that the agent adds, and of the monitor's character device."""


def add_monitor_commands(path: str) -> tuple[Command, Command]:
    """Return the commands that add a monitor with a Unix socket at `path` (QEMU 11.1).

    When the client of the new monitor disconnects, QEMU removes the monitor, its character device and its socket file.
    """
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    monitor = {"qom-type": "monitor-qmp", "id": OWN_MONITOR_ID, "chardev": OWN_MONITOR_ID, "close-action": "delete"}
    return Command("chardev-add", {"id": OWN_MONITOR_ID, "backend": backend}), Command("object-add", monitor)


def remove_monitor_commands() -> tuple[Command, Command]:
    """Return the commands that undo `add_monitor_commands`, for use if the agent cannot connect to the new monitor."""
    return Command("object-del", {"id": OWN_MONITOR_ID}), Command("chardev-remove", {"id": OWN_MONITOR_ID})


def _same_json(first: object, second: object) -> bool:
    """Return whether two values are the same JSON. `==` is not enough, because in Python 1 equals True."""
    return orjson.dumps(first, option=orjson.OPT_SORT_KEYS) == orjson.dumps(second, option=orjson.OPT_SORT_KEYS)


def _is_own_socket(arguments: Mapping[str, Any]) -> bool:
    """Return whether arguments of `chardev-add` are those of `add_monitor_commands`, for any absolute path that ends in `.qmp`."""
    try:
        path = arguments["backend"]["data"]["addr"]["data"]["path"]
    except (KeyError, TypeError):
        return False
    if not isinstance(path, str) or not path.startswith("/") or not path.endswith(".qmp"):
        return False
    return _same_json(arguments, add_monitor_commands(path)[0].arguments)


_FORMS_BY_CHANGE = {
    Change.OWN_MONITOR: (
        _CommandForm("chardev-add", _is_own_socket),
        *(
            _CommandForm(command.name, partial(_same_json, command.arguments))
            for command in (add_monitor_commands("")[1], *remove_monitor_commands())
        ),
    ),
    Change.GUEST_STATS_INTERVAL: (
        _CommandForm(
            "qom-set",
            lambda a: (
                a.keys() == {"path", "property", "value"}
                and a["property"] == "guest-stats-polling-interval"
                and type(a["value"]) is int
                and 0 <= a["value"] <= _MAX_STATS_INTERVAL_SECONDS
            ),
        ),
    ),
    Change.WRITE_THRESHOLD: (
        _CommandForm(
            "block-set-write-threshold",
            lambda a: (
                a.keys() == {"node-name", "write-threshold"}
                and isinstance(a["node-name"], str)
                and type(a["write-threshold"]) is int
                and 0 < a["write-threshold"] <= _MAX_THRESHOLD_BYTES
            ),
        ),
    ),
    Change.MIGRATION_EVENTS: (
        _CommandForm(
            "migrate-set-capabilities", partial(_same_json, {"capabilities": [{"capability": "events", "state": True}]})
        ),
    ),
}


class AllowList:
    """Encodes permitted commands and refuses all others."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self.permit_only(changes)
        self._encoded_reads = {name: Request(b'{"execute":"%b"}' % name.encode()) for name in READS - {"qom-get"}}

    def permit_only(self, changes: Iterable[Change]) -> None:
        """Permit these changes and no others from now on, on open connections, too."""
        self._permitted_forms = [form for change in changes for form in _FORMS_BY_CHANGE[change]]

    def encode(self, command: Command) -> Request:
        """Return an in-band request. It is compact, without id and newline, because QEMU reads its monitor a byte at a time.

        Raises:
            CommandRefusedError: the command is neither a permitted read nor a permitted change with arguments of the permitted form.
        """
        if command.arguments is None and command.name in self._encoded_reads:
            return self._encoded_reads[command.name]
        if not self._is_permitted_read(command) and not self._is_permitted_change(command):
            raise CommandRefusedError(f"{command.name} is not on the allow-list")
        return Request(orjson.dumps({"execute": command.name, "arguments": dict(command.arguments or {})}))

    def encode_all(self, commands: Iterable[Command]) -> Request:
        """Return the requests of several commands for one write.

        Raises:
            CommandRefusedError: one of the commands is not permitted. No command is encoded then.
        """
        return Request(b"".join(map(self.encode, commands)))

    def _is_permitted_read(self, command: Command) -> bool:
        if command.name == "qom-get":
            name = (command.arguments or {}).get("property")
            return isinstance(name, str) and name in READABLE_PROPERTIES
        return command.name in READS

    def _is_permitted_change(self, command: Command) -> bool:
        return any(
            form.command == command.name and form.matches(command.arguments or {}) for form in self._permitted_forms
        )


def negotiation_request(*, oob: bool) -> Request:
    """Return the request that ends capability negotiation; `oob` enables out-of-band execution, which QEMU must have offered."""
    if oob:
        return Request(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    return Request(b'{"execute":"qmp_capabilities"}')


def probe_request(number: int) -> Request:
    """Return an out-of-band request with an id. QEMU's monitor thread replies even while the main loop hangs (QEMU 6.0)."""
    return Request(b'{"exec-oob":"query-yank","id":%d}' % number)


def marker_request(number: int) -> Request:
    """Return a marker: a command with an id. QEMU replies to it after all earlier commands."""
    return Request(b'{"execute":"query-status","id":%d}' % number)
