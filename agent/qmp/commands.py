"""The allow-list of commands, and the only place that encodes requests.

A QMP client has full control over its guest, so the list is closed: neither a config nor a bug can make the agent send another command.
Reads change nothing that a guest or a manager can see. Each change is off until the operator enables it by name, and the agent can send
it in one form only.

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
from agent.qmp.queries import ROWS, QueryPolicy

READS = frozenset({row.name for row in ROWS if row.policy is not QueryPolicy.REFUSED} | {"qom-get", "qom-list"})
"""Permitted reads: every `query-*` command that the query table does not refuse, and reads of QOM."""

PROPERTIES = frozenset({"chardev", "guest-stats", "guest-stats-polling-interval", "mac", "name", "netdev", "type"})
"""Properties that `qom-get` may read: a `secret` object returns its secret to any client (QEMU 2.6 to 11.1)."""

Request = NewType("Request", bytes)
"""Bytes that may be written to a monitor. Only this file makes them, and a client writes no others; mypy checks both."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its arguments, before encoding."""

    name: str
    arguments: Mapping[str, Any] | None = None


class Change(StrEnum):
    """A change that an operator can permit; the value is its name in the config."""

    GUEST_STATS_INTERVAL = "guest-stats-interval"
    MIGRATION_EVENTS = "migration-events"
    OWN_MONITOR = "own-monitor"
    WRITE_THRESHOLD = "write-threshold"


@dataclass(frozen=True, slots=True)
class _AllowedChange:
    """The only form in which a change may be sent."""

    command: str
    matches: Callable[[Mapping[str, Any]], bool]


_INTERVAL_MAX_SECONDS = 3600

_THRESHOLD_MAX_BYTES = 2**63 - 1
"""QEMU also accepts a negative number, and treats it as larger than any disk (2.3 to 11.1)."""

OWN = "qmp-agent"
"""Id, in QEMU, of the monitor that is added for the agent and of its character device."""


def own_monitor(path: str) -> tuple[Command, Command]:
    """Return the commands that add a monitor for the agent with its socket at `path` (QEMU 11.1).

    When the client disconnects, QEMU removes the monitor, the character device and the socket file.
    """
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    monitor = {"qom-type": "monitor-qmp", "id": OWN, "chardev": OWN, "close-action": "delete"}
    return Command("chardev-add", {"id": OWN, "backend": backend}), Command("object-add", monitor)


def without_own_monitor() -> tuple[Command, Command]:
    """Return the commands that remove the monitor that `own_monitor` adds, for when the agent could not connect to it."""
    return Command("object-del", {"id": OWN}), Command("chardev-remove", {"id": OWN})


def _same(first: object, second: object) -> bool:
    """Return whether both values are the same JSON. `==` is not enough: in Python, 1 equals True."""
    return orjson.dumps(first, option=orjson.OPT_SORT_KEYS) == orjson.dumps(second, option=orjson.OPT_SORT_KEYS)


def _is_own_socket(arguments: Mapping[str, Any]) -> bool:
    try:
        path = arguments["backend"]["data"]["addr"]["data"]["path"]
    except (KeyError, TypeError):
        return False
    if not isinstance(path, str) or not path.startswith("/") or not path.endswith(".qmp"):
        return False
    return _same(arguments, own_monitor(path)[0].arguments)


_FORMS = {
    Change.OWN_MONITOR: (
        _AllowedChange("chardev-add", _is_own_socket),
        *(
            _AllowedChange(command.name, partial(_same, command.arguments))
            for command in (own_monitor("")[1], *without_own_monitor())
        ),
    ),
    Change.GUEST_STATS_INTERVAL: (
        _AllowedChange(
            "qom-set",
            lambda a: (
                a.keys() == {"path", "property", "value"}
                and a["property"] == "guest-stats-polling-interval"
                and type(a["value"]) is int
                and 0 <= a["value"] <= _INTERVAL_MAX_SECONDS
            ),
        ),
    ),
    Change.WRITE_THRESHOLD: (
        _AllowedChange(
            "block-set-write-threshold",
            lambda a: (
                a.keys() == {"node-name", "write-threshold"}
                and isinstance(a["node-name"], str)
                and type(a["write-threshold"]) is int
                and 0 < a["write-threshold"] <= _THRESHOLD_MAX_BYTES
            ),
        ),
    ),
    Change.MIGRATION_EVENTS: (
        _AllowedChange(
            "migrate-set-capabilities", partial(_same, {"capabilities": [{"capability": "events", "state": True}]})
        ),
    ),
}


class AllowList:
    """Encodes permitted commands and refuses all others."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self.allow(changes)
        self._cache = {name: Request(b'{"execute":"%b"}' % name.encode()) for name in READS - {"qom-get"}}

    def allow(self, changes: Iterable[Change]) -> None:
        """Permit only these changes from now on, also on open connections."""
        self._forms = [form for change in changes for form in _FORMS[change]]

    def encode(self, command: Command) -> Request:
        """Return an in-band request: compact, without id and newline, because QEMU reads its monitor a byte at a time.

        Raises:
            CommandRefusedError: the command is neither a permitted read nor a change in its permitted form.
        """
        if command.arguments is None and command.name in self._cache:
            return self._cache[command.name]
        if not self._allowed_read(command) and not self._allowed_change(command):
            raise CommandRefusedError(f"{command.name} is not on the allow-list")
        return Request(orjson.dumps({"execute": command.name, "arguments": dict(command.arguments or {})}))

    def encode_all(self, commands: Iterable[Command]) -> Request:
        """Return several requests for one write.

        Raises:
            CommandRefusedError: one of them is not permitted; none is encoded.
        """
        return Request(b"".join(map(self.encode, commands)))

    def _allowed_read(self, command: Command) -> bool:
        if command.name == "qom-get":
            name = (command.arguments or {}).get("property")
            return isinstance(name, str) and name in PROPERTIES
        return command.name in READS

    def _allowed_change(self, command: Command) -> bool:
        return any(form.command == command.name and form.matches(command.arguments or {}) for form in self._forms)


def negotiation(*, oob: bool) -> Request:
    """Return the request that ends capability negotiation; only a QEMU that offers a capability accepts `enable`."""
    if oob:
        return Request(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    return Request(b'{"execute":"qmp_capabilities"}')


def probe(number: int) -> Request:
    """Return an out-of-band liveness probe; QEMU's monitor thread replies even while the main loop hangs (QEMU 6.0)."""
    return Request(b'{"exec-oob":"query-yank","id":%d}' % number)


def with_marker(number: int, request: Request) -> Request:
    """Return a marker: a request with an id. When its reply arrives, the replies to all earlier commands have arrived."""
    return Request(b'{"execute":"query-status","id":%d}%b' % (number, request))
