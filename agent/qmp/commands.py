"""Everything this agent can say to a QEMU, and the only place where a request's bytes are made.

A QMP socket is root over its guest, so the list is closed: a command that is not here cannot be sent, whatever the config or a bug
asks for. Reads change nothing a guest or a manager can see. Each change is off until the operator turns it on by name, and even then
only in the one form that is listed.

Not here on purpose: `human-monitor-command` (does anything), `qom-list-types` and its kin (load modules, and crash a QEMU whose package
was upgraded under it), `query-rx-filter` (re-arms an event), `query-cpus` (interrupts every vCPU), `cont` and all else that acts.
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
"""What may be asked: questions that their rows do not refuse, each by its whole name, and what QEMU's objects are."""

PROPERTIES = frozenset({"guest-stats", "guest-stats-polling-interval", "mac", "netdev", "type"})
"""What `qom-get` may ask for: a `secret` object tells its secret to whoever asks (QEMU 2.6 to 11.1)."""

Request = NewType("Request", bytes)
"""What may be written to a monitor. Made in this file alone; a client writes nothing else, and mypy sees to that."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command with its arguments, before it is bytes."""

    name: str
    arguments: Mapping[str, Any] | None = None


class Change(StrEnum):
    """A change that an operator may allow; the value is its name in the config."""

    GUEST_STATS_INTERVAL = "guest-stats-interval"
    MIGRATION_EVENTS = "migration-events"
    OWN_MONITOR = "own-monitor"
    WRITE_THRESHOLD = "write-threshold"


@dataclass(frozen=True, slots=True)
class _AllowedChange:
    """The one shape in which a change may be sent."""

    command: str
    fits: Callable[[Mapping[str, Any]], bool]


_INTERVAL_MAX_SECONDS = 3600

_THRESHOLD_MAX_BYTES = 2**63 - 1
"""QEMU takes a negative number too, silently, as one past any disk (2.3 to 11.1)."""

OWN = "qmp-agent"
"""The id, in QEMU, of a monitor that was added for the agent and of its character device."""


def own_monitor(path: str) -> tuple[Command, Command]:
    """Return the changes that have QEMU make a monitor for the agent alone, a socket at that path (QEMU 11.1).

    When the socket's client leaves, QEMU removes the monitor, the character device and the socket's file by itself.
    """
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    monitor = {"qom-type": "monitor-qmp", "id": OWN, "chardev": OWN, "close-action": "delete"}
    return Command("chardev-add", {"id": OWN, "backend": backend}), Command("object-add", monitor)


def without_own_monitor() -> tuple[Command, Command]:
    """Return the changes that take back what `own_monitor` made and nobody could connect to."""
    return Command("object-del", {"id": OWN}), Command("chardev-remove", {"id": OWN})


def _same(one: object, other: object) -> bool:
    """Return whether both are the same JSON: to Python, 1 is equal to true."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


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
            _AllowedChange(ask.name, partial(_same, ask.arguments))
            for ask in (own_monitor("")[1], *without_own_monitor())
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
    """Makes requests' bytes, and refuses to make those that are not allowed."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self.allow(changes)
        self._cache = {name: Request(b'{"execute":"%b"}' % name.encode()) for name in READS - {"qom-get"}}

    def allow(self, changes: Iterable[Change]) -> None:
        """Allow these changes and no others from here on, on connections that are up too."""
        self._forms = [form for change in changes for form in _FORMS[change]]

    def encode(self, ask: Command) -> Request:
        """Return an in-band request: compact, with no id and no newline, since QEMU pays for its length byte by byte.

        Raises:
            CommandRefusedError: it is neither a read nor a change that the operator allowed in this form.
        """
        if ask.arguments is None and ask.name in self._cache:
            return self._cache[ask.name]
        if not self._allowed_read(ask) and not self._allowed_change(ask):
            raise CommandRefusedError(f"{ask.name} is not on the allow-list")
        return Request(orjson.dumps({"execute": ask.name, "arguments": dict(ask.arguments or {})}))

    def encode_all(self, asks: Iterable[Command]) -> Request:
        """Return several requests for one write, or none of them.

        Raises:
            CommandRefusedError: one of them may not be sent.
        """
        return Request(b"".join(map(self.encode, asks)))

    def _allowed_read(self, ask: Command) -> bool:
        if ask.name == "qom-get":
            asked = (ask.arguments or {}).get("property")
            return isinstance(asked, str) and asked in PROPERTIES
        return ask.name in READS

    def _allowed_change(self, ask: Command) -> bool:
        return any(form.command == ask.name and form.fits(ask.arguments or {}) for form in self._forms)


def negotiation(*, oob: bool) -> Request:
    """Return the request that ends capability negotiation; `enable` is only understood by a QEMU that offers something."""
    if oob:
        return Request(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
    return Request(b'{"execute":"qmp_capabilities"}')


def probe(number: int) -> Request:
    """Return an out-of-band liveness probe, answered by QEMU's monitor thread even while its main loop is stuck (QEMU 6.0)."""
    return Request(b'{"exec-oob":"query-yank","id":%d}' % number)
